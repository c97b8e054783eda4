"""Buckets with a quota, filled by real programs on real mounts."""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.model import MIB
from tests.support.spaces import MICTLANFS, Mount, Space, mictlanfs, mounted, run

pytestmark = pytest.mark.fuse

NOBODY = 65534


def limit(space: Space, bucket: Path, quota: str) -> None:
    mictlanfs("bucket", "set", bucket.name, "--quota", quota, "--uri", space.uri)


def used(space: Space, bucket: Path) -> int:
    said = mictlanfs("bucket", "info", bucket.name, "--json", "--uri", space.uri).stdout
    found = json.loads(said)["used"]
    assert isinstance(found, int)
    return found


@pytest.fixture(scope="module")
def mount(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests here; `work` is a bucket of each test's own."""
    with mounted(space.uri, tmp_path_factory.mktemp("shared")) as started:
        yield started


@pytest.fixture
def limited(space: Space, tmp_path: Path, work: Path) -> Path:
    """A bucket with a quota of 8 MiB that anybody may write into."""
    bucket = work.with_name(f"{tmp_path.name}-limited")
    mictlanfs("bucket", "create", bucket.name, "--quota", "8M", "--uri", space.uri)
    bucket.chmod(0o777)
    return bucket


def dd(bucket: Path, name: str, count: int, user: int = 0) -> tuple[int, str]:
    """Write MiB as a user; what dd says of it."""
    done = run(
        "dd", "if=/dev/urandom", f"of={name}", "bs=1M", f"count={count}", check=False,
        cwd=bucket, user=user, group=user, extra_groups=[],
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("user", [0, NOBODY])
def test_dd_is_told_by_write_and_the_file_keeps_what_was_accepted(
    space: Space, limited: Path, tmp_path: Path, user: int
) -> None:
    with mounted(space.uri, tmp_path / "shared", "allow_other") as shared:
        bucket = shared.path / limited.name
        code, said = dd(bucket, "file", 20, user)
        assert code == 1
        assert "error writing 'file': Disk quota exceeded" in said
        assert "8+0 records out" in said
        assert (bucket / "file").stat().st_size == 8 * MIB
        assert used(space, limited) == 8 * MIB
        # Overwriting in place takes no room, and another file finds none.
        with (bucket / "file").open("r+b") as file:
            file.write(b"n" * MIB)
        code, said = dd(bucket, "other", 1, user)
        assert "Disk quota exceeded" in said
        (bucket / "file").unlink()
        assert dd(bucket, "other", 8, user)[0] == 0
        assert used(space, limited) == 8 * MIB


def test_full_bucket_still_takes_names_and_attributes(limited: Path) -> None:
    assert dd(limited, "file", 8)[0] == 0
    (limited / "d").mkdir()
    (limited / "empty").touch()
    (limited / "link").symlink_to("file")
    os.setxattr(limited / "file", "user.a", b"b")
    os.truncate(limited / "file", 100 * MIB)
    os.truncate(limited / "file", 7 * MIB)
    assert dd(limited, "empty", 1)[0] == 0


def test_files_and_trees_move_between_buckets_as_far_as_there_is_room(
    space: Space, limited: Path, work: Path
) -> None:
    tree = work / "tree" / "below"
    tree.mkdir(parents=True)
    for path in (tree / "a", tree / "b", work / "single"):
        with path.open("wb", buffering=0) as file:
            file.write(os.urandom(3 * MIB))
            os.fsync(file.fileno())
    before = used(space, work)
    os.rename(work / "tree", limited / "tree")
    assert (used(space, limited), used(space, work)) == (6 * MIB, before - 6 * MIB)
    moved = run("mv", work / "single", limited, check=False, env={**os.environ, "LC_ALL": "C"})
    assert moved.returncode == 1
    assert "Disk quota exceeded" in moved.stderr
    assert (work / "single").stat().st_size == 3 * MIB
    run("mv", limited / "tree" / "below" / "a", work)
    run("mv", work / "single", limited)
    assert used(space, limited) == 6 * MIB


def accepted(descriptor: int, body: bytes) -> int:
    """Write as much of `body` as is taken; returns how much that is."""
    count = 0
    while count < len(body):
        try:
            count += os.pwrite(descriptor, body[count:], count)
        except OSError as error:
            if error.errno != errno.EDQUOT:
                raise
            break
    return count


def is_stored(descriptor: int) -> bool:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EDQUOT:
            raise
        return False
    return True


def test_every_byte_that_two_mounts_accepted_is_stored_once_the_quota_is_raised(
    space: Space, limited: Path, tmp_path: Path
) -> None:
    body = os.urandom(6 * MIB)
    with mounted(space.uri, tmp_path / "second") as second:
        there = second.path / limited.name
        files = {
            path: os.open(path, os.O_CREAT | os.O_WRONLY) for path in (limited / "a", there / "b")
        }
        counts = {path: accepted(descriptor, body) for path, descriptor in files.items()}
        stored = [is_stored(descriptor) for descriptor in files.values()]
        assert used(space, limited) <= 8 * MIB
        assert any(stored)
        # Either both wrote at once, and one was refused late, or the later one was told at once.
        assert all(stored) == (sum(counts.values()) <= 8 * MIB)
        limit(space, limited, "20M")
        for descriptor in files.values():
            assert is_stored(descriptor)
            os.close(descriptor)
        assert used(space, limited) == sum(counts.values())
        for name, path in (("b", limited / "a"), ("a", there / "b")):
            assert path.read_bytes() == body[: counts[path]]
            assert (path.parent / name).stat().st_size in counts.values()


def test_mounted_bucket_shows_its_quota_as_its_size(
    space: Space, limited: Path, work: Path, tmp_path: Path
) -> None:
    (limited / "d").mkdir()
    with (limited / "d" / "file").open("wb", buffering=0) as file:
        file.write(os.urandom(3 * MIB))
        os.fsync(file.fileno())
    for subdir in (limited.name, f"{limited.name}/d"):
        with mounted(space.uri, tmp_path / "part", f"subdir={subdir}") as part:
            shown = os.statvfs(part.path)
            assert shown.f_blocks * shown.f_frsize == 8 * MIB
            assert shown.f_bavail * shown.f_frsize == 5 * MIB
    whole = os.statvfs(limited)
    assert whole.f_blocks * whole.f_frsize > 8 * MIB


@pytest.mark.parametrize("is_stream", [False, True])
def test_put_into_a_full_bucket_leaves_nothing(
    space: Space, limited: Path, tmp_path: Path, is_stream: bool
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(9 * MIB))
    target = f"{limited.name}/d/file"
    words = shlex.join([str(MICTLANFS), "put", "-" if is_stream else str(source), target])
    done = run("sh", "-c", f"{words} --uri '{space.uri}' < {source}", check=False)
    assert done.returncode == 6
    assert "quota" in done.stderr
    assert os.listdir(limited) == []
    assert used(space, limited) == 0
