from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from mictlanfs.logevents import Event
from mictlanfs_server.v4 import web
from mictlanfs_server.v4.failures import DoorError
from mictlanfs_server.v4.web import (
    Operation,
    application_of,
    boolean,
    disposition,
    integer,
    no_answer,
    note,
    parse_range,
    unprocessable,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=3-", (3, 10)),
        ("bytes=3-100", (3, 10)),
        ("bytes=-4", (6, 10)),
        ("bytes=-40", (0, 10)),
        ("bytes=10-", False),
        ("bytes=-0", False),
        ("bytes=5-3", True),
        ("bytes=0-1,3-4", True),
        ("bytes=-", True),
        ("items=0-1", True),
        ("", True),
    ],
)
def test_ranges(value: str, expected: tuple[int, int] | bool) -> None:
    assert parse_range(value, 10) == expected


def test_no_range_of_nothing() -> None:
    assert parse_range("bytes=0-", 0) is False


@pytest.mark.parametrize("name", ["a.txt", 'a"b', "a\r\nb", "ä", "a\\b", "\ud800"])
def test_names_in_headers_break_no_header(name: str) -> None:
    value = disposition(name)
    value.encode("ascii")
    assert "\r" not in value
    assert "\n" not in value
    assert value.count('"') == 2


def test_numbers_and_truth_values_are_read_as_by_pydantic() -> None:
    where = ("query", "x")
    assert integer(None, 7, where) == 7
    assert integer(" -3 ", 7, where) == -3
    assert boolean(None, default=True, where=where) is True
    assert boolean("Yes", default=False, where=where) is True
    assert boolean("off", default=True, where=where) is False
    with pytest.raises(DoorError) as caught:
        integer("1.5", 0, where)
    assert caught.value.status == 422
    with pytest.raises(DoorError) as caught:
        boolean("2", default=False, where=where)
    errors = caught.value.detail["errors"]
    assert isinstance(errors, list)
    assert errors[0]["loc"] == ["query", "x"]


def test_place_of_a_mistake_is_told() -> None:
    error = unprocessable("body", "Expected `str`, got `int` - at `$.tags[...]`")
    assert error.detail["errors"] == [
        {"type": "value_error", "loc": ["body", "tags"], "msg": "Expected `str`, got `int`"}
    ]
    error = unprocessable("body", "Object missing required field `key`")
    assert error.detail["errors"] == [
        {"type": "missing", "loc": ["body", "key"], "msg": "Field required"}
    ]


def asked(operation: Operation, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(application_of([operation]))
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            return await client.request(operation.method, path)

    return asyncio.run(ask())


def events_in(caplog: pytest.LogCaptureFixture) -> list[tuple[int, Event]]:
    return [(r.levelno, r.msg) for r in caplog.records if isinstance(r.msg, Event)]


@pytest.mark.parametrize(("method", "level"), [("GET", logging.DEBUG), ("POST", logging.INFO)])
def test_what_was_done_is_logged_with_names_of_the_path_and_what_was_noted(
    caplog: pytest.LogCaptureFixture, method: str, level: int
) -> None:
    async def handler(request: Request) -> Response:
        note(request, size=5)
        return no_answer()

    caplog.set_level(logging.DEBUG, logger=web.__name__)
    operation = Operation(method, "/b/{bucket_id}/{key:key}", handler, "It", event="PUT.DATA")
    assert asked(operation, "/b/cats/a/1").status_code == 204
    [(logged_at, event)] = events_in(caplog)
    assert (logged_at, event.name) == (level, "PUT.DATA")
    took_s = dict(event.fields).pop("response_time")
    assert isinstance(took_s, float)
    assert 0 <= took_s < 10
    assert event.fields == {
        "bucket_id": "cats",
        "key": "a/1",
        "size": 5,
        "response_time": took_s,
    }


def test_what_was_refused_is_no_event(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(_: Request) -> Response:
        raise DoorError(404, "not here")

    caplog.set_level(logging.DEBUG, logger=web.__name__)
    operation = Operation("POST", "/b/{bucket_id}", handler, "It", event="PUT.DATA")
    assert asked(operation, "/b/cats").status_code == 404
    assert events_in(caplog) == []
