import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.model import FileKind
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run


@pytest.fixture
def full(space: FakeSpace) -> FakeSpace:
    space.router.make(FileKind.DIRECTORY, b"b", b"d")
    space.router.make(FileKind.FILE, b"b", b"d", b"x")
    space.router.make(FileKind.DIRECTORY, b"b", b"empty")
    space.router.make(FileKind.FILE, b"b", b"f")
    return space


def test_files_and_empty_directories_are_removed(cli: Run, full: FakeSpace) -> None:
    done = cli("rm", "b/f", "b/empty")
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert full.router.tree(b"b") == [b"d", b"d/x"]


def test_a_directory_with_something_in_it_needs_an_option(cli: Run, full: FakeSpace) -> None:
    done = cli("rm", "b/d")
    assert done.code == Exit.CONFLICT
    assert done.err == "mictlanfs: remove b/d: not empty\n"
    assert cli("rm", "-r", "b/d").code == 0
    assert full.router.tree(b"b") == [b"empty", b"f"]


def test_what_is_not_there_is_an_error_unless_forced_and_others_go_on(
    cli: Run, full: FakeSpace
) -> None:
    done = cli("rm", "b/none", "b/f")
    assert done.code == Exit.NOT_FOUND
    assert b"f" not in full.router.tree(b"b")
    assert cli("rm", "-f", "b/none", "b/empty").code == 0
    assert full.router.tree(b"b") == [b"d", b"d/x"]


@pytest.mark.parametrize("path", ["", "/", "b", "b/"])
def test_a_bucket_is_not_removed_by_accident(cli: Run, full: FakeSpace, path: str) -> None:
    done = cli("rm", "-rf", "b/f", path)
    assert done.code == Exit.USAGE
    assert "bucket rm" in done.err
    assert len(full.router.tree(b"b")) == 4
