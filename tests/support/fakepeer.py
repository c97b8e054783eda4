"""A peer in memory, which can be full and can hold damaged chunks."""

from __future__ import annotations

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.transport import Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import chunk_id_from_hex
from mictlanfs.model import Buffer, ChunkId, PeerInfo, PeerNumber, PeerState
from tests.support.fakenet import Request


class FakePeer:
    """A peer that keeps the contract of the protocol.

    Attributes:
        chunks: what it holds.
        digests: of these as they came, whatever happened to them since.
        is_full: whether it refuses new chunks.
        frame_sizes: number of chunks in each frame it was sent.
    """

    def __init__(self, number: int, zone: str = "") -> None:
        self.number = PeerNumber(number)
        self.url = f"http://peer-{number}:24000"
        self.zone = zone or f"zone-{number}"
        self.chunks: dict[ChunkId, bytes] = {}
        self.digests: dict[ChunkId, bytes] = {}
        self.is_full = False
        self.frame_sizes: list[int] = []

    def info(self, state: PeerState = PeerState.UP, capacity: int = 2**40) -> PeerInfo:
        """The peer as a peer map shows it."""
        name = f"peer-{self.number}"
        return PeerInfo(self.number, name, self.url, self.zone, capacity, 0, state)

    def damage(self, chunk_id: ChunkId) -> None:
        """Change a byte of a chunk behind the peer's back."""
        body = bytearray(self.chunks[chunk_id])
        body[0] ^= 1
        self.chunks[chunk_id] = bytes(body)

    def handle(self, request: Request) -> Response:
        if request.path == wire.Path.FRAME_PUT:
            return self._put_frame(request.body)
        if request.path == wire.Path.FRAME_GET:
            return self._get_frame(request.body)
        assert request.path.startswith(wire.Path.CHUNK), request.path
        chunk_id = chunk_id_from_hex(request.path.removeprefix(wire.Path.CHUNK))
        if request.method == "PUT":
            self._put(chunk_id, bytes.fromhex(request.headers[wire.HEADER_DIGEST]), request.body)
            return Response(201, {}, b"")
        digest = request.headers.get(wire.HEADER_DIGEST)
        if digest is not None and self.digests.get(chunk_id) != bytes.fromhex(digest):
            raise MictlanError(Kind.NOT_FOUND, "get chunk", chunk_id.hex())
        start, end = request.headers["range"].removeprefix("bytes=").split("-")
        return Response(206, {}, self._get(chunk_id)[int(start) : int(end) + 1])

    def _put_frame(self, body: bytes) -> Response:
        header, rest = wire.unframe(body, wire.FramePut)
        bodies = wire.cut_bodies(rest, [chunk.length for chunk in header.chunks])
        self.frame_sizes.append(len(bodies))
        results = []
        for chunk, data in zip(header.chunks, bodies, strict=True):
            try:
                self._put(chunk.id, chunk.digest, data)
                results.append(wire.FrameResult(chunk.length))
            except MictlanError as error:
                results.append(wire.FrameResult(error=wire.WireError.of(error)))
        return Response(200, {}, b"".join(wire.frame(wire.FrameAnswer(tuple(results)))))

    def _get_frame(self, body: bytes) -> Response:
        header, _ = wire.unframe(body, wire.FrameGet)
        self.frame_sizes.append(len(header.ids))
        results, bodies = [], []
        for chunk_id in header.ids:
            try:
                data = self._get(chunk_id)
            except MictlanError as error:
                results.append(wire.FrameResult(error=wire.WireError.of(error)))
            else:
                results.append(wire.FrameResult(len(data)))
                bodies.append(data)
        return Response(200, {}, b"".join(wire.frame(wire.FrameAnswer(tuple(results)), bodies)))

    def _put(self, chunk_id: ChunkId, digest: bytes, body: Buffer) -> None:
        if self.is_full:
            raise MictlanError(Kind.NO_SPACE, "put chunk", chunk_id.hex())
        if digest_of([body]) != digest:
            raise MictlanError(Kind.CORRUPT, "put chunk", chunk_id.hex())
        if self.digests.setdefault(chunk_id, digest) != digest:
            raise MictlanError(Kind.CONFLICT, "put chunk", chunk_id.hex())
        self.chunks[chunk_id] = bytes(body)

    def _get(self, chunk_id: ChunkId) -> bytes:
        if chunk_id not in self.chunks:
            raise MictlanError(Kind.NOT_FOUND, "get chunk", chunk_id.hex())
        return self.chunks[chunk_id]
