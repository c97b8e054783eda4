"""The chunk endpoints of a peer: ASGI requests in, calls of the store, answers out.

Bulk data goes this way, so there is no web framework in it: a request costs its parsing, one look
into the index and the transfer. Owns no state. Never decides anything about chunks; `store.py`
does. Errors become answers here and nowhere below.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from mictlanfs import wire
from mictlanfs.checksums import DIGEST_SIZE_BYTES
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import chunk_id_from_hex
from mictlanfs.model import CHUNK_ID_SIZE_BYTES, SMALL_CHUNK_SIZE_BYTES, Buffer, ChunkId
from mictlanfs.wirecopies import PullChunks
from mictlanfs.wirefragments import MakeFragment
from mictlanfs_server.bodies import EXTENSION, RequestBody
from mictlanfs_server.http import error_response, to_mictlan_error
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.buffers import BufferPool, LentBuffers
from mictlanfs_server.peer.popularity import ReadCounter
from mictlanfs_server.peer.pulling import Puller
from mictlanfs_server.peer.rebuilding import Rebuilder
from mictlanfs_server.peer.store import ChunkStore, check_length

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from mictlanfs_server.serving import Message

    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

log = logging.getLogger(__name__)

# A client that takes this long over a piece of 1 MiB is gone, or as good as: its memory is needed.
IDLE_TIMEOUT_S: Final = 30.0
# The most a frame of the protocol can be: length, header, bodies.
_FRAME_BODY_SIZE_BYTES_MAX: Final = 4 + wire.FRAME_HEADER_SIZE_BYTES_MAX + wire.FRAME_SIZE_BYTES_MAX
_DIGEST_HEADER: Final = wire.HEADER_DIGEST.encode()
_BYTES_TYPE: Final = (b"content-type", b"application/octet-stream")
_CHUNK_TEMPLATE: Final = wire.Path.CHUNK + "{chunk_id}"
_RANGE: Final = re.compile(rb"bytes=([0-9]{1,18})-([0-9]{1,18})?")


class Request(NamedTuple):
    """One request as the ASGI server hands it over."""

    scope: Message
    receive: Receive
    send: Send

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, None when it is missing. `name` in lower case."""
        for key, value in self.scope["headers"]:
            if key == name:
                found: bytes = value
                return found
        return None

    def content_length(self) -> int:
        """Bytes of the body. Raises INVALID when the client does not say."""
        value = self.header(b"content-length")
        if value is None or not value.isdigit():
            raise MictlanError(Kind.INVALID, "read request", detail="content-length is missing")
        return int(value)

    def direct_body(self) -> RequestBody | None:
        """The body, when the server offers it for direct reading."""
        found: RequestBody | None = self.scope.get("extensions", {}).get(EXTENSION)
        return found

    async def pieces(self, buffers: LentBuffers) -> AsyncIterator[Buffer]:
        """The body, piece by piece; valid while `buffers` are lent.

        Raises:
            ConnectionError: the client hung up.
            MictlanError: TIMED_OUT, no whole piece came for 30 s.
        """
        body = self.direct_body()
        if body is not None:
            while body.unread:
                piece = buffers.take()[: body.unread]
                async with _no_longer_than_patience():
                    await body.read_into(piece)
                yield piece
            return
        more = True
        while more:
            async with _no_longer_than_patience():
                message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client hung up")
            more = message.get("more_body", False)
            if data := message.get("body", b""):
                yield data

    async def whole_body(self) -> Buffer:
        """The body in one piece. Raises as `pieces` does."""
        body = self.direct_body()
        if body is not None:
            whole = memoryview(bytearray(body.unread))
            async with _no_longer_than_patience():
                await body.read_into(whole)
            return whole
        pieces = [piece async for piece in self.pieces(LentBuffers())]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def answer(self, status: int, headers: Headers, body: Buffer = b"") -> None:
        """Send a whole answer; returns when the connection has taken most of it."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [length, *headers])
        if len(body) < SMALL_CHUNK_SIZE_BYTES:
            await self.send({"type": "http.response.body", "body": body})
            return
        # The server takes a body whole, however slowly it leaves. The empty second part waits
        # until the first has left, so that whoever counts the bytes in memory counts right.
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await self.send({"type": "http.response.body"})
        except TimeoutError:
            log.warning("a client takes no bytes: hanging up", extra={"size": len(body)})

    async def answer_head(self, length: int, headers: Headers) -> None:
        """Answer HEAD for a body of `length` bytes."""
        await self._start(200, [(b"content-length", b"%d" % length), *headers])
        await self.send({"type": "http.response.body"})

    async def _start(self, status: int, headers: Headers) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


class ChunkHandlers:
    """An ASGI application for the paths that `is_ours` recognises.

    Args:
        reads: told of every read of a chunk that is here.
    """

    def __init__(
        self, store: ChunkStore, puller: Puller, rebuilder: Rebuilder, reads: ReadCounter
    ) -> None:
        self._store = store
        self._reads = reads
        self._puller = puller
        self._rebuilder = rebuilder
        self._buffers = BufferPool()
        self._chunk_verbs = {
            "PUT": self._put,
            "GET": self._get,
            "HEAD": self._head,
            "DELETE": self._delete,
        }
        self._frame_verbs = {
            wire.Path.FRAME_PUT: self._put_frame,
            wire.Path.FRAME_GET: self._get_frame,
            wire.Path.FRAME_DELETE: self._delete_frame,
            wire.Path.FRAME_PULL: self._pull_frame,
            wire.Path.FRAGMENT_MAKE: self._make_fragment,
        }

    def is_ours(self, path: str) -> bool:
        """Whether a request for `path` belongs here."""
        return path.startswith(wire.Path.CHUNK) or path in self._frame_verbs

    def template(self, path: str) -> str:
        """The route of a path that is ours."""
        return path if path in self._frame_verbs else _CHUNK_TEMPLATE

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive, send)
        try:
            await self._dispatch(request)
        except ConnectionError as error:
            log.debug("%s %s: %s", scope["method"], scope["path"], error)
        except Exception as error:  # noqa: BLE001 - `to_mictlan_error` logs what is not ours.
            await _refuse(request, to_mictlan_error(error, scope["path"]))

    async def _dispatch(self, request: Request) -> None:
        method, path = request.scope["method"], request.scope["path"]
        frame_verb = self._frame_verbs.get(path)
        if frame_verb is not None and method == "POST":
            await frame_verb(request)
            return
        verb = self._chunk_verbs.get(method)
        if frame_verb is not None or verb is None:
            raise MictlanError(Kind.UNSUPPORTED, method, path)
        await verb(request, _chunk_id(path.removeprefix(wire.Path.CHUNK)))

    # --- single chunks -------------------------------------------------------------------------

    async def _put(self, request: Request, chunk_id: ChunkId) -> None:
        length = request.content_length()
        check_length(length)
        chunk = StoredChunk(chunk_id, length, digest_in(request))
        with self._buffers.lend() as lent:
            is_new = await self._store.put(chunk, request.pieces(lent))
        await request.answer(201 if is_new else 200, ())

    async def _get(self, request: Request, chunk_id: ChunkId) -> None:
        chunk, body = self._store.open(chunk_id)
        is_named = request.header(_DIGEST_HEADER) is not None
        if is_named and digest_in(request) != chunk.digest:
            detail = "the peer has other bytes of that id: another fragment"
            raise MictlanError(Kind.NOT_FOUND, "get chunk", chunk_id.hex(), detail)
        wanted = request.header(b"range")
        try:
            start, end = (0, chunk.length) if wanted is None else parse_range(wanted, chunk)
        except MictlanError as error:
            await _refuse(request, error, {"content-range": f"bytes */{chunk.length}"})
            return
        self._reads.note(chunk_id, (end - start) / chunk.length)
        headers = [_BYTES_TYPE, (_DIGEST_HEADER, chunk.digest.hex().encode())]
        if wanted is not None:
            value = b"bytes %d-%d/%d" % (start, end - 1, chunk.length)
            headers.append((b"content-range", value))
        status = 200 if wanted is None else 206
        if body is not None:
            await request.answer(status, headers, self._store.part_of(chunk, body, start, end))
            return
        async with self._store.downloads.take(end - start):
            await request.answer(status, headers, await self._store.read(chunk, start, end))

    async def _head(self, request: Request, chunk_id: ChunkId) -> None:
        chunk = self._store.find(chunk_id)
        digest = (_DIGEST_HEADER, chunk.digest.hex().encode())
        await request.answer_head(chunk.length, [_BYTES_TYPE, digest])

    async def _delete(self, request: Request, chunk_id: ChunkId) -> None:
        self._reads.forget(chunk_id)
        [error] = await self._store.delete([chunk_id])
        if error is not None:
            raise error
        await request.answer(204, ())

    # --- frames --------------------------------------------------------------------------------

    async def _put_frame(self, request: Request) -> None:
        async with self._store.uploads.take(_frame_length(request)):
            header, rest = wire.unframe(await _body(request), wire.FramePut)
            _check_frame([chunk.id for chunk in header.chunks])
            chunks = [_frame_chunk(chunk) for chunk in header.chunks]
            bodies = wire.cut_bodies(rest, [chunk.length for chunk in chunks])
            errors = await self._store.put_many(list(zip(chunks, bodies, strict=True)))
        await _answer_frame(
            request,
            [
                _result(0 if error else chunk.length, error)
                for chunk, error in zip(chunks, errors, strict=True)
            ],
        )

    async def _get_frame(self, request: Request) -> None:
        header, _ = wire.unframe(await _body(request), wire.FrameGet)
        _check_frame(header.ids)
        async with self._store.downloads.take(wire.FRAME_SIZE_BYTES_MAX):
            found = await self._store.read_many(header.ids, wire.FRAME_SIZE_BYTES_MAX)
            for chunk_id, item in zip(header.ids, found, strict=True):
                if not isinstance(item, MictlanError):
                    self._reads.note(chunk_id)
            bodies = [body for body in found if not isinstance(body, MictlanError)]
            results = [
                _result(0, item) if isinstance(item, MictlanError) else _result(len(item))
                for item in found
            ]
            await _answer_frame(request, results, bodies)

    async def _delete_frame(self, request: Request) -> None:
        header, _ = wire.unframe(await _body(request), wire.FrameDelete)
        _check_frame(header.ids)
        for chunk_id in header.ids:
            self._reads.forget(chunk_id)
        results = [_result(0, error) for error in await self._store.delete(header.ids)]
        await _answer_frame(request, results)

    async def _pull_frame(self, request: Request) -> None:
        header, _ = wire.unframe(await _body(request), PullChunks)
        _check_frame([chunk.id for chunk in header.chunks])
        for chunk in header.chunks:
            _frame_chunk(chunk)
        errors = await self._puller.pull(header)
        await _answer_frame(
            request,
            [
                _result(0 if error else chunk.length, error)
                for chunk, error in zip(header.chunks, errors, strict=True)
            ],
        )

    async def _make_fragment(self, request: Request) -> None:
        header, _ = wire.unframe(await _body(request), MakeFragment)
        answer = b"".join(wire.frame(await self._rebuilder.make(header)))
        await request.answer(200, [_BYTES_TYPE], answer)


def parse_range(value: bytes, chunk: StoredChunk) -> tuple[int, int]:
    """Start and end of the one range in a Range header, cut at the end of the chunk.

    Understands `bytes=a-b` and `bytes=a-`. Source: RFC 9110, section 14.1.2.

    Raises:
        MictlanError: RANGE, for any other form and for a range that begins behind the chunk.
    """
    match = _RANGE.fullmatch(value)
    if match is not None:
        start = int(match[1])
        last = chunk.length - 1 if match[2] is None else min(int(match[2]), chunk.length - 1)
        if start <= last:
            return start, last + 1
    text = value.decode("ascii", "replace")
    detail = f"{text!r} names no bytes of a chunk of {chunk.length}"
    raise MictlanError(Kind.RANGE, "get chunk", chunk.id.hex(), detail)


def _frame_length(request: Request) -> int:
    """Bytes of a frame. Raises INVALID and TOO_LARGE."""
    length = request.content_length()
    if length > _FRAME_BODY_SIZE_BYTES_MAX:
        detail = f"{length} bytes are more than {_FRAME_BODY_SIZE_BYTES_MAX}"
        raise MictlanError(Kind.TOO_LARGE, "read frame", detail=detail)
    return length


async def _body(request: Request) -> Buffer:
    """The whole body of a frame."""
    _frame_length(request)
    return await request.whole_body()


@asynccontextmanager
async def _no_longer_than_patience() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            yield
    except TimeoutError:
        raise MictlanError(Kind.TIMED_OUT, "read request") from None


async def _answer_frame(
    request: Request, results: list[wire.FrameResult], bodies: Sequence[Buffer] = ()
) -> None:
    answer = b"".join(wire.frame(wire.FrameAnswer(tuple(results)), bodies))
    await request.answer(200, [_BYTES_TYPE], answer)


def _result(length: int, error: MictlanError | None = None) -> wire.FrameResult:
    return wire.FrameResult(length, None if error is None else wire.WireError.of(error))


def _frame_chunk(chunk: wire.FrameChunk) -> StoredChunk:
    check_length(chunk.length)
    if len(chunk.digest) != DIGEST_SIZE_BYTES:
        raise MictlanError(Kind.INVALID, "read frame", detail="a digest has another size")
    return StoredChunk(chunk.id, chunk.length, chunk.digest)


def _check_frame(chunk_ids: Sequence[ChunkId]) -> None:
    if len(chunk_ids) > wire.FRAME_CHUNKS_MAX:
        detail = f"{len(chunk_ids)} chunks are more than {wire.FRAME_CHUNKS_MAX}"
        raise MictlanError(Kind.INVALID, "read frame", detail=detail)
    if any(len(chunk_id) != CHUNK_ID_SIZE_BYTES for chunk_id in chunk_ids):
        raise MictlanError(Kind.INVALID, "read frame", detail="a chunk id has another size")


def _chunk_id(text: str) -> ChunkId:
    try:
        return chunk_id_from_hex(text)
    except ValueError:
        detail = "a chunk id has 32 hexadecimal digits"
        raise MictlanError(Kind.INVALID, "chunk", text[:64], detail) from None


def digest_in(request: Request) -> bytes:
    """The digest that a request announces. Raises INVALID when there is none."""
    try:
        digest = bytes.fromhex((request.header(_DIGEST_HEADER) or b"").decode())
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_SIZE_BYTES:
        detail = f"{wire.HEADER_DIGEST} must be 64 hexadecimal digits"
        raise MictlanError(Kind.INVALID, "put", detail=detail)
    return digest


async def _refuse(
    request: Request, error: MictlanError, headers: Mapping[str, str] | None = None
) -> None:
    """Answer with an error; what is left of the request's body is passed over by the server."""
    response = error_response(error)
    response.headers.update(headers or {})
    if error.kind is Kind.TOO_LARGE:
        # Not worth receiving the rest of the body for.
        response.headers["connection"] = "close"
    await response(request.scope, request.receive, request.send)
