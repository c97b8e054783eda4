"""An httpx transport for plain HTTP that moves bodies without copying them about.

The stock transport costs about 500 µs a request and 2 CPU-seconds a gigabyte (ADR 0004). Here a
request leaves in one gathered write, and a body is received straight into the buffer the caller
gets. Only what our servers and those of the v4 API speak: HTTP/1.1; requests have a Content-Length,
answers that or the chunked coding. TLS, HTTP/2 and proxies stay with the stock transport. Works on
trio and on asyncio, by `loops`.

Owns connections to any number of servers. A connection carries one request at a time and goes back
to its pool only after a complete exchange. Servers that are asked no more, because they moved or
are gone, are forgotten when another one is asked for the first time. Bodies travel in the
`extensions` of httpx requests and responses, because httpx would copy them: `BODY` names the key at
both ends. `INTO` in a request names a `Reception` that the body of a good answer of just the
missing length goes into.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from mictlanfs.client.chunkedcoding import ChunkedBody
from mictlanfs.client.leanhttpx import httpx
from mictlanfs.client.loops import current
from mictlanfs.client.loops.base import ByteStream, Deadline, Loop, TooLateError
from mictlanfs.client.reception import STEP_SIZE_BYTES, Reception
from mictlanfs.model import MIB, Buffer

BODY: Final = "mictlanfs-body"
INTO: Final = "mictlanfs-into"
# On top of the time-out, a body may take this long: far below what any usable network does.
BYTES_PER_S_MIN = 1_000_000
CONNECTIONS_PER_SERVER_MAX = 32
# A server that nobody has asked for so long may be gone; if it is not, connecting is soon done.
UNUSED_S_MAX = 300.0
HEAD_SIZE_BYTES_MAX = 64 * 1024
# Three times the largest page of a directory, and far more than any chunk.
BODY_SIZE_BYTES_MAX = 256 * MIB
LENGTH_DIGITS_MAX = 20
# RFC 9112, section 6.3.
_STATUS_WITHOUT_BODY = frozenset({204, 304})
# Whole, and a part: anything else has a body that says why.
_STATUS_OF_CONTENT = frozenset({200, 206})
# Without a stream, httpx would take the time to read an empty body.
_ELSEWHERE: Final = httpx.AsyncByteStream()
_Address = tuple[str, int]


class BulkTransport(httpx.AsyncBaseTransport):
    """A pool of keep-alive connections for each server. Belongs to the loop that first uses it."""

    def __init__(self) -> None:
        self._pools: dict[_Address, _Pool] = {}
        self._loop: Loop | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Exchange one request; any method but HEAD.

        A connection that the server closed while it was idle is replaced once, before any byte of
        an answer: our requests can be repeated without harm.

        Cancellation: the connection in use is closed.

        Raises:
            httpx.TransportError: as every httpx transport.
        """
        url = request.url
        address = (url.host, url.port or 80)
        pool = self._pools.get(address) or self._new_pool(address)
        with pool.in_use():
            return await self._exchange_by(pool, request)

    async def _exchange_by(self, pool: _Pool, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions.get("timeout", {})
        timeout_s = timeout.get("read") or 10.0
        connect_s = timeout.get("connect") or timeout_s
        pieces: Sequence[Buffer] = request.extensions.get(BODY, ())
        into: Reception | None = request.extensions.get(INTO)
        head = _head_of(request, sum(len(piece) for piece in pieces))
        async with pool.limiter:
            connection = pool.idle()
            if connection is not None:
                with suppress(_ClosedWhileIdleError):
                    return await pool.exchange(connection, head, pieces, timeout_s, into)
            connection = await pool.connect(connect_s)
            try:
                return await pool.exchange(connection, head, pieces, timeout_s, into)
            except _ClosedWhileIdleError as error:
                raise httpx.RemoteProtocolError(
                    "the server closed the connection without an answer"
                ) from error

    def _new_pool(self, address: _Address) -> _Pool:
        if self._loop is None:
            self._loop = current()
        for unused in [known for known, pool in self._pools.items() if pool.is_unused]:
            self._pools.pop(unused).close()
        pool = self._pools[address] = _Pool(address, self._loop)
        return pool

    async def aclose(self) -> None:
        """Close every idle connection."""
        for pool in self._pools.values():
            pool.close()


class _ClosedWhileIdleError(Exception):
    """The connection ended before any byte of the answer."""


class _Pool:
    """Connections to one server; the one used last is used next."""

    def __init__(self, address: _Address, loop: Loop) -> None:
        self._address = address
        self._loop = loop
        self._idle: list[_Connection] = []
        self._users = 0
        self._used_s = time.monotonic()
        self.limiter = loop.limiter(CONNECTIONS_PER_SERVER_MAX)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Somebody sends a request, or waits to."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._used_s = time.monotonic()

    @property
    def is_unused(self) -> bool:
        """Whether nobody has sent a request for long."""
        return not self._users and time.monotonic() - self._used_s >= UNUSED_S_MAX

    def idle(self) -> _Connection | None:
        """An idle connection that the server has not closed; None when there is none."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return None

    async def connect(self, timeout_s: float) -> _Connection:
        try:
            async with self._loop.deadline(timeout_s):
                return _Connection(await self._loop.connect(*self._address))
        except TooLateError as error:
            raise httpx.ConnectTimeout(f"no connection within {timeout_s:g} s") from error
        except OSError as error:
            raise httpx.ConnectError(_reason(error)) from error

    async def exchange(
        self,
        connection: _Connection,
        head: bytes,
        pieces: Sequence[Buffer],
        timeout_s: float,
        into: Reception | None,
    ) -> httpx.Response:
        is_complete = False
        try:
            send_s = sum(len(piece) for piece in pieces) / BYTES_PER_S_MIN
            async with self._loop.deadline(timeout_s + send_s) as deadline:
                response, keep = await connection.exchange(head, pieces, deadline, timeout_s, into)
            is_complete = keep
        except TooLateError as error:
            raise httpx.ReadTimeout(f"no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise httpx.ReadError(_reason(error)) from error
        finally:
            if is_complete:
                self._idle.append(connection)
            else:
                connection.close()
        return response

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class _Connection:
    """One TCP connection, without a request under way between calls."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def is_usable(self) -> bool:
        """Whether the server left it open and silent: what can be read is its end, or unasked."""
        return not self._stream.is_readable()

    async def exchange(
        self,
        head: bytes,
        pieces: Sequence[Buffer],
        deadline: Deadline,
        timeout_s: float,
        into: Reception | None,
    ) -> tuple[httpx.Response, bool]:
        """Send a request and receive its answer; also says whether the connection can be kept."""
        # A server that refuses a body answers before it has read it all: the answer counts.
        with suppress(OSError):
            await self._stream.send_all([head, *pieces])
        received = await self._receive_head()
        end = received.index(b"\r\n\r\n")
        status, headers = _parse_head(bytes(received[:end]))
        length, keep = _framing(headers)
        rest = received[end + 4 :]
        if status in _STATUS_WITHOUT_BODY:
            length = 0
        body: Buffer
        if length is None:
            body = await self._receive_chunked(rest, deadline, timeout_s)
        else:
            if len(rest) < length:
                deadline.move(timeout_s + length / BYTES_PER_S_MIN)
            is_wanted = into is not None and status in _STATUS_OF_CONTENT
            if is_wanted and into is not None and length == into.missing_size:
                body = await self._receive_into(into, rest)
            else:
                body = await self._receive_body(rest, length)
        response = httpx.Response(
            status, headers=headers, stream=_ELSEWHERE, extensions={BODY: body}
        )
        return response, keep

    async def _receive_body(self, received: bytearray, length: int) -> bytearray:
        body = bytearray(length)
        start = len(received)
        if start > length:
            raise httpx.RemoteProtocolError("the server sent more than it announced")
        body[:start] = received
        with memoryview(body) as view:
            count = await self._stream.fill(view[start:])
        if count < length - start:
            raise httpx.ReadError("the server hung up in the middle of a body")
        return body

    async def _receive_into(self, into: Reception, received: bytearray) -> memoryview:
        """Fill what is missing, and note how far that came also when it breaks off."""
        if len(received) > into.missing_size:
            raise httpx.RemoteProtocolError("the server sent more than it announced")
        view = into.rest()
        into.add(received)
        start = len(received)
        while start < len(view):
            step = view[start : start + STEP_SIZE_BYTES]
            count = await self._stream.fill(step)
            into.count += count
            start += count
            if count < len(step):
                raise httpx.ReadError("the server hung up in the middle of a body")
        return view

    async def _receive_chunked(
        self, received: bytearray, deadline: Deadline, timeout_s: float
    ) -> bytearray:
        def extend(size: int) -> None:
            deadline.move(timeout_s + size / BYTES_PER_S_MIN)

        return await ChunkedBody(self._stream, received, BODY_SIZE_BYTES_MAX, extend).receive()

    async def _receive_head(self) -> bytearray:
        received = bytearray()
        while b"\r\n\r\n" not in received:
            try:
                part = await self._stream.receive(16 * 1024)
            except ConnectionError as error:
                raise _ClosedWhileIdleError from error
            if not part:
                if received:
                    raise httpx.RemoteProtocolError("the server hung up in the middle of a head")
                raise _ClosedWhileIdleError
            received += part
            if len(received) > HEAD_SIZE_BYTES_MAX and b"\r\n\r\n" not in received:
                raise httpx.RemoteProtocolError("the head of the answer is too long")
        return received

    def close(self) -> None:
        self._stream.close()


def _head_of(request: httpx.Request, body_size: int) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    # httpx does not see the body, so the length it gives would be wrong.
    lines += [
        b"%s: %s" % (name, value)
        for name, value in request.headers.raw
        if name.lower() != b"content-length"
    ]
    lines.append(b"content-length: %d" % body_size)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _parse_head(head: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    first, *rest = head.split(b"\r\n")
    version, _, after = first.partition(b" ")
    status = after[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit():
        raise httpx.RemoteProtocolError(f"not an HTTP answer: {first[:60]!r}")
    headers = []
    for line in rest:
        name, colon, value = line.partition(b":")
        if not colon:
            raise httpx.RemoteProtocolError(f"not a header: {line[:60]!r}")
        headers.append((name.strip().lower(), value.strip()))
    return int(status), headers


def _framing(headers: list[tuple[bytes, bytes]]) -> tuple[int | None, bool]:
    """Bytes of the body, None for a chunked one, and whether the connection stays open."""
    length: int | None = None
    is_chunked, keep = False, True
    for name, value in headers:
        if name == b"content-length":
            if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
                raise httpx.RemoteProtocolError(f"not a length: {value[:60]!r}")
            length = int(value)
            if length > BODY_SIZE_BYTES_MAX:
                raise httpx.RemoteProtocolError(f"{length} bytes are more than any answer has")
        elif name == b"connection":
            keep = value.lower() != b"close"
        elif name == b"transfer-encoding":
            if is_chunked or value.lower() != b"chunked":
                raise httpx.RemoteProtocolError(f"cannot read {value[:60]!r} bodies")
            is_chunked = True
    if is_chunked and length is not None:
        # RFC 9112, section 6.1: somebody on the way may have seen another end of it.
        raise httpx.RemoteProtocolError("the server gave a length to a chunked body")
    return (None if is_chunked else length or 0), keep


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
