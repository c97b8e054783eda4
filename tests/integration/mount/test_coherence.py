"""What one mount has done, another sees with its next system call: no sleep, no time-out.

Each test looks through the second mount first, so that it and its kernel have something to forget.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, mounted, several_mounted

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(60)]

LARGE = 300_000


@dataclass
class Pair:
    """The same empty directory through two mounts: `here` changes, `there` looks."""

    here: Path
    there: Path


@pytest.fixture(scope="module")
def mounts(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Mount]]:
    """Two mounts that live as long as this module, with leases as by default."""
    with several_mounted(space.uri, tmp_path_factory.mktemp("pair"), 2) as started:
        yield started


def pair_of(here: Mount, there: Mount, name: str) -> Pair:
    """A new bucket, seen by both."""
    (here.path / name).mkdir()
    assert os.listdir(there.path / name) == []
    return Pair(here.path / name, there.path / name)


@pytest.fixture
def pair(mounts: list[Mount], tmp_path: Path) -> Pair:
    """A bucket of this test's own."""
    return pair_of(mounts[0], mounts[1], tmp_path.name)


# --- what the tests of every kind of mounts do ---------------------------------------------------


def check_content(pair: Pair) -> None:
    here, there = pair.here / "content", pair.there / "content"
    assert not there.exists()
    for round_ in range(5):
        for size in (1, 5_000, LARGE):
            data = bytes([round_ + 1]) * (size + round_)
            here.write_bytes(data)
            assert there.stat().st_size == len(data)
            assert there.read_bytes() == data
            data = data[::-1] + b"+"
            there.write_bytes(data)
            assert here.read_bytes() == data
    there.unlink()


def check_names(pair: Pair) -> None:
    here, there = pair.here, pair.there
    for round_ in range(10):
        name = f"name-{round_}"
        assert not (there / name).exists()
        (here / name).touch()
        assert (there / name).stat().st_size == 0
        (here / name).rename(here / "moved")
        assert not (there / name).exists()
        assert "moved" in os.listdir(there)
        (there / "moved").unlink()
        assert not (here / "moved").exists()
        assert os.listdir(here) == os.listdir(there) == []


def check_directories(pair: Pair) -> None:
    here, there = pair.here / "tree", pair.there / "tree"
    for round_ in range(5):
        assert not there.exists()
        (here / "a" / "b").mkdir(parents=True)
        (here / "a" / "b" / "file").write_text(f"round {round_}", encoding="ascii")
        assert (there / "a" / "b" / "file").read_text(encoding="ascii") == f"round {round_}"
        (there / "a" / "b" / "other").write_text("other", encoding="ascii")
        assert sorted(os.listdir(here / "a" / "b")) == ["file", "other"]
        (here / "a").rename(here / "c")
        assert not (there / "a").exists()
        assert sorted(os.listdir(there / "c" / "b")) == ["file", "other"]
        for name in ("file", "other"):
            (there / "c" / "b" / name).unlink()
        (here / "c" / "b").rmdir()
        (there / "c").rmdir()
        here.rmdir()
        assert not there.exists()


CHECKS = [check_content, check_names, check_directories]
checks = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])


@checks
def test_two_mounts_with_leases_agree_at_once(pair: Pair, check: Callable[[Pair], None]) -> None:
    check(pair)


@pytest.fixture(scope="module")
def odd_mounts(
    space: Space, mounts: list[Mount], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Mount]]:
    """Mounts of other kinds, by what is special with them."""
    base = tmp_path_factory.mktemp("odd")
    (mounts[0].path / "whole" / "part").mkdir(parents=True)
    kinds = {
        "subdir": ("subdir=whole/part",),
        "noleases": ("noleases", "attr_timeout=0"),
        "write-through": ("metadata=write-through",),
    }
    with contextlib.ExitStack() as stack:
        yield {
            kind: stack.enter_context(mounted(space.uri, base / kind, *options))
            for kind, options in kinds.items()
        }


@pytest.mark.parametrize("kind", ["noleases", "write-through"])
@checks
def test_mount_of_another_kind_agrees_at_once(
    mounts: list[Mount],
    odd_mounts: dict[str, Mount],
    tmp_path: Path,
    kind: str,
    check: Callable[[Pair], None],
) -> None:
    odd = odd_mounts[kind]
    check(pair_of(mounts[0], odd, f"{tmp_path.name}-there"))
    check(pair_of(odd, mounts[0], f"{tmp_path.name}-here"))


