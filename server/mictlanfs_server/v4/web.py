"""The v4 interface on the web framework: routes from a table, bodies in, answers out, errors.

Owns how requests are read and answered; never knows what they mean. The table of `Operation`s also
is where the OpenAPI description comes from (`describing`).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from mictlanfs.errors import MictlanError
from mictlanfs.logevents import log_event
from mictlanfs.model import Buffer
from mictlanfs_server.http import to_mictlan_error
from mictlanfs_server.v4 import multipart
from mictlanfs_server.v4.failures import DoorError, door_error, missing
from mictlanfs_server.v4.records import BYTES_TYPE

log = logging.getLogger(__name__)

T = TypeVar("T")

JSON_BODY_SIZE_BYTES_MAX: Final = 4 * 1024 * 1024
# A client that takes, or gives, nothing for this long is gone: its memory is needed.
IDLE_TIMEOUT_S: Final = 60.0
# A variable in the path of an operation.
PLACE: Final = re.compile(r"\{(\w+)(:key)?\}")
_JSON: Final = "application/json"
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})?-([0-9]{1,18})?")
_HEADER_SAFE: Final = re.compile(r"[\x20-\x7e]{1,255}")
_WHERE: Final = re.compile(r"^(.*) - at `(?:key in )?\$(.*)`$", re.DOTALL)
_LACKING: Final = re.compile(r"Object missing required field `(.*)`")
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or header that an operation reads.

    Attributes:
        kind: of JSON schema: `integer`, `string` or `boolean`.
    """

    name: str
    where: str
    kind: str
    help: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of the interface.

    Attributes:
        answer: the type of the JSON answer; None: none, or bytes.
        gives_bytes: whether the answer is the bytes of a ball.
        takes: the type of the JSON body; `BYTES` and `FORM` for others.
        is_described: whether the OpenAPI description has it.
        event: what it is called in the log when it was done; empty: it is not logged.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    status: int = 200
    answer: Any = None
    takes: Any = None
    gives_bytes: bool = False
    parameters: tuple[Parameter, ...] = ()
    tag: str = "buckets"
    is_described: bool = True
    description: str = ""
    event: str = ""


_NOTED: Final = "mictlanfs.noted"
BYTES: Final = "bytes"
FORM: Final = "form"


class _KeyConvertor(Convertor[str]):
    """A key in a path: anything, slashes and ends of lines too, as file names have them."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("key", _KeyConvertor())


def application_of(operations: Sequence[Operation]) -> ASGIApp:
    """The application of a table: its routes in order; everything else is 404."""

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        error = missing(f"there is no {scope['method']} {scope['path']}")
        await _refusal(error)(scope, receive, send)

    found = [_route_of(operation) for operation in operations]
    router = Router(found, redirect_slashes=False, default=nothing)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        # Inside an application routing raises what it refuses; by itself it answers in its own way.
        scope["app"] = application
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            # Of the routing: a path that has no such method.
            await _refusal(DoorError(error.status_code, error.detail))(scope, receive, send)

    return application


def _route_of(operation: Operation) -> Route:
    """The route of an operation, which whoever counts requests finds by its template."""
    handler = _guarded(operation.handler)
    template = SimpleNamespace(path=PLACE.sub(r"{\1}", operation.path))
    event = operation.event
    # Reads are many, and change nothing.
    level = logging.DEBUG if operation.method == "GET" else logging.INFO

    async def endpoint(request: Request) -> Response:
        request.scope["route"] = template
        started_s = time.perf_counter()
        response = await handler(request)
        if event and response.status_code < 400 and log.isEnabledFor(level):
            took_s = round(time.perf_counter() - started_s, 6)
            fields = request.path_params | request.scope.get(_NOTED, {})
            log_event(log, event, level=level, **fields, response_time=took_s)
        return response

    return Route(operation.path, endpoint, methods=[operation.method])


def note(request: Request, **fields: object) -> None:
    """Have the event of a request logged with these fields, besides what its path names."""
    request.scope.setdefault(_NOTED, {}).update(fields)


def _guarded(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """The handler with every error as an answer."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except DoorError as error:
            return _refusal(error)
        except MictlanError as error:
            return _refusal(door_error(to_mictlan_error(error, request.url.path)))
        except ClientDisconnect:
            log.info("the client of %s hung up", request.url.path)
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - `to_mictlan_error` logs what is not ours.
            return _refusal(door_error(to_mictlan_error(error, request.url.path)))

    return guarded


