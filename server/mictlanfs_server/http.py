"""The adapter to the web framework: message routes, errors as JSON, headers, shared by all servers.

Beside `*/app.py` the only module that knows Starlette. Owns how a `MictlanError` becomes an answer
and how large a request may be. Never knows what a message means.

A message route takes a msgpack body and answers with one; it is plain ASGI behind a Starlette
route, because it is on the path of every operation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mictlanfs import exposition, wire
from mictlanfs.errors import HTTP_STATUS, LOG_LEVEL, Kind, MictlanError
from mictlanfs.exposition import Family
from mictlanfs.model import Struct
from mictlanfs_server import processmetrics
from mictlanfs_server.metering import Meters

log = logging.getLogger(__name__)

BODY_SIZE_BYTES_MAX: Final = 16 * 1024 * 1024
JSON: Final = "application/json"
METRICS_PATH: Final = "/metrics"
_MSGPACK_HEADER: Final = (b"content-type", wire.MSGPACK.encode())
_JSON_HEADER: Final = (b"content-type", JSON.encode())

RequestT = TypeVar("RequestT", bound=Struct)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with more to it than a message.

    Attributes:
        headers: besides the length and the type of the body.
    """

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


# What a handler answers: a message, one that is encoded already, or with status and headers.
Handler = Callable[[RequestT], Awaitable[Struct | bytes | Reply]]
# The same with the value of a header of the request, when it has one.
HeaderHandler = Callable[[RequestT, bytes | None], Awaitable[Struct | bytes | Reply]]


class _Disconnected(Exception):  # noqa: N818 - tells of an event, like ClientDisconnect
    """The client hung up before its request was whole."""


def message_route(path: str, request_type: type[RequestT], handler: Handler[RequestT]) -> Route:
    """A POST route that decodes a `request_type`, calls `handler` and encodes its answer.

    A `MictlanError` of the handler becomes the JSON answer that `wire.decode_error` reads; any
    other exception is logged with its traceback and becomes INTERNAL.
    """
    return _route(path, _MessageEndpoint(path, request_type, handler, None))


def header_route(
    path: str, request_type: type[RequestT], handler: HeaderHandler[RequestT], header: str
) -> Route:
    """A message route whose handler also gets the value of a header of the request."""
    return _route(path, _MessageEndpoint(path, request_type, handler, header.lower().encode()))


def _route(path: str, endpoint: _MessageEndpoint) -> Route:
    return Route(path, endpoint, methods=["POST"], name=path, include_in_schema=False)


class _MessageEndpoint:
    """The ASGI application of one message route."""

    def __init__(
        self,
        path: str,
        request_type: type[Struct],
        handler: Callable[..., Awaitable[Any]],
        header: bytes | None,
    ) -> None:
        self._path = path
        self._request_type = request_type
        self._handler = handler
        self._header = header

    def _answer(self, scope: Scope, request: Struct) -> Awaitable[Any]:
        if self._header is None:
            return self._handler(request)
        value = next((value for name, value in scope["headers"] if name == self._header), None)
        return self._handler(request, value)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = time.perf_counter()
        status, body, header = 200, b"", _MSGPACK_HEADER
        more: tuple[tuple[bytes, bytes], ...] = ()
        try:
            request = wire.decode(await read_body(scope, receive), self._request_type)
            answer = await self._answer(scope, request)
            if isinstance(answer, Reply):
                status, body, more = answer.status, answer.body, answer.headers
            else:
                body = answer if isinstance(answer, bytes) else wire.encode(answer)
        except _Disconnected:
            return
        except Exception as error:  # noqa: BLE001 - `to_mictlan_error` logs what is not ours
            failure = to_mictlan_error(error, self._path)
            status, header = HTTP_STATUS[failure.kind], _JSON_HEADER
            body = wire.encode_error(failure)
        headers = [header, (b"content-length", b"%d" % len(body)), *more]
        if status == HTTP_STATUS[Kind.TOO_LARGE]:
            # The rest of the body is still on its way; nobody will read it.
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        if log.isEnabledFor(logging.DEBUG):
            took_s = time.perf_counter() - started_s
            log.debug("%s answered %d in %.6f s", self._path, status, took_s)