@checks
def test_mount_of_a_part_agrees_at_once(
    mounts: list[Mount],
    odd_mounts: dict[str, Mount],
    tmp_path: Path,
    check: Callable[[Pair], None],
) -> None:
    whole = mounts[0].path / "whole" / "part" / tmp_path.name
    part = odd_mounts["subdir"].path / tmp_path.name
    assert not part.exists()
    whole.mkdir()
    check(Pair(part, whole))
    check(Pair(whole, part))


# --- one change after the other ------------------------------------------------------------------


def test_attributes_are_seen_by_the_next_stat(pair: Pair) -> None:
    here, there = pair.here / "f", pair.there / "f"
    here.write_bytes(b"0123456789")
    with there.open("rb") as opened:
        for round_ in range(20):
            mode = 0o600 + round_ % 8
            here.chmod(mode)
            assert stat.S_IMODE(there.stat().st_mode) == mode
            assert stat.S_IMODE(os.fstat(opened.fileno()).st_mode) == mode
            os.chown(here, round_, round_ + 1)
            assert (there.stat().st_uid, os.fstat(opened.fileno()).st_gid) == (round_, round_ + 1)
            os.utime(here, ns=(round_ * 10**9, round_ * 10**9 + 7))
            assert there.stat().st_mtime_ns == round_ * 10**9 + 7
            assert os.fstat(opened.fileno()).st_mtime_ns == round_ * 10**9 + 7
            os.truncate(here, 10 + round_)
            assert there.stat().st_size == os.fstat(opened.fileno()).st_size == 10 + round_


def test_open_descriptor_reads_what_was_closed_elsewhere(pair: Pair) -> None:
    here, there = pair.here / "f", pair.there / "f"
    for size in (100, 20_000, LARGE):
        here.write_bytes(b"a" * size)
        with there.open("rb", buffering=0) as opened:
            assert os.pread(opened.fileno(), 2 * LARGE, 0) == b"a" * size
            for byte in (b"b", b"c", b"d"):
                with here.open("r+b") as changing:
                    changing.write(byte * size)
                assert os.pread(opened.fileno(), 2 * LARGE, 0) == byte * size
            with here.open("ab") as changing:
                changing.write(b"end")
            assert os.fstat(opened.fileno()).st_size == size + 3
            assert os.pread(opened.fileno(), 2 * LARGE, size) == b"end"
            os.truncate(here, 10)
            assert os.pread(opened.fileno(), 2 * LARGE, 0) == b"d" * 10


def test_descriptor_open_for_writing_sees_the_other_s_bytes(pair: Pair) -> None:
    (pair.here / "f").write_bytes(b"." * 8)
    with (
        (pair.here / "f").open("r+b", buffering=0) as one,
        (pair.there / "f").open("r+b", buffering=0) as two,
    ):
        for round_ in range(20):
            os.pwrite(one.fileno(), b"%03d" % round_, 0)
            assert os.pread(two.fileno(), 8, 0)[:3] == b"%03d" % round_
            os.pwrite(two.fileno(), b"%03d" % round_, 4)
            assert os.pread(one.fileno(), 8, 0) == b"%03d.%03d." % (round_, round_)


def test_links_are_counted_on_both_sides(pair: Pair) -> None:
    here, there = pair.here, pair.there
    (here / "one").write_bytes(b"linked")
    for _ in range(5):
        assert (there / "one").stat().st_nlink == 1
        assert not (there / "two").exists()
        os.link(here / "one", here / "two")
        assert (there / "one").stat().st_nlink == 2
        assert (there / "two").read_bytes() == b"linked"
        (there / "two").write_bytes(b"linked anew")
        assert (here / "one").read_bytes() == b"linked anew"
        (there / "two").unlink()
        assert (here / "one").stat().st_nlink == 1
        assert not (here / "two").exists()
        (here / "one").write_bytes(b"linked")


def test_symlinks_and_what_takes_their_place_are_seen(pair: Pair) -> None:
    here, there = pair.here / "s", pair.there / "s"
    for round_ in range(10):
        assert not os.path.lexists(there)
        here.symlink_to(f"target-{round_}")
        assert os.readlink(there) == f"target-{round_}"
        there.unlink()
        assert not os.path.lexists(here)
        here.mkdir()
        assert there.is_dir()
        there.rmdir()