def _refusal(error: DoorError) -> Response:
    errors = error.detail.get("errors")
    detail = errors if error.status == 422 and errors else error.detail
    return Response(msgspec.json.encode({"detail": detail}), error.status, media_type=_JSON)


def json_answer(
    value: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(value), status, headers, media_type=_JSON)


def no_answer(status: int = 204, headers: dict[str, str] | None = None) -> Response:
    """An answer without a body."""
    return Response(b"", status, headers)


# --- reading requests ----------------------------------------------------------------------------


async def json_body(request: Request, kind: type[T]) -> T:
    """The JSON body of a request, read as leniently as pydantic does.

    Raises:
        DoorError: 422 with a list of what is wrong; 413.
    """
    raw = await _small_body(request)
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind, strict=False)
    try:
        found: T = decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unprocessable("body", str(error)) from error
    return found


_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}


async def _small_body(request: Request) -> bytes:
    pieces, size = [], 0
    async for piece in body_of(request):
        size += len(piece)
        if size > JSON_BODY_SIZE_BYTES_MAX:
            raise DoorError(413, f"a JSON body has at most {JSON_BODY_SIZE_BYTES_MAX} bytes")
        pieces.append(bytes(piece))
    return b"".join(pieces)


def unprocessable(where: str, message: str) -> DoorError:
    """422 in the form of pydantic's lists."""
    location: list[str] = [where]
    found = _WHERE.match(message)
    if found is not None:
        message = found[1]
        location += [part for part in re.split(r"[.\[\]]+", found[2]) if part]
    kind = "value_error"
    if (lacking := _LACKING.fullmatch(message)) is not None:
        kind, message = "missing", "Field required"
        location.append(lacking[1])
    entry = {"type": kind, "loc": location, "msg": message}
    return DoorError(422, message, errors=[entry])


async def body_of(request: Request) -> AsyncGenerator[Buffer, None]:
    """The body of a request, piece by piece.

    Raises:
        ClientDisconnect: it breaks off.
        DoorError: 408, nothing came for a minute.
    """
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DoorError(408, "the body stopped coming") from None
        if piece:
            yield piece


def form_field(request: Request, name: str) -> AsyncGenerator[Buffer, None]:
    """A file field of a multipart form, piece by piece. Raises as `multipart.field`; 422."""
    boundary = multipart.boundary_of(request.headers.get("content-type", ""))
    if not boundary:
        entry = {"type": "missing", "loc": ["body", name], "msg": "Field required"}
        raise DoorError(422, "Field required", errors=[entry])
    return multipart.field(body_of(request), boundary, name)


def integer(value: str | None, default: int, where: tuple[str, str]) -> int:
    """A number of a query or header. Raises 422."""
    if value is None:
        return default
    if not _INTEGER.fullmatch(value.strip()):
        raise _bad_parameter(where, "Input should be a valid integer")
    return int(value)


def boolean(value: str | None, default: bool, where: tuple[str, str]) -> bool:
    """A truth value of a query, as pydantic reads it. Raises 422."""
    if value is None:
        return default
    word = value.strip().lower()
    if word not in _TRUE and word not in _FALSE:
        raise _bad_parameter(where, "Input should be a valid boolean")
    return word in _TRUE


def _bad_parameter(where: tuple[str, str], message: str) -> DoorError:
    entry = {"type": "value_error", "loc": list(where), "msg": message}
    return DoorError(422, message, errors=[entry])


