import json

import pytest

from mictlanfs import wire
from mictlanfs.cli.exits import Exit
from mictlanfs.model import FileKind, InodeNumber
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run

REMOVED, REPLACED, OVERWRITTEN = wire.TrashReason
SECOND_NS = 10**9


def item(
    ino: int,
    path: bytes,
    reason: wire.TrashReason = REMOVED,
    kind: FileKind = FileKind.FILE,
    *,
    mode: int = 0o640,
    is_open: bool = False,
) -> wire.TrashItem:
    removed_ns = ino * SECOND_NS
    times = removed_ns, removed_ns + 86_400 * SECOND_NS
    return wire.TrashItem(
        *(InodeNumber(ino), path, *times, reason, kind, mode, 1, 2, 10, 5, 10, is_open)
    )


@pytest.fixture(autouse=True)
def trash(space: FakeSpace) -> None:
    """A tree that was removed, a file that was overwritten before, one that is open."""
    space.router.trash = [
        item(105, b"b/d", kind=FileKind.DIRECTORY, mode=0o751),
        item(101, b"b/d/file", OVERWRITTEN),
        item(104, b"b/d/file"),
        item(103, b"b/d/open", is_open=True),
        item(102, b"b/replaced", REPLACED),
    ]


def test_items_are_listed_over_all_pages(cli: Run) -> None:
    lines = cli("trash", "ls").text.splitlines()
    assert [line.split()[0] for line in lines] == ["105", "101", "104", "103", "102"]
    assert [line.split()[3] for line in lines] == [
        *("removed", "overwritten", "removed", "open", "replaced"),
    ]
    assert lines[0].endswith(" b/d/")
    assert lines[1].endswith(" b/d/file")
    shown = json.loads(cli("trash", "ls", "b/replaced", "--json").text)
    (one,) = shown
    assert (one["item"], one["path"], one["reason"], one["size"]) == (
        *(102, "b/replaced", "replaced", 10),
    )
    assert json.loads(cli("trash", "ls", "none", "--json").text) == []


def test_the_newest_of_a_path_is_restored_with_its_directories(cli: Run, space: FakeSpace) -> None:
    assert cli("trash", "restore", "b/d/file").code == 0
    assert space.router.tree() == [b"b", b"b/d", b"b/d/file"]
    assert space.router.find(b"b", b"d").attributes.mode == 0o751
    assert [kept.ino for kept in space.router.trash] == [101, 103, 102]
    done = cli("trash", "restore", "b/d/file")
    assert (done.code, done.err) == (Exit.CONFLICT, "mictlanfs: restore b/d/file: exists\n")
    assert cli("trash", "restore", "b/d/file", "--item", "101", "--to", "b/x/y").code == 0
    assert b"b/x/y" in space.router.tree()


def test_a_tree_is_restored_as_far_as_it_can_be(cli: Run, space: FakeSpace) -> None:
    done = cli("trash", "restore", "-r", "b")
    assert (done.code, done.text) == (Exit.CONFLICT, "restored 2 items\n")
    assert done.err.startswith("mictlanfs: restore b/d/open: ")
    # What was replaced, and what was overwritten before it was removed, is not of the tree.
    assert space.router.tree() == [b"b", b"b/d", b"b/d/file"]


def test_a_tree_is_restored_elsewhere(cli: Run, space: FakeSpace) -> None:
    done = cli("trash", "restore", "-r", "b/d", "--to", "b/e")
    assert done.text == "restored 2 items\n"
    assert space.router.tree() == [b"b", b"b/e", b"b/e/file"]


def test_trash_is_given_up_over_several_requests(cli: Run, space: FakeSpace) -> None:
    done = cli("trash", "empty", "--all")
    assert (done.code, done.text) == (0, "gave up 5 items of 50 B\n")
    assert space.router.trash == []


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["empty"], Exit.USAGE),
        (["empty", "b", "--all"], Exit.USAGE),
        (["restore", "b/d", "-r", "--item", "3"], Exit.USAGE),
        (["restore", "b/none"], Exit.NOT_FOUND),
        (["restore", "b/replaced", "--item", "7"], Exit.NOT_FOUND),
        (["restore", "b/replaced", "--to", "none/x"], Exit.NOT_FOUND),
        (["restore", "b/replaced", "--to", "b"], Exit.FAILED),
        (["restore", "b/d/open"], Exit.CONFLICT),
    ],
)
def test_what_cannot_be_done_is_refused(
    cli: Run, space: FakeSpace, args: list[str], code: int
) -> None:
    before = list(space.router.trash)
    done = cli("trash", *args)
    assert (done.code, done.err.count("\n")) == (code, 1)
    assert [kept for kept in before if kept not in space.router.trash] in (*([], [before[0]]),)
