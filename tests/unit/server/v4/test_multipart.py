from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs_server.v4.failures import DoorError
from mictlanfs_server.v4.multipart import boundary_of, field


def form(*parts: tuple[str, bytes], end: bytes = b"--x--\r\n") -> bytes:
    pieces = [
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n'
        b"Content-Type: a/b\r\n\r\n%s\r\n" % (name.encode(), data)
        for name, data in parts
    ]
    return b"".join(pieces) + end


def read(body: bytes, step: int = 7, name: str = "data") -> bytes:
    async def source() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    async def main() -> bytes:
        return b"".join([bytes(piece) async for piece in field(source(), b"x", name)])

    return asyncio.run(main())


@given(st.binary(), st.integers(1, 50))
def test_field_comes_out_as_it_went_in_however_it_is_cut(data: bytes, step: int) -> None:
    assert read(form(("data", data)), step) == data


def test_other_fields_are_passed_over_and_the_first_of_a_name_counts() -> None:
    body = form(("a", b"1"), ("data", b"2"), ("data", b"3"), ("b", b"4"))
    assert read(body) == b"2"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (form(("other", b"x")), 422),
        (form(("data", b"x"), end=b""), 400),
        (form(("data", b"x"))[:-10], 400),
        (b"no form at all", 400),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(DoorError) as caught:
        read(body)
    assert caught.value.status == status


def test_boundary_is_that_of_a_form() -> None:
    assert boundary_of("multipart/form-data; boundary=abc") == b"abc"
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of("multipart/mixed; boundary=abc") is None
    assert boundary_of("application/json") is None
    assert boundary_of("") is None