# --- bytes ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Download:
    """The bytes of a ball on their way out.

    Attributes:
        size: of all of it.
        read: gives bytes `[start, end)`.
        etag: without quotes; what names the content.
        content_type: unsafe text of a client; replaced when it can be no header.
        attachment: file name to be saved as; None: not to be saved.
    """

    size: int
    read: Callable[[int, int], AsyncGenerator[Buffer, None]]
    etag: str
    content_type: str
    attachment: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def answer(self, request: Request) -> Response:
        """What GET or HEAD is answered: 200, 206, 304 or 416."""
        etag = f'"{self.etag}"'
        headers = {**self.headers, "accept-ranges": "bytes", "etag": etag}
        if self.attachment is not None:
            headers["content-disposition"] = disposition(self.attachment)
        if etag in _tags(request.headers.get("if-none-match")):
            return Response(b"", 304, {"etag": etag})
        content_type = (
            self.content_type if _HEADER_SAFE.fullmatch(self.content_type) else BYTES_TYPE
        )
        headers["content-type"] = content_type
        status, start, end = 200, 0, self.size
        wanted = request.headers.get("range")
        if wanted is not None and request.headers.get("if-range", etag) == etag:
            found = parse_range(wanted, self.size)
            if found is False:
                headers = {"content-range": f"bytes */{self.size}"}
                detail = DoorError(416, f"{wanted!r} names no bytes of {self.size}").detail
                return json_answer({"detail": detail}, 416, headers)
            if isinstance(found, tuple):
                status, (start, end) = 206, found
                headers["content-range"] = f"bytes {start}-{end - 1}/{self.size}"
        headers["content-length"] = str(end - start)
        body = None if request.method == "HEAD" else (lambda: self.read(start, end))
        return _BytesAnswer(status, headers, body)


def parse_range(value: str, size: int) -> tuple[int, int] | bool:
    """Start and end of the one range of a Range header.

    True for what is to be passed over (several ranges, another unit), False for one that names no
    byte. Source: RFC 9110, section 14.1.2.
    """
    match = _RANGE.fullmatch(value.strip())
    if match is None or (match[1] is None and match[2] is None):
        return True
    if match[1] is None:
        start, end = max(0, size - int(match[2])), size
    else:
        start = int(match[1])
        end = size if match[2] is None else min(int(match[2]) + 1, size)
        if match[2] is not None and int(match[2]) < start:
            return True
    return (start, end) if start < end else False


def disposition(name: str) -> str:
    """A Content-Disposition that saves a file as `name`. Source: RFC 6266, RFC 8187."""
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    encoded = quote(name, safe="", errors="replace")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def _tags(value: str | None) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in (value or "").split(",")}


class _BytesAnswer(Response):
    """An answer whose body is a stream of known length.

    What fails before the first byte is an answer of its own; behind it the connection is cut.
    """

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        body: Callable[[], AsyncGenerator[Buffer, None]] | None,
    ) -> None:
        self.status_code = status
        self.background = None
        self._body = body
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        start = {"type": "http.response.start", "status": self.status_code}
        start["headers"] = self.raw_headers
        if self._body is None:
            await send(start)
            await send({"type": "http.response.body"})
            return
        watcher = asyncio.create_task(_until_gone(receive))
        try:
            async with aclosing(self._body()) as pieces:
                await self._send_pieces(start, pieces, send, watcher)
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _send_pieces(
        self,
        start: dict[str, Any],
        pieces: AsyncIterator[Buffer],
        send: Send,
        watcher: asyncio.Task[None],
    ) -> None:
        try:
            piece = await anext(pieces, b"")
        except MictlanError as error:
            failure = door_error(to_mictlan_error(error, "read"))
            body = msgspec.json.encode({"detail": failure.detail})
            headers = [
                (b"content-type", _JSON.encode()),
                (b"content-length", b"%d" % len(body)),
            ]
            await send({**start, "status": failure.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await send(start)
        while piece and not watcher.done():
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await anext(pieces, b"")
        if not watcher.done():
            await send({"type": "http.response.body"})


async def _until_gone(receive: Receive) -> None:
    """Return when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
