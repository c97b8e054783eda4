import json

import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.model import FileKind
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run


@pytest.fixture
def full(space: FakeSpace) -> FakeSpace:
    make = space.router.make
    make(FileKind.DIRECTORY, b"a")
    make(FileKind.DIRECTORY, b"b", b"d")
    make(FileKind.DIRECTORY, b"b", b"d", b"deep")
    make(FileKind.FILE, b"b", b"d", b"deep", b"x")
    make(FileKind.FILE, b"b", b"f", mode=0o640)
    make(FileKind.FILE, b"b", b"f\xff")
    make(FileKind.SYMLINK, b"b", b"link", mode=0o777, target=b"d/f")
    return space


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        ([], ["a/", "b/"]),
        (["/"], ["a/", "b/"]),
        (["a"], []),
        (["b"], ["d/", "f", "f\udcff", "link"]),
        (["b/f"], ["f"]),
        (["b/link"], ["link"]),
        (["-R", "b/d"], ["b/d:", "deep/", "", "b/d/deep:", "x"]),
    ],
)
def test_names_are_listed_in_order(
    cli: Run, full: FakeSpace, args: list[str], lines: list[str]
) -> None:
    done = cli("ls", *args)
    assert done.code == 0
    assert done.out.decode(errors="surrogateescape").splitlines() == lines


def test_a_long_listing_shows_mode_size_and_target(cli: Run, full: FakeSpace) -> None:
    lines = cli("ls", "-l", "b").out.decode(errors="surrogateescape").splitlines()
    assert [line.split()[0] for line in lines] == [
        "drwxr-xr-x",
        "-rw-r-----",
        "-rwxr-xr-x",
        "lrwxrwxrwx",
    ]
    assert lines[3].endswith(" link -> d/f")


def test_json_lists_paths_and_attributes(cli: Run, full: FakeSpace) -> None:
    listed = json.loads(cli("ls", "--json", "b").text)
    assert [item["path"] for item in listed] == ["b/d", "b/f", "b/f\udcff", "b/link"]
    assert [item["kind"] for item in listed] == ["directory", "file", "file", "symlink"]
    assert listed[1]["mode"] == "0640"
    assert listed[3]["target"] == "d/f"


def test_json_of_everything_is_one_list(cli: Run, full: FakeSpace) -> None:
    listed = json.loads(cli("ls", "-R", "--json").text)
    assert [item["path"] for item in listed if item["path"].startswith("b/d")] == [
        "b/d",
        "b/d/deep",
        "b/d/deep/x",
    ]
    assert len(listed) == 8


def test_json_of_a_file_is_a_list_of_it(cli: Run, full: FakeSpace) -> None:
    (item,) = json.loads(cli("ls", "--json", "b/d/deep/x").text)
    assert item["path"] == "b/d/deep/x"


def test_json_of_nothing_is_an_empty_list(cli: Run, full: FakeSpace) -> None:
    assert json.loads(cli("ls", "--json", "a").text) == []


def test_what_is_not_there_has_its_code(cli: Run, full: FakeSpace) -> None:
    done = cli("ls", "b/none")
    assert (done.code, done.out) == (Exit.NOT_FOUND, b"")
    assert done.err == "mictlanfs: find b/none: there is no such file or directory\n"
