import json
import os
from pathlib import Path

import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.client.inline import INLINE_SIZE_BYTES_DEFAULT
from mictlanfs.model import FileKind
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Two files, and a directory with a third."""
    folder = tmp_path / "local"
    (folder / "d" / "sub").mkdir(parents=True)
    (folder / "one").write_bytes(b"1")
    (folder / "two").write_bytes(b"22")
    (folder / "d" / "sub" / "three").write_bytes(b"333")
    return folder


def paths(space: FakeSpace) -> list[bytes]:
    """Every file of bucket `b`."""
    return [
        path
        for path in space.router.tree(b"b")
        if space.router.find(b"b", *path.split(b"/")).attributes.kind is FileKind.FILE
    ]


@pytest.mark.parametrize(
    ("target", "stored"),
    [
        ("b", b"one"),
        ("b/", b"one"),
        ("b/new", b"new"),
        ("b/new/", b"new/one"),
        ("b/there", b"there/one"),
        ("b/there/name", b"there/name"),
        ("b/a/b/c", b"a/b/c"),
    ],
)
def test_one_file_goes_where_cp_would_put_it(
    cli: Run, space: FakeSpace, local: Path, target: str, stored: bytes
) -> None:
    space.router.make(FileKind.DIRECTORY, b"b", b"there")
    done = cli("put", local / "one", target)
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert paths(space) == [stored]


def test_several_files_keep_their_names(cli: Run, space: FakeSpace, local: Path) -> None:
    assert cli("put", local / "one", local / "two", "b/new").code == 0
    assert paths(space) == [b"new/one", b"new/two"]


@pytest.mark.parametrize(
    ("source", "target", "stored"),
    [
        ("d", "b", b"d/sub/three"),
        ("d", "b/new", b"new/sub/three"),
        ("d", "b/new/", b"new/d/sub/three"),
        ("d/.", "b", b"d/sub/three"),
        ("d/..", "b/all", b"all/d/sub/three"),
    ],
)
def test_a_directory_goes_where_cp_would_put_it(
    cli: Run, space: FakeSpace, local: Path, source: str, target: str, stored: bytes
) -> None:
    assert cli("put", "-r", f"{local}/{source}", target).code == 0
    assert stored in paths(space)


def test_standard_input_is_stored_under_its_name(cli: Run, space: FakeSpace) -> None:
    assert cli("put", "-", "b/from/stdin", stdin=b"hello").code == 0
    assert paths(space) == [b"from/stdin"]
    assert space.router.find(b"b", b"from", b"stdin").attributes.size == 5


@pytest.mark.parametrize("target", ["b", "b/there", "b/new/"])
def test_standard_input_needs_a_name(cli: Run, space: FakeSpace, target: str) -> None:
    space.router.make(FileKind.DIRECTORY, b"b", b"there")
    done = cli("put", "-", target, stdin=b"hello")
    assert done.code == Exit.USAGE
    assert "standard input needs a name" in done.err


def test_times_are_kept_on_request(cli: Run, space: FakeSpace, local: Path) -> None:
    os.utime(local / "one", ns=(1, 1_000_000_007))
    cli("put", "-p", local / "one", "b")
    assert space.router.find(b"b", b"one").attributes.mtime_ns == 1_000_000_007


def test_json_says_what_was_stored(cli: Run, space: FakeSpace, local: Path) -> None:
    done = cli("put", "-r", "--json", local / "one", local / "d", "b")
    stored = {item["path"]: item["size"] for item in json.loads(done.text)}
    assert stored == {"b/one": 1, "b/d/sub/three": 3}


def test_a_file_that_fails_does_not_keep_the_others_back(
    cli: Run, space: FakeSpace, local: Path
) -> None:
    done = cli("put", local / "none", local / "d", local / "one", "b")
    assert done.code == Exit.NOT_FOUND
    assert done.err.splitlines() == [
        f"mictlanfs: open {local}/none: No such file or directory",
        f"mictlanfs: put {local}/d: a directory needs -r",
    ]
    assert paths(space) == [b"one"]


def test_a_file_that_fails_inside_a_directory_is_reported(
    cli: Run, space: FakeSpace, local: Path
) -> None:
    os.mkfifo(local / "d" / "pipe")
    done = cli("put", "-r", local / "d", "b")
    assert done.code == Exit.FAILED
    assert done.err.count("pipe") == 1
    assert paths(space) == [b"d/sub/three"]


def test_a_bucket_is_not_made_by_the_way(cli: Run, space: FakeSpace, local: Path) -> None:
    done = cli("put", local / "one", "none/x")
    assert done.code == Exit.NOT_FOUND
    assert "no such bucket" in done.err


@pytest.mark.parametrize("args", [["put"], ["put", "x"], ["put", "x", ""], ["put", "x", "/"]])
def test_a_target_is_needed(cli: Run, space: FakeSpace, args: list[str]) -> None:
    assert cli(*args).code == Exit.USAGE


def test_a_full_space_has_its_code(cli: Run, space: FakeSpace, local: Path) -> None:
    for peer in space.peers:
        peer.is_full = True
    (local / "one").write_bytes(bytes(INLINE_SIZE_BYTES_DEFAULT + 1))
    assert cli("put", local / "one", "b").code == Exit.NO_SPACE
    assert space.router.tree(b"b") == []


def test_a_space_that_is_gone_ends_the_command_at_the_first_file(
    cli: Run, space: FakeSpace, local: Path
) -> None:
    space.net.servers.clear()
    done = cli("put", "--timeout", "0", local / "one", local / "two", "b")
    assert done.code == Exit.UNREACHABLE
    assert done.err.count("\n") == 1
    assert "does not answer" in done.err