async def read_body(
    scope: Scope, receive: Receive, size_bytes_max: int = BODY_SIZE_BYTES_MAX
) -> bytes:
    """The whole body of a request.

    Raises:
        MictlanError: TOO_LARGE, as soon as it is known to be.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > size_bytes_max:
            raise _too_large(size_bytes_max)
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > size_bytes_max:
            raise _too_large(size_bytes_max)
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(size_bytes_max: int) -> MictlanError:
    detail = f"a request body has at most {size_bytes_max} bytes"
    return MictlanError(Kind.TOO_LARGE, "request", detail=detail)


# --- errors --------------------------------------------------------------------------------------


def to_mictlan_error(error: Exception, path: str) -> MictlanError:
    """The error to answer with; logs it at the level of its kind, a foreign one with traceback."""
    if isinstance(error, MictlanError):
        log.log(LOG_LEVEL[error.kind], "%s failed: %s", path, error)
        return error
    log.error("%s failed unexpectedly", path, exc_info=error)
    return MictlanError(Kind.INTERNAL, path, detail="the server failed; its log has the reason")


def error_response(error: MictlanError, status: int | None = None) -> Response:
    """The JSON answer that carries `error`."""
    return Response(
        wire.encode_error(error),
        HTTP_STATUS[error.kind] if status is None else status,
        media_type=JSON,
    )


def json_response(value: object) -> Response:
    """A JSON answer of a msgspec structure."""
    return Response(msgspec.json.encode(value), media_type=JSON)


async def metrics_response(families: Sequence[Family]) -> Response:
    """The answer to Prometheus: `families`, then the metrics of the process."""
    # Whoever scrapes first pays for loading a library, not the requests of others.
    process = await asyncio.to_thread(processmetrics.text)
    return Response(exposition.text_of(families) + process, media_type=exposition.CONTENT_TYPE)


def install_error_handlers(app: Starlette) -> None:
    """Make every error of an application's routes, and of its routing, a JSON answer of ours."""

    async def on_mictlan_error(request: Request, error: Exception) -> Response:
        return error_response(to_mictlan_error(error, request.url.path))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # Most often a client of another version asks for a path that this one does not have.
        failure = MictlanError(Kind.PROTOCOL, request.method, request.url.path, error.detail)
        return error_response(failure, error.status_code)

    app.add_exception_handler(MictlanError, on_mictlan_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_mictlan_error)


# --- headers -------------------------------------------------------------------------------------


class DirectRoutes:
    """Leads the requests of message routes past an application's framework.

    Its layers answer errors and choose among routes, which a message endpoint does not need and
    which cost more than many an answer does. All requests are counted here.

    Attributes:
        routes: endpoints by path, for POST; may grow while requests are served.
        looks: the same for GET.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Mapping[str, ASGIApp],
        meters: Meters,
        looks: Mapping[str, ASGIApp] | None = None,
    ) -> None:
        self._app = app
        self._meters = meters
        self.routes = routes
        self.looks = {} if looks is None else looks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, the short way where there is one."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        endpoint: ASGIApp | None = None
        if scope["method"] == "POST":
            endpoint = self.routes.get(path)
        elif scope["method"] == "GET":
            endpoint = self.looks.get(path)
        if endpoint is None:
            await self._meters.run(self._app, None, scope, receive, send)
        else:
            await self._meters.run(endpoint, path, scope, receive, send)


class HeaderMiddleware:
    """Adds one header, whose value may change, to every answer of an application."""

    def __init__(self, app: ASGIApp, name: str, value: Callable[[], bytes]) -> None:
        self._app = app
        self._name = name.lower().encode()
        self._value = value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the header in the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (self._name, self._value())]
            await send(message)

        await self._app(scope, receive, send_with_header)


# --- documentation -------------------------------------------------------------------------------


def describe_messages(messages: Iterable[tuple[str, type[Struct], str]]) -> str:
    """A table of message routes for the description of an API: path, request, what it does."""
    lines = ["| POST | request | does |", "|---|---|---|"]
    for path, request_type, purpose in messages:
        fields = ", ".join(field.name for field in msgspec.structs.fields(request_type))
        lines.append(f"| `{path}` | `{request_type.__name__}`({fields}) | {purpose} |")
    return "\n".join(lines)