def test_extended_attributes_are_seen(pair: Pair) -> None:
    here, there = pair.here / "x", pair.there / "x"
    here.touch()
    for round_ in range(10):
        assert os.listxattr(there) == []
        os.setxattr(here, "user.a", b"%d" % round_)
        assert os.getxattr(there, "user.a") == b"%d" % round_
        os.setxattr(there, "user.b", b"%d" % -round_)
        assert sorted(os.listxattr(here)) == ["user.a", "user.b"]
        os.removexattr(there, "user.a")
        with pytest.raises(OSError, match="No data"):
            os.getxattr(here, "user.a")
        os.removexattr(here, "user.b")


def test_name_known_not_to_exist_appears_in_each_way(pair: Pair) -> None:
    here, there = pair.here, pair.there
    (here / "source").touch()
    (here / "directory").mkdir()
    ways: list[Callable[[Path], object]] = [
        lambda path: path.touch(),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/"),
        lambda path: os.link(here / "source", path),
        lambda path: os.mkfifo(path),
        lambda path: (here / "source").rename(path),
        lambda path: (here / "directory").rename(path),
    ]
    for index, way in enumerate(ways):
        name = f"new-{index}"
        for _ in range(3):
            assert not os.path.lexists(there / name)
        way(here / name)
        assert os.path.lexists(there / name)


def test_exclusive_create_fails_where_the_other_has_created(pair: Pair) -> None:
    for index in range(20):
        first, second = (pair.here, pair.there) if index % 2 else (pair.there, pair.here)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(os.open(first / f"{index}", flags))
        with pytest.raises(FileExistsError):
            os.open(second / f"{index}", flags)


def test_rename_over_a_file_is_seen_by_path_and_not_by_descriptor(pair: Pair) -> None:
    here, there = pair.here, pair.there
    (here / "f").write_bytes(b"old")
    assert (there / "f").read_bytes() == b"old"
    for round_ in range(10):
        (here / "new").write_bytes(b"%d" % round_)
        (here / "new").rename(here / "f")
        assert (there / "f").read_bytes() == b"%d" % round_
        assert os.listdir(there) == ["f"]


def test_directory_that_was_replaced_is_another(pair: Pair) -> None:
    here, there = pair.here, pair.there
    for round_ in range(10):
        (here / "d").mkdir()
        (here / "d" / f"{round_}").touch()
        assert os.listdir(there / "d") == [f"{round_}"]
        (here / "d" / f"{round_}").unlink()
        (here / "d").rmdir()
        with pytest.raises(FileNotFoundError):
            os.listdir(there / "d")


def test_working_directory_follows_a_rename_elsewhere(pair: Pair) -> None:
    here, there = pair.here, pair.there
    (here / "d" / "e").mkdir(parents=True)
    directory = os.open(there / "d" / "e", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (here / "d").rename(here / "moved")
        (here / "moved" / "e" / "f").write_bytes(b"here")
        assert os.listdir(directory) == ["f"]
        with open(os.open("f", os.O_RDONLY, dir_fd=directory), "rb") as file:
            assert file.read() == b"here"
        os.close(os.open("g", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
        assert sorted(os.listdir(here / "moved" / "e")) == ["f", "g"]
    finally:
        os.close(directory)


def test_command_line_beside_a_mount(space: Space, pair: Pair, tmp_path: Path) -> None:
    """put, get and rm see what the mount closed, and the mount sees what they did."""
    bucket, there = pair.here.name, pair.there
    source, fetched = tmp_path / "source", tmp_path / "fetched"
    for size in (10, LARGE):
        source.write_bytes(b"p" * size)
        assert not (there / "f").exists()
        space.command("put", source, f"{bucket}/f")
        assert (there / "f").read_bytes() == b"p" * size
        (there / "f").write_bytes(b"m" * size)
        space.command("get", f"{bucket}/f", fetched)
        assert fetched.read_bytes() == b"m" * size
        space.command("rm", f"{bucket}/f")
        assert not (there / "f").exists()
        fetched.unlink()


def test_capabilities_that_were_set_elsewhere_go_with_the_next_write(pair: Pair) -> None:
    here, there = pair.here / "program", pair.there / "program"
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    with here.open("wb", buffering=0) as file:
        # The kernel of this mount has asked, and knows that there are none.
        file.write(b"a")
        file.write(b"b")
        os.setxattr(there, "security.capability", capability)
        assert os.getxattr(here, "security.capability") == capability
        file.write(b"c")
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(there, "security.capability")
    assert there.read_bytes() == b"abc"
