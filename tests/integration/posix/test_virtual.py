"""Tags, computed extended attributes and the hidden directory, on a real mount."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mictlanfs.checksums import digest_of
from tests.support.spaces import Mount, mictlanfs, mounted, run, running_space

COMPUTED = ("bucket", "ball_id", "checksum", "size", "chunks", "peers")
DOCUMENTS = ["config", "metrics", "peers", "session", "stats"]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A space for the tests of this file."""
    with running_space(tmp_path_factory.mktemp("virtual") / "data", peer_count=2) as space:
        yield space.uri


@pytest.fixture(scope="module")
def mount(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount for the tests of this file."""
    with mounted(uri, tmp_path_factory.mktemp("virtual"), "memory=64M") as started:
        yield started


@pytest.fixture
def here(mount: Mount, tmp_path: Path) -> Path:
    """An empty bucket."""
    bucket = mount.path / tmp_path.name
    bucket.mkdir()
    return bucket


def told(path: Path, name: str) -> bytes:
    return os.getxattr(path, f"user.mictlanx.{name}")


def errno_of(call: Callable[..., object], *args: object) -> int | None:
    """The errno a system call fails with, None when it does not."""
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return None


# --- tags ----------------------------------------------------------------------------------------


def test_tags_are_kept_listed_and_copied(here: Path) -> None:
    file, copy = here / "file", here / "copy"
    file.write_text("content")
    os.setxattr(file, "user.mictlanx.tag.colour", b"blue")
    os.setxattr(file, "user.mictlanx.tag.empty", b"")
    run("cp", "-a", file, copy)
    assert sorted(os.listxattr(copy)) == ["user.mictlanx.tag.colour", "user.mictlanx.tag.empty"]
    assert told(copy, "tag.colour") == b"blue"
    os.removexattr(copy, "user.mictlanx.tag.colour")
    assert errno_of(told, copy, "tag.colour") == errno.ENODATA


def test_tags_have_the_limits_of_extended_attributes(here: Path) -> None:
    file = here / "file"
    file.touch()
    longest = "user.mictlanx.tag." + "n" * (255 - len("user.mictlanx.tag."))
    os.setxattr(file, longest, b"v" * 65536)
    assert len(os.getxattr(file, longest)) == 65536
    assert errno_of(os.setxattr, file, longest + "n", b"") == errno.ERANGE


# --- computed ------------------------------------------------------------------------------------


def test_a_file_tells_where_it_lies_and_what_it_is_made_of(here: Path) -> None:
    file = here / "a" / "note"
    file.parent.mkdir()
    content = os.urandom(1 << 20)
    file.write_bytes(content)
    assert told(file, "bucket").decode() == here.name
    assert told(file, "ball_id") == b"a/note"
    assert told(file, "size") == b"%d" % len(content)
    assert told(file, "checksum").decode() == f"blake3:{digest_of([content]).hex()}"
    listed = json.loads(told(file, "chunks"))
    assert (listed["count"], listed["is_complete"]) == (1, True)
    peers = json.loads(told(file, "peers"))
    assert list(peers) == [listed["chunks"][0]["id"]]
    assert sorted(peers[listed["chunks"][0]["id"]]) == ["mictlanx-peer-0", "mictlanx-peer-1"]


def test_a_file_of_several_chunks_names_each(here: Path) -> None:
    file = here / "large"
    parts = [os.urandom(4 << 20), os.urandom(3 << 20)]
    file.write_bytes(b"".join(parts))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    digests = ",".join(digest_of([part]).hex() for part in parts)
    assert told(file, "checksum").decode() == f"blake3-chunks:{digests}"
    assert len(json.loads(told(file, "peers"))) == 2


def test_a_sparse_file_has_no_checksum(here: Path) -> None:
    file = here / "sparse"
    with file.open("wb") as opened:
        opened.truncate(1 << 30)
    assert errno_of(told, file, "checksum") == errno.ENODATA
    assert told(file, "size") == b"1073741824"


def test_a_renamed_file_tells_its_new_place(here: Path) -> None:
    (here / "old").write_text("x")
    (here / "d").mkdir()
    (here / "old").rename(here / "d" / "new")
    assert told(here / "d" / "new", "ball_id") == b"d/new"


def test_what_is_computed_is_neither_listed_nor_copied_nor_set(here: Path, tmp_path: Path) -> None:
    file, outside = here / "file", tmp_path / "outside"
    file.write_text("content")
    assert os.listxattr(file) == []
    assert run("getfattr", "-d", file).stdout == ""
    run("rsync", "-aX", file, outside)
    assert os.listxattr(outside) == []
    for name in COMPUTED:
        full = f"user.mictlanx.{name}"
        assert errno_of(os.setxattr, file, full, b"x") == errno.EPERM
        assert errno_of(os.removexattr, file, full) == errno.EPERM
        assert errno_of(told, here, name) == errno.ENODATA


# --- the hidden directory ------------------------------------------------------------------------


def test_the_hidden_directory_is_found_and_not_listed(mount: Mount, here: Path) -> None:
    hidden = mount.path / ".mictlanfs"
    assert ".mictlanfs" not in os.listdir(mount.path)
    assert sorted(os.listdir(hidden)) == DOCUMENTS
    assert not (here / ".mictlanfs").exists()
    assert (hidden.stat().st_mode, hidden.stat().st_nlink) == (0o040555, 2)
    assert (hidden / "..").stat().st_ino == mount.path.stat().st_ino
    found = run("find", hidden, "-type", "f", "-perm", "0444").stdout.splitlines()
    assert sorted(Path(name).name for name in found) == DOCUMENTS
    assert run("find", mount.path, "-maxdepth", "1", "-name", ".mictlanfs").stdout == ""


def test_documents_are_made_when_they_are_opened(mount: Mount, here: Path) -> None:
    stats = mount.path / ".mictlanfs" / "stats"
    before = json.loads(stats.read_text())
    with (here / "file").open("wb", buffering=0) as file:
        file.write(b"x" * 100_000)
        os.fsync(file.fileno())
    after = json.loads(stats.read_text())
    assert after["router_requests"] > before["router_requests"]
    stored, stored_before = (t["peer_requests"] + t["local_writes"] for t in (after, before))
    assert stored > stored_before
    assert {"dirty_bytes", "inodes", "handles", "cache"} <= set(after)


def test_documents_can_be_read_by_every_program(mount: Mount, tmp_path: Path) -> None:
    config = mount.path / ".mictlanfs" / "config"
    assert run("cat", config).stdout == config.read_text()
    assert config.stat().st_size == len(config.read_bytes())
    run("cp", config, tmp_path / "copy")
    told_of = json.loads((tmp_path / "copy").read_text())
    assert told_of["mountpoint"] == str(mount.path)
    assert told_of["options"]["memory"] == 64 << 20
    with config.open("rb") as opened:
        opened.seek(5)
        assert opened.read(7) == config.read_bytes()[5:12]


def test_session_and_peers_are_those_of_the_space(mount: Mount, uri: str) -> None:
    hidden = mount.path / ".mictlanfs"
    session = json.loads((hidden / "session").read_text())
    status = json.loads(mictlanfs("status", "--json", "--uri", uri).stdout)
    assert session["space"] == status["space_id"]
    assert session["epoch"] >= 1
    peers = json.loads((hidden / "peers").read_text())["peers"]
    assert sorted(peer["id"] for peer in peers) == ["mictlanx-peer-0", "mictlanx-peer-1"]
    assert {peer["state"] for peer in peers} == {"up"}


def test_nothing_in_the_hidden_directory_can_be_changed(mount: Mount, here: Path) -> None:
    hidden = mount.path / ".mictlanfs"
    file = here / "file"
    file.touch()
    attempts: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (os.mkdir, (hidden / "x",)),
        (os.open, (hidden / "x", os.O_CREAT | os.O_WRONLY)),
        (os.open, (hidden / "stats", os.O_WRONLY)),
        (os.truncate, (hidden / "stats", 0)),
        (os.unlink, (hidden / "stats",)),
        (os.rename, (hidden / "stats", hidden / "x")),
        (os.rename, (file, hidden / "x")),
        (os.rename, (hidden, mount.path / "x")),
        (os.link, (file, hidden / "x")),
        (os.link, (hidden / "stats", here / "x")),
        (os.symlink, ("x", hidden / "x")),
        (os.mkfifo, (hidden / "x",)),
        (os.chmod, (hidden / "stats", 0o666)),
        (os.chown, (hidden, 1, 1)),
        (os.utime, (hidden / "stats",)),
        (os.rmdir, (hidden,)),
        (os.setxattr, (hidden / "stats", "user.a", b"1")),
    ]
    found = [errno_of(call, *args) for call, args in attempts]
    assert found == [errno.EPERM] * len(attempts)
    assert errno_of(os.mkdir, hidden) == errno.EEXIST
    assert sorted(os.listdir(hidden)) == DOCUMENTS


def test_programs_that_walk_the_mount_are_not_disturbed(mount: Mount, here: Path) -> None:
    (here / "file").write_text("x")
    (mount.path / ".mictlanfs" / "stats").read_text()
    done = subprocess.run(["du", "-a", mount.path], capture_output=True, text=True, check=True)
    assert ".mictlanfs" not in done.stdout


def test_a_mount_of_a_subdirectory_has_it_too(uri: str, here: Path, tmp_path: Path) -> None:
    (here / "d").mkdir()
    with mounted(uri, tmp_path, f"subdir={here.name}/d") as there:
        config = json.loads((there.path / ".mictlanfs" / "config").read_text())
        assert config["options"]["subdir"] == f"{here.name}/d"
        assert os.listdir(there.path) == []
        assert errno_of(os.rmdir, there.path / ".mictlanfs") == errno.EPERM
        (there.path / "file").write_text("x")
        assert told(there.path / "file", "ball_id") == b"d/file"
