import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mictlanfs import wire
from mictlanfs.errors import HTTP_STATUS, LOG_LEVEL, Kind, MictlanError
from mictlanfs.model import SessionId, Struct
from mictlanfs_server import http
from mictlanfs_server.http import (
    DirectRoutes,
    HeaderMiddleware,
    Reply,
    describe_messages,
    error_response,
    header_route,
    install_error_handlers,
    json_response,
    message_route,
)
from mictlanfs_server.metering import Meters

PATH = "/ask"
REQUEST = wire.encode(wire.TakeInodes(SessionId("s"), 3, 7))


async def answer(request: wire.TakeInodes) -> wire.InodeRange:
    return wire.InodeRange(request.epoch, request.count)


def app_with(handler: Callable[[wire.TakeInodes], Awaitable[Struct | bytes]]) -> Starlette:
    app = Starlette(routes=[message_route(PATH, wire.TakeInodes, handler)])
    install_error_handlers(app)
    return app


def exchange(
    app: Starlette,
    body: bytes | AsyncIterator[bytes] = REQUEST,
    path: str = PATH,
    method: str = "POST",
) -> httpx.Response:
    async def send() -> httpx.Response:
        # The application answers unexpected errors itself and raises them again for the server.
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            return await client.request(method, path, content=body)

    return asyncio.run(send())


def raising(error: Exception) -> Starlette:
    async def handler(_: wire.TakeInodes) -> Struct:
        raise error

    return app_with(handler)


# --- messages ---


def test_message_is_decoded_handled_and_answered() -> None:
    response = exchange(app_with(answer))
    assert response.status_code == 200
    assert response.headers["content-type"] == wire.MSGPACK
    assert int(response.headers["content-length"]) == len(response.content)
    assert wire.decode(response.content, wire.InodeRange) == wire.InodeRange(3, 7)


def test_answer_that_is_encoded_already_goes_out_as_it_is() -> None:
    async def handler(_: wire.TakeInodes) -> bytes:
        return b"as it is"

    assert exchange(app_with(handler)).content == b"as it is"


def test_body_in_pieces_is_put_together() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for index in range(len(REQUEST)):
            yield REQUEST[index : index + 1]

    response = exchange(app_with(answer), pieces())
    assert wire.decode(response.content, wire.InodeRange) == wire.InodeRange(3, 7)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"{}", wire.encode(wire.Done()), REQUEST + b"x"])
def test_wrong_body_is_a_protocol_error(body: bytes) -> None:
    response = exchange(app_with(answer), body)
    assert response.status_code == HTTP_STATUS[Kind.PROTOCOL]
    error = wire.decode_error(response.status_code, response.content)
    assert (error.kind, error.target) == (Kind.PROTOCOL, "TakeInodes")


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_error_has_its_status_and_travels_whole(kind: Kind) -> None:
    response = exchange(raising(MictlanError(kind, "verb", "target", "A reason.")))
    assert response.status_code == HTTP_STATUS[kind]
    assert response.headers["content-type"] == "application/json"
    error = wire.decode_error(response.status_code, response.content)
    assert (error.kind, error.operation, error.target) == (kind, "verb", "target")
    assert error.detail == "A reason."


def test_error_is_logged_at_the_level_of_its_kind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="mictlanfs_server.http")
    for kind in (Kind.NOT_FOUND, Kind.FENCED, Kind.CORRUPT):
        exchange(raising(MictlanError(kind)))
    levels = [record.levelno for record in caplog.records if "failed" in record.message]
    assert levels == [LOG_LEVEL[kind] for kind in (Kind.NOT_FOUND, Kind.FENCED, Kind.CORRUPT)]


def test_unexpected_error_is_internal_and_tells_nothing_but_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    response = exchange(raising(ZeroDivisionError("secret")))
    assert response.status_code == 500
    assert wire.decode_error(500, response.content).kind is Kind.INTERNAL
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert "secret" in caplog.text


def test_body_announced_too_large_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.read_body, "__defaults__", (10,))
    response = exchange(app_with(answer), b"x" * 11)
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert wire.decode_error(413, response.content).kind is Kind.TOO_LARGE


def test_body_that_turns_out_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.read_body, "__defaults__", (10,))
    taken = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            taken.append(1)
            yield b"12345678"

    response = exchange(app_with(answer), endless())
    assert response.status_code == 413
    assert len(taken) <= 3


def test_largest_body_is_bounded() -> None:
    assert http.BODY_SIZE_BYTES_MAX == 16 * 1024 * 1024
    assert http.BODY_SIZE_BYTES_MAX > wire.BATCH_SIZE_BYTES_MAX


