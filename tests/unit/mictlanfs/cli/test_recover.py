import json
import os
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.cli.exits import Exit
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs.recoveries import KnownPath, RecoveryFile, Touched, list_recoveries
from tests.support.fakespace import FakeSpace
from tests.support.recoveries import ID, lost_file, lost_op, written
from tests.unit.mictlanfs.cli.conftest import Run

BUCKET = KnownPath((b"b",))


@pytest.fixture
def kept(space: FakeSpace) -> RecoveryFile:
    """A file that was made and written, and one that was removed."""
    bucket = space.router.find(b"b").attributes.ino
    gone = space.router.make(FileKind.FILE, b"b", b"gone").attributes
    ino = InodeNumber(gone.ino + 1)
    make = wire.MakeNode(bucket, b"new", ino, FileKind.FILE, 0o644, 7, 8, 1)
    unlink = wire.Unlink(bucket, b"gone", 1)
    lost = lost_file(ino, KnownPath((b"b", b"new")), 0, 10, (0, 4), (6, 2))
    return written(
        [
            lost_op(make, parent=BUCKET),
            lost_op(unlink, Touched(gone.ino, 0, -5), parent=BUCKET),
        ],
        [(lost, b"012367")],
    )


def test_nothing_to_recover_is_said_by_an_empty_list(cli: Run) -> None:
    assert (cli("recover", "list").out, cli("recover", "list", "--json").text) == (b"", "[]\n")


def test_the_list_tells_what_each_holds(cli: Run, kept: RecoveryFile) -> None:
    line = cli("recover", "list").text
    assert line == f"{ID}  2 operations, 6 bytes of 1 file  /mnt/vss\n"
    (found,) = json.loads(cli("recover", "list", "--json").text)
    assert found["id"] == ID
    assert (found["operation_count"], found["file_count"], found["bytes"]) == (2, 1, 6)
    assert (found["reason"], found["is_applied"]) == ("it was fenced", False)
    assert found["path"] == os.fspath(kept.path)


def test_a_damaged_one_is_told_behind_the_others(cli: Run, kept: RecoveryFile) -> None:
    kept.path.with_name("0.recovery").write_bytes(b"?")
    done = cli("recover", "list")
    assert done.code == Exit.CORRUPT
    assert ID in done.text
    assert "0.recovery" in done.err


@pytest.mark.usefixtures("kept")
def test_show_says_it_in_words(cli: Run) -> None:
    text = cli("recover", "show", ID).text
    assert "make file b/new" in text
    assert "remove b/gone" in text
    assert "b/new: 6 bytes in 2 ranges, file size 10" in text
    assert "it was fenced" in text


@pytest.mark.parametrize("command", [("show",), ("apply",), ("remove",), ("export",)])
def test_one_that_is_not_there_is_named(cli: Run, command: tuple[str], tmp_path: Path) -> None:
    where = [tmp_path / "out"] if command == ("export",) else []
    done = cli("recover", *command, "nothing", *where)
    assert done.code == Exit.NOT_FOUND
    assert "nothing" in done.err


@pytest.mark.usefixtures("kept")
def test_export_writes_files_and_a_list(cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("recover", "export", ID, out).code == Exit.OK
    assert (out / "files" / "b" / "new").read_bytes() == b"0123\0\x0067\0\0"
    assert "make file b/new" in (out / "RECOVERY.txt").read_text()
    assert cli("recover", "export", ID, out).code == Exit.CONFLICT


def test_export_does_not_leave_its_directory(cli: Run, tmp_path: Path) -> None:
    written(files=[(lost_file(3, KnownPath((b"..", b"..", b"x")), 0, 1, (0, 1)), b"x")])
    assert cli("recover", "export", ID, tmp_path / "a" / "out").code == Exit.FAILED
    assert not (tmp_path / "x").exists()


def test_two_files_of_one_name_are_both_exported(cli: Run, tmp_path: Path) -> None:
    files = [
        (lost_file(ino, KnownPath((b"b", b"f")), 0, 1, (0, 1)), body)
        for ino, body in ((3, b"x"), (4, b"y"))
    ]
    written(files=files)
    assert cli("recover", "export", ID, tmp_path / "out").code == Exit.OK
    folder = tmp_path / "out" / "files" / "b"
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"x", b"y"]


@pytest.mark.usefixtures("kept")
def test_apply_says_what_became_of_each_and_ends_with_4_when_something_is_left_out(
    cli: Run, space: FakeSpace
) -> None:
    done = cli("recover", "apply", ID)
    assert done.code == Exit.CONFLICT
    assert done.text.splitlines() == [
        "applied: make file b/new",
        "left out: remove b/gone (it was changed since)",
        "applied: 6 bytes of b/new",
    ]
    assert sorted(space.router.find(b"b").entries) == [b"gone", b"new"]


def test_applying_again_says_that_it_was_done(cli: Run, space: FakeSpace) -> None:
    bucket = space.router.find(b"b").attributes.ino
    ino = InodeNumber(bucket + 50)
    written([lost_op(wire.MakeNode(bucket, b"new", ino, FileKind.FILE, 0o644, 7, 8, 1))])
    assert cli("recover", "apply", ID).code == Exit.OK
    assert cli("recover", "apply", ID).text == "all of it was applied before\n"
    assert "applied" in cli("recover", "list").text


def test_remove_deletes_them_and_reports_those_that_are_not_there(
    cli: Run, kept: RecoveryFile
) -> None:
    done = cli("recover", "remove", "missing", ID)
    assert done.code == Exit.NOT_FOUND
    assert list_recoveries() == []
    assert not kept.path.exists()
