"""One HTTP exchange; with `bulk`, the only module that uses httpx.

Owns the connections. Never retries and never interprets a status: callers do. Every failure of
the network becomes a `MictlanError`: UNAVAILABLE when the server was not reached or hung up,
TIMED_OUT when it did not answer in time. Works on trio and on asyncio.

Bodies that fit into memory travel whole, by `request`; others in pieces, by `stream`.
"""

from __future__ import annotations

import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache

from mictlanfs.client.bulk import BODY, INTO, BulkTransport
from mictlanfs.client.leanhttpx import httpx
from mictlanfs.client.reception import Reception
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer
from mictlanfs.tracecontext import with_trace

CONNECT_TIMEOUT_S = 3.0
CONNECTIONS_MAX = 64
# Below the servers' keep-alive of 75 s, so that a request rarely meets a connection just closed.
KEEPALIVE_S = 30.0


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: Buffer


@dataclass(frozen=True, slots=True)
class StreamedResponse:
    """An answer whose body is still to come, in `pieces` of any size."""

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


class HttpTransport:
    """A pool of connections to any number of servers.

    Belongs to the event loop that first uses it.

    Args:
        verify: for TLS: False trusts any certificate; a context says which ones.
    """

    def __init__(self, *, verify: bool | ssl.SSLContext = True) -> None:
        self._verify = verify
        self._stock: httpx.AsyncClient | None = None
        self._bulk: BulkTransport | None = None

    async def _exchange(self, request: httpx.Request, *, is_bulk: bool) -> httpx.Response:
        if is_bulk:
            # Past `AsyncClient.send`: redirects, cookies and authentication, none of which we
            # use, cost it as much as the exchange itself.
            if self._bulk is None:
                self._bulk = BulkTransport()
            return await self._bulk.handle_async_request(request)
        return await self._stock_client().send(request)

    def _stock_client(self) -> httpx.AsyncClient:
        if self._stock is None:
            limits = httpx.Limits(
                max_connections=CONNECTIONS_MAX,
                max_keepalive_connections=CONNECTIONS_MAX,
                keepalive_expiry=KEEPALIVE_S,
            )
            # A proxy from the environment must not come between the parts of a space.
            self._stock = httpx.AsyncClient(limits=limits, trust_env=False, verify=self._verify)
        return self._stock

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Response:
        """Send a request and read the whole answer, whatever its status.

        A `body` in pieces is sent piece by piece, and must not change meanwhile. `timeout_s`
        bounds the wait for the server; large bodies get more time.

        Cancellation: the server may or may not have acted; the connection is closed.

        Raises:
            MictlanError: UNAVAILABLE or TIMED_OUT.
        """
        pieces = (body,) if isinstance(body, Buffer) else body or ()
        return await self._request(method, url, pieces, headers, timeout_s, None)

    async def request_into(
        self,
        method: str,
        url: str,
        into: Reception,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Response:
        """As `request` without a body; a good answer of just the missing length goes `into`.

        Over plain HTTP it counts as arrived as far as it comes, also when the request fails. Over
        anything else it is in the response only.
        """
        return await self._request(method, url, (), headers, timeout_s, into)

    async def _request(
        self,
        method: str,
        url: str,
        pieces: Sequence[Buffer],
        headers: Mapping[str, str] | None,
        timeout_s: float,
        into: Reception | None,
    ) -> Response:
        is_bulk = url.startswith("http://")
        timeout = {"read": timeout_s, "connect": min(timeout_s, CONNECT_TIMEOUT_S)}
        with translated_errors(method, url):
            request = httpx.Request(
                method,
                _parsed_url(url),
                headers=with_trace(headers),
                # The stock transport sends the content, ours the pieces.
                content=None if is_bulk else b"".join(pieces),
                extensions={"timeout": timeout, BODY: pieces, INTO: into},
            )
            response = await self._exchange(request, is_bulk=is_bulk)
        received = response.extensions.get(BODY)
        return Response(
            response.status_code,
            response.headers,
            response.content if received is None else received,
        )

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        body: AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> AsyncIterator[StreamedResponse]:
        """Send a request, whose `body` may come in pieces, and read the answer in pieces.

        `timeout_s` bounds each wait for the server. An error of `body` itself passes unchanged.

        Cancellation, or leaving the block early: the connection is closed.

        Raises:
            MictlanError: UNAVAILABLE or TIMED_OUT; while pieces are read as well.
        """
        timeout = dict.fromkeys(("read", "write", "pool"), timeout_s)
        timeout["connect"] = min(timeout_s, CONNECT_TIMEOUT_S)
        with translated_errors(method, url):
            request = httpx.Request(
                method,
                _parsed_url(url),
                headers=with_trace(headers),
                content=body,
                extensions={"timeout": timeout},
            )
            response = await self._stock_client().send(request, stream=True)
        raw = response.aiter_raw()
        pieces = _pieces_of(raw, method, url)
        try:
            yield StreamedResponse(response.status_code, response.headers, pieces)
        finally:
            await pieces.aclose()
            await response.aclose()
            # What was left in the middle now ends by itself, and nothing waits for the collector.
            with suppress(httpx.HTTPError, httpx.StreamError):
                async for _ in raw:
                    pass

    async def aclose(self) -> None:
        """Close every connection."""
        if self._bulk is not None:
            await self._bulk.aclose()
        if self._stock is not None:
            await self._stock.aclose()


async def _pieces_of(
    raw: AsyncIterator[bytes], method: str, url: str
) -> AsyncGenerator[bytes, None]:
    with translated_errors(method, url):
        async for piece in raw:
            yield piece


# Parsing a URL costs as much as sending the request, and the control requests use a dozen.
_parsed_url = lru_cache(maxsize=256)(httpx.URL)


@contextmanager
def translated_errors(method: str, url: str) -> Iterator[None]:
    """Turn every exception of httpx into a `MictlanError`."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise MictlanError(Kind.TIMED_OUT, method, url, "no answer in time") from error
    except httpx.InvalidURL as error:
        raise MictlanError(Kind.INVALID, method, url, str(error)) from error
    except httpx.HTTPError as error:
        detail = str(error) or type(error).__name__
        raise MictlanError(Kind.UNAVAILABLE, method, url, f"no connection: {detail}") from error
    except (httpx.StreamError, httpx.CookieConflict) as error:
        raise MictlanError(Kind.INTERNAL, method, url, str(error)) from error
