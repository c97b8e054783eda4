from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.balls import Ball, ball_of
from mictlanfs.v4.files import check_same, file_name
from tests.unit.mictlanfs.v4.making import record


def ball(ball_id: str = "cat", **tags: str) -> Ball:
    return ball_of("photos", ball_id, [record(f"{ball_id}_0", b"meow", ball=ball_id, **tags)])


@pytest.mark.parametrize(
    ("found", "fullname", "name"),
    [
        (ball(), None, "cat"),
        (ball(extension="jpg"), None, "cat.jpg"),
        (ball(fullname="Cat.JPG", extension="jpg"), None, "Cat.JPG"),
        (ball(fullname="Cat.JPG"), "mine", "mine"),
        (ball(fullname="/etc/passwd"), None, "passwd"),
        (ball(fullname="../.."), None, "cat"),
        (ball(fullname=".", extension="jpg"), None, "cat.jpg"),
        (ball(fullname="dir/"), None, "cat"),
        (ball(fullname="a\0b"), None, "cat"),
        (ball(extension="../../x"), None, "x"),
        (ball(), "../x", "x"),
        (ball("dir/cat"), None, "cat"),
    ],
)
def test_a_name_never_leads_out_of_the_directory(
    found: Ball, fullname: str | None, name: str
) -> None:
    assert file_name(found, fullname) == name


def test_a_ball_without_a_possible_name_needs_one() -> None:
    with pytest.raises(MictlanError) as caught:
        file_name(ball(".."))
    assert caught.value.kind is Kind.INVALID


async def test_a_file_is_compared_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert not await check_same(path, ball(), replace=False)
    path.write_bytes(b"meow")
    assert await check_same(path, ball(), replace=False)
    for other in (b"woof", b"meow!"):
        path.write_bytes(other)
        assert not await check_same(path, ball(), replace=True)
        with pytest.raises(MictlanError) as caught:
            await check_same(path, ball(), replace=False)
        assert caught.value.kind is Kind.EXISTS


async def test_what_is_no_file_is_not_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(MictlanError) as caught:
        await check_same(tmp_path / "link", ball(), replace=False)
    assert caught.value.kind is Kind.EXISTS
