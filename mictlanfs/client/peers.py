"""Chunk requests to one peer, one method for each.

Holds no state and never retries: which replica to try next is the chunk store's decision. Every
method raises the `MictlanError` that the peer answered, or UNAVAILABLE or TIMED_OUT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mictlanfs import wire
from mictlanfs.client.reception import Reception
from mictlanfs.client.transport import HttpTransport, Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer, ChunkId
from mictlanfs.wireverify import Scrub, ScrubState

# Generous for a busy disk; a peer that is gone refuses at once.
CHUNK_TIMEOUT_S = 20.0


class PeerClient:
    """The verbs of the peer protocol. `url` is the peer's address from the peer map."""

    def __init__(self, transport: HttpTransport) -> None:
        self._transport = transport
        self.request_count = 0

    async def put(
        self, url: str, chunk_id: ChunkId, digest: bytes, pieces: Sequence[Buffer]
    ) -> None:
        """Store a chunk durably; storing the same chunk again is no error.

        Raises:
            MictlanError: NO_SPACE, CORRUPT (the bytes do not match `digest`), CONFLICT.
        """
        headers = {wire.HEADER_DIGEST: digest.hex()}
        await self._send("PUT", url + wire.Path.CHUNK + chunk_id.hex(), pieces, headers)

    async def get(
        self,
        url: str,
        chunk_id: ChunkId,
        start: int,
        end: int,
        digest: bytes | None = None,
        into: Reception | None = None,
    ) -> Buffer:
        """Bytes `[start, end)` of what the peer holds under the id of a chunk.

        With a `digest` only of that: a peer may have another fragment of a chunk by now than the
        reader thinks.

        With `into`, of which as many bytes must be missing, that is where they are; what arrived
        before a failure is there as well.

        Raises:
            MictlanError: NOT_FOUND, RANGE; CORRUPT when the peer sends another number of bytes.
        """
        headers = {"range": f"bytes={start}-{end - 1}"}
        if digest is not None:
            headers[wire.HEADER_DIGEST] = digest.hex()
        path = url + wire.Path.CHUNK + chunk_id.hex()
        if into is None:
            response = await self._send("GET", path, (), headers)
        else:
            self.request_count += 1
            response = _checked(
                await self._transport.request_into(
                    "GET", path, into, headers=headers, timeout_s=CHUNK_TIMEOUT_S
                )
            )
        if len(response.body) != end - start:
            detail = f"the peer sent {len(response.body)} bytes, not {end - start}"
            raise MictlanError(Kind.CORRUPT, "get chunk", chunk_id.hex(), detail)
        if into is not None and not into.is_complete:
            # Not every way to a peer receives into a buffer of ours.
            into.add(response.body)
        return response.body

    async def put_frame(
        self, url: str, chunks: Sequence[wire.FrameChunk], bodies: Sequence[Buffer]
    ) -> Sequence[wire.FrameResult]:
        """Store several small chunks durably; one result for each."""
        pieces = wire.frame(wire.FramePut(tuple(chunks)), bodies)
        response = await self._send("POST", url + wire.Path.FRAME_PUT, pieces)
        answer, _ = wire.unframe(response.body, wire.FrameAnswer)
        return _one_each(answer.results, len(chunks))

    async def get_frame(
        self, url: str, chunk_ids: Sequence[ChunkId]
    ) -> list[memoryview | MictlanError]:
        """Several small chunks, whole; an error in the place of each that failed."""
        pieces = wire.frame(wire.FrameGet(tuple(chunk_ids)))
        response = await self._send("POST", url + wire.Path.FRAME_GET, pieces)
        answer, rest = wire.unframe(response.body, wire.FrameAnswer)
        results = _one_each(answer.results, len(chunk_ids))
        lengths = [0 if result.error else result.length for result in results]
        bodies = wire.cut_bodies(rest, lengths)
        return [
            result.error.to_error() if result.error else body
            for result, body in zip(results, bodies, strict=True)
        ]

    async def scrub(self, url: str, message: Scrub) -> ScrubState:
        """How the scrub of the peer stands; may begin a pass."""
        response = await self._send("POST", url + wire.Path.SCRUB, (wire.encode(message),))
        return wire.decode(response.body, ScrubState)

    async def _send(
        self,
        method: str,
        url: str,
        body: Sequence[Buffer],
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        self.request_count += 1
        return _checked(
            await self._transport.request(
                method, url, body=body, headers=headers, timeout_s=CHUNK_TIMEOUT_S
            )
        )


def _checked(response: Response) -> Response:
    """A good answer; the error in any other one is raised."""
    if response.status not in {200, 201, 204, 206}:
        raise wire.decode_error(response.status, response.body)
    return response


def _one_each(results: Sequence[wire.FrameResult], count: int) -> Sequence[wire.FrameResult]:
    if len(results) != count:
        detail = f"{len(results)} results for {count} chunks"
        raise MictlanError(Kind.PROTOCOL, "decode", "frame", detail)
    return results