def test_client_that_hangs_up_gets_no_answer_and_disturbs_nobody() -> None:
    route = message_route(PATH, wire.TakeInodes, answer)
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    asyncio.run(route.app({"type": "http", "headers": []}, receive, send))  # type: ignore[arg-type] # ASGI
    assert sent == []


def test_only_post_is_allowed() -> None:
    response = exchange(app_with(answer), method="GET")
    assert response.status_code == 405
    assert wire.decode_error(405, response.content).kind is Kind.PROTOCOL


def test_unknown_path_is_told_in_json() -> None:
    response = exchange(app_with(answer), path="/other")
    assert response.status_code == 404
    assert json.loads(response.content)["kind"] == "protocol"


def test_requests_are_logged_for_those_who_want_to_see_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="mictlanfs_server.http")
    exchange(app_with(answer))
    assert any("/ask answered 200" in record.message for record in caplog.records)


# --- plain routes ---


def plain_app(error: Exception) -> Starlette:
    async def endpoint(_: Request) -> Response:
        raise error

    app = Starlette(routes=[Route(PATH, endpoint)])
    install_error_handlers(app)
    return app


def test_error_of_a_plain_route_is_told_in_json() -> None:
    response = exchange(plain_app(MictlanError(Kind.NOT_EMPTY)), b"", method="GET")
    assert response.status_code == 409
    assert wire.decode_error(409, response.content).kind is Kind.NOT_EMPTY


def test_unexpected_error_of_a_plain_route_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    response = exchange(plain_app(KeyError("secret")), b"", method="GET")
    assert response.status_code == 500
    assert wire.decode_error(500, response.content).kind is Kind.INTERNAL
    assert "secret" in caplog.text


def test_responses_are_json() -> None:
    response = error_response(MictlanError(Kind.BUSY, "verb"))
    assert (response.status_code, response.media_type) == (409, "application/json")
    assert error_response(MictlanError(Kind.BUSY), 418).status_code == 418
    assert json.loads(bytes(json_response({"a": 1}).body)) == {"a": 1}


# --- headers and documentation ---


@pytest.mark.parametrize("path", [PATH, "/other"])
def test_header_is_on_every_answer_with_its_present_value(path: str) -> None:
    versions = iter([b"1", b"2"])
    app = app_with(answer)
    app.add_middleware(HeaderMiddleware, name="X-Version", value=lambda: next(versions))
    seen = [exchange(app, path=path).headers["x-version"] for _ in range(2)]
    assert seen == ["1", "2"]


def test_description_names_path_fields_and_purpose() -> None:
    text = describe_messages([(PATH, wire.Lookup, "resolve one name")])
    line = text.splitlines()[-1]
    assert line == "| `/ask` | `Lookup`(parent, name, extents_max, inline_max) | resolve one name |"


def test_handler_gets_a_header_and_gives_status_and_headers() -> None:
    seen = []

    async def handler(request: wire.TakeInodes, value: bytes | None) -> Reply:
        seen.append((request.count, value))
        return Reply(418, b"tea", ((b"x-leaf", b"green"),))

    app = Starlette(routes=[header_route(PATH, wire.TakeInodes, handler, "X-Pot")])

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            given = {"x-pot": "warm"}
            return [
                await client.post(PATH, content=REQUEST, headers=given),
                await client.post(PATH, content=REQUEST),
            ]

    for response in asyncio.run(send()):
        assert (response.status_code, response.content) == (418, b"tea")
        assert response.headers["x-leaf"] == "green"
    assert seen == [(7, b"warm"), (7, None)]


# --- past the framework ---


def test_direct_routes_lead_messages_past_the_application() -> None:
    route = message_route(PATH, wire.TakeInodes, answer)
    behind = app_with(answer)
    behind.router.routes.clear()
    meters = Meters()
    app = DirectRoutes(behind, {PATH: HeaderMiddleware(route.app, "X-Pot", lambda: b"1")}, meters)
    response = exchange(app)  # type: ignore[arg-type]  # Any ASGI application will do.
    assert (response.status_code, response.headers["x-pot"]) == (200, "1")
    assert wire.decode(response.content, wire.InodeRange) == wire.InodeRange(3, 7)
    assert meters.answered("POST", PATH) == 1


@pytest.mark.parametrize(("path", "method"), [(PATH, "GET"), ("/else", "POST")])
def test_direct_routes_leave_all_else_to_the_application(path: str, method: str) -> None:
    behind = app_with(answer)
    behind.router.routes.clear()
    meters = Meters()
    app = DirectRoutes(behind, {PATH: message_route(PATH, wire.TakeInodes, answer).app}, meters)
    response = exchange(app, path=path, method=method)  # type: ignore[arg-type]  # As above.
    assert response.status_code == 404
