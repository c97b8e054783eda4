import json
from typing import Any

import pytest

from mictlanfs.errors import Kind
from mictlanfs.v4.errors import error_of, refused_put


def body(detail: Any) -> bytes:
    return json.dumps({"detail": detail}).encode()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, Kind.INVALID),
        (401, Kind.ACCESS_DENIED),
        (403, Kind.ACCESS_DENIED),
        (404, Kind.NOT_FOUND),
        (405, Kind.EXISTS),
        (500, Kind.UNAVAILABLE),
        (501, Kind.CORRUPT),
        (502, Kind.UNAVAILABLE),
        (503, Kind.UNAVAILABLE),
        (710, Kind.EXISTS),
        (1000, Kind.UNAVAILABLE),
        (1001, Kind.UNAVAILABLE),
        (1002, Kind.UNAVAILABLE),
        (1004, Kind.TIMED_OUT),
        (1005, Kind.UNAVAILABLE),
    ],
)
def test_the_code_in_an_object_decides_whatever_the_status(code: int, kind: Kind) -> None:
    error = error_of(500, body({"msg": "so it is", "code": code}), "get metadata", "b@k")
    assert error.kind is kind
    assert str(error) == "get metadata b@k: so it is"


@pytest.mark.parametrize(
    ("status", "detail", "kind"),
    [
        (404, "no such key", Kind.NOT_FOUND),
        (409, "not a PUT", Kind.EXISTS),
        (400, "wrong size", Kind.INVALID),
        (422, [{"loc": ["body", "key"], "msg": "field required"}], Kind.INVALID),
        (500, "the peer hung up", Kind.UNAVAILABLE),
        (500, "404: no such key", Kind.NOT_FOUND),
        (500, "  400 : no tasks", Kind.INVALID),
        (500, "409", Kind.UNAVAILABLE),
        (503, "busy", Kind.UNAVAILABLE),
        (504, "too slow", Kind.TIMED_OUT),
        (507, "full", Kind.NO_SPACE),
        (418, "a teapot", Kind.PROTOCOL),
        (302, "elsewhere", Kind.PROTOCOL),
        (404, "500: inside", Kind.NOT_FOUND),
    ],
)
def test_without_a_code_the_status_decides_and_a_wrapped_one_first(
    status: int, detail: Any, kind: Kind
) -> None:
    assert error_of(status, body(detail), "get", "b@k").kind is kind


@pytest.mark.parametrize("raw", [b"", b"<html>", b"\xff\xfe", b"[1", b"null", b'{"a": 1}', b"[]"])
def test_any_body_makes_an_error_that_says_the_status(raw: bytes) -> None:
    error = error_of(502, raw, "get", "b@k")
    assert error.kind is Kind.UNAVAILABLE
    assert "502" in str(error)


def test_an_object_without_a_known_code_falls_back_to_the_status() -> None:
    for detail in ({"msg": "gone", "code": 12345}, {"msg": "gone"}, {"msg": "gone", "code": "x"}):
        error = error_of(404, body(detail), "get", "b@k")
        assert (error.kind, error.detail) == (Kind.NOT_FOUND, "gone")


def test_a_long_text_of_a_server_is_cut() -> None:
    assert len(str(error_of(500, body("x" * 100_000), "get", "b@k"))) < 1000


FULL = {
    "msg": "No available peers.",
    "suggestion": "add a peer",
    "bucket_id": "b",
    "key": "k",
    "replicas": ["mictlanx-peer-0"],
    "code": 666,
}


def test_a_put_that_nobody_takes_is_a_duplicate_when_somebody_has_it() -> None:
    assert refused_put(404, body(FULL), "put", "b@k").kind is Kind.EXISTS
    assert refused_put(404, body(FULL | {"replicas": []}), "put", "b@k").kind is Kind.UNAVAILABLE


@pytest.mark.parametrize("detail", ["Not Found", {"msg": "x", "code": 404}, None])
def test_a_put_is_never_answered_that_something_was_not_found(detail: Any) -> None:
    assert refused_put(404, body(detail), "put", "b@k").kind is Kind.UNAVAILABLE


def test_other_answers_to_a_put_are_what_they_are_elsewhere() -> None:
    assert refused_put(422, body([]), "put", "b@k").kind is Kind.INVALID
    assert refused_put(409, body(FULL), "put", "b@k").kind is Kind.EXISTS
