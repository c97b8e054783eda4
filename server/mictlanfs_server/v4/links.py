"""HTTP to peers and routers with as little as it takes: plain HTTP/1.1, whole bodies, keep-alive.

The stock client costs several times as much for a chunk as hashing it does: measured in a router
that took 64 chunks of 1 MiB at 16 at a time, its pool alone took a fifth of all time. Anything but
`http` goes the stock way.

Owns connections. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import httptools

from mictlanfs.client.transport import CONNECT_TIMEOUT_S, KEEPALIVE_S, HttpTransport, Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Buffer
from mictlanfs.tracecontext import with_trace

# What a slow network gets on top of the wait for an answer.
SECONDS_PER_BYTE: Final = 1 / MIB
IDLE_CONNECTIONS_MAX: Final = 64

_Address = tuple[str, int]


class Links(HttpTransport):
    """An `HttpTransport` that speaks plain HTTP itself."""

    def __init__(self) -> None:
        super().__init__()
        self._idle: defaultdict[_Address, list[_Connection]] = defaultdict(list)

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Response:
        """See `HttpTransport.request`. A body may be sent twice: all requests may be repeated."""
        if not url.startswith("http://"):
            return await super().request(
                method, url, body=body, headers=headers, timeout_s=timeout_s
            )
        parts = urlsplit(url)
        address = (parts.hostname or "", parts.port or 80)
        pieces = (body,) if isinstance(body, Buffer) else tuple(body or ())
        size = sum(map(len, pieces))
        lines = [f"{method} {parts.path or '/'} HTTP/1.1", f"host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in (with_trace(headers) or {}).items()]
        head = "\r\n".join([*lines, f"content-length: {size}", "", ""]).encode("latin-1")
        try:
            async with asyncio.timeout(timeout_s + size * SECONDS_PER_BYTE):
                return await self._exchange_with(address, method, head, pieces)
        except TimeoutError as error:
            raise MictlanError(Kind.TIMED_OUT, method, url, "no answer in time") from error
        except OSError as error:
            detail = f"no connection: {error}"
            raise MictlanError(Kind.UNAVAILABLE, method, url, detail) from error

    async def _exchange_with(
        self, address: _Address, method: str, head: bytes, pieces: Sequence[Buffer]
    ) -> Response:
        while (connection := self._take(address)) is not None:
            try:
                return await self._use(address, connection, method, head, pieces)
            except ConnectionError:
                # The other end closed it while it was idle; a new one tells whether it is there.
                continue
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, *address)
        return await self._use(address, connection, method, head, pieces)

    async def _use(
        self,
        address: _Address,
        connection: _Connection,
        method: str,
        head: bytes,
        pieces: Sequence[Buffer],
    ) -> Response:
        try:
            response = await connection.exchange(method, head, pieces)
        except BaseException:
            connection.close()
            raise
        idle = self._idle[address]
        if connection.is_reusable and len(idle) < IDLE_CONNECTIONS_MAX:
            connection.idle_since_s = time.monotonic()
            idle.append(connection)
        else:
            connection.close()
        return response

    def _take(self, address: _Address) -> _Connection | None:
        """A connection that was used not long ago."""
        idle = self._idle[address]
        oldest_s = time.monotonic() - KEEPALIVE_S
        while idle:
            connection = idle.pop()
            if connection.is_reusable and connection.idle_since_s > oldest_s:
                return connection
            connection.close()
        return None

    async def aclose(self) -> None:
        """Close every connection."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()
        await super().aclose()


class _Connection(asyncio.Protocol):
    """One connection: one exchange at a time."""

    def __init__(self) -> None:
        self.is_reusable = True
        self.idle_since_s = 0.0
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    async def exchange(self, method: str, head: bytes, pieces: Sequence[Buffer]) -> Response:
        """Send a request, receive its answer. Raises ConnectionError."""
        assert method != "HEAD", "its answers have a length and no body"
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("it was closed")
        self._waiter = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body = {}, []
        self._transport.writelines([head, *pieces])
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def close(self) -> None:
        """Close it; twice is once."""
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    # --- what the event loop calls ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "writelines")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._parser is None or self._waiter is None:
            # An answer to nothing.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"this is no HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.is_reusable = False
        self._fail(ConnectionResetError(str(exc) if exc else "the server hung up"))

    def _fail(self, error: ConnectionError) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    # --- what the parser calls -------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Note a piece of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        parser, self._parser = self._parser, None
        assert parser is not None
        self.is_reusable = self.is_reusable and parser.should_keep_alive()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Response(parser.get_status_code(), self._headers, body))
