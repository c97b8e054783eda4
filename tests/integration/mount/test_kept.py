"""Trash and snapshots as users of mounts and of the command line see them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, mounted, run, several_mounted, wait_until

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def mounts(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Mount]]:
    """Two mounts of the space."""
    with several_mounted(space.uri, tmp_path_factory.mktemp("kept"), 2) as started:
        yield started


@pytest.fixture
def both(mounts: list[Mount], tmp_path: Path) -> tuple[Path, Path]:
    """An empty bucket of the test's own, on one mount and on the other."""
    here, there = (mount.path / tmp_path.name for mount in mounts)
    here.mkdir()
    return here, there


def trash_of(space: Space, path: str) -> list[dict[str, object]]:
    said = space.command("trash", "ls", path, "--json").stdout
    found = json.loads(said)
    assert isinstance(found, list)
    return found


def paths_of(space: Space, path: str) -> list[tuple[object, object]]:
    return [(item["path"], item["reason"]) for item in trash_of(space, path)]


def refusal(call: Callable[[], object]) -> str:
    """The errno that a call fails with."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - compared by the caller.
        call()
    return errno.errorcode[caught.value.errno or 0]


# --- trash ---------------------------------------------------------------------------------------


def keep(space: Space, bucket: Path) -> None:
    space.command("bucket", "set", bucket.name, "--trash-days", "7")


def test_removed_replaced_and_overwritten_files_come_back(
    space: Space, both: tuple[Path, Path]
) -> None:
    here, there = both
    name = here.name
    keep(space, here)
    # Bytes that are nowhere but in the mount are kept, too.
    (here / "new").write_bytes(b"not stored yet")
    (here / "new").unlink()
    (here / "file").write_bytes(b"first")
    (here / "file").write_bytes(b"second")
    (here / "other").write_bytes(b"third")
    os.replace(here / "other", here / "file")
    (there / "file").unlink()
    assert paths_of(space, name) == [
        (f"{name}/file", "overwritten"),
        (f"{name}/file", "replaced"),
        (f"{name}/file", "removed"),
        (f"{name}/new", "removed"),
    ]
    items = trash_of(space, f"{name}/file")
    assert [item["size"] for item in items] == [5, 6, 5]
    space.command("trash", "restore", f"{name}/new")
    space.command("trash", "restore", f"{name}/file")
    for item, copy in zip(items[:2], ("one", "two"), strict=True):
        space.command(
            *("trash", "restore", f"{name}/file", "--item", str(item["item"])),
            *("--to", f"{name}/copies/{copy}"),
        )
    assert {
        os.fspath(path.relative_to(there)): path.read_bytes()
        for path in there.rglob("*")
        if path.is_file()
    } == {
        "new": b"not stored yet",
        "file": b"third",
        "copies/one": b"first",
        "copies/two": b"second",
    }
    (here / "new").unlink()
    (here / "new").write_bytes(b"in the way")
    refused = space.command("trash", "restore", f"{name}/new", check=False)
    assert (refused.returncode, (here / "new").read_bytes()) == (4, b"in the way")
    missing = space.command("trash", "restore", f"{name}/none", check=False)
    assert missing.returncode == 3
    space.command("trash", "empty", name)
    assert trash_of(space, name) == []


def test_tree_comes_back_with_modes_and_times(space: Space, both: tuple[Path, Path]) -> None:
    here, there = both
    name = here.name
    keep(space, here)
    tree = here / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "file").write_bytes(b"content")
    (tree / "link").symlink_to("below/file")
    (tree / "below" / "file").chmod(0o640)
    (tree / "below").chmod(0o751)
    os.utime(tree / "below" / "file", (1, 2))
    run("rm", "-r", tree)
    said = space.command("trash", "restore", "-r", f"{name}/tree").stdout
    assert said == "restored 4 items\n"
    restored = there / "tree" / "below" / "file"
    assert (restored.read_bytes(), restored.stat().st_mode & 0o777) == (b"content", 0o640)
    assert restored.stat().st_mtime == 2
    assert (there / "tree" / "below").stat().st_mode & 0o777 == 0o751
    assert os.readlink(there / "tree" / "link") == "below/file"
    # One file alone brings the directories that it was in along.
    space.command("rm", "-r", f"{name}/tree")
    space.command("trash", "restore", f"{name}/tree/below/file")
    assert (there / "tree" / "below").stat().st_mode & 0o777 == 0o751
    assert sorted(path.name for path in (here / "tree").iterdir()) == ["below"]


def test_open_file_is_kept_as_it_is_when_closed(space: Space, both: tuple[Path, Path]) -> None:
    here, _ = both
    name = here.name
    keep(space, here)
    with (here / "file").open("wb", buffering=0) as file:
        file.write(b"before")
        (here / "file").unlink()
        os.fsync(file.fileno())
        assert [item["is_open"] for item in trash_of(space, name)] == [True]
        refused = space.command("trash", "restore", f"{name}/file", check=False)
        assert refused.returncode == 4
        file.write(b", after")

    def is_closed() -> bool:
        return [item["is_open"] for item in trash_of(space, name)] == [False]

    wait_until(is_closed, "the removed file is closed")
    space.command("trash", "restore", f"{name}/file")
    assert (here / "file").read_bytes() == b"before, after"


# --- snapshots -----------------------------------------------------------------------------------


def listing(root: Path) -> str:
    """All below a directory with modes, sizes, times and content, and no path above it."""
    listed = run("find", ".", "-printf", r"%P %y %m %s %n %T@ %l\n", cwd=root).stdout
    content = run("sh", "-c", "find . -type f -exec md5sum {} +", cwd=root).stdout
    return "\n".join(sorted([*listed.splitlines(), *content.splitlines()]))


def test_snapshot_has_what_every_mount_had_written_and_stays_so(
    space: Space, both: tuple[Path, Path]
) -> None:
    here, there = both
    name = here.name
    (here / "d" / "e").mkdir(parents=True)
    (here / "d" / "large").write_bytes(os.urandom(300_000))
    os.link(here / "d" / "large", here / "linked")
    os.symlink("d", here / "symlink")
    # Written under leases of two mounts, and stored nowhere yet.
    (here / "d" / "file").write_bytes(b"here")
    (there / "d" / "e" / "file").write_bytes(b"there")
    with (here / "open").open("wb", buffering=0) as file:
        file.write(b"written so far")
        space.command("snapshot", "create", name, "monday")
        file.write(b" and no further")
    kept = here / ".snapshots" / "monday"
    assert (kept / "open").read_bytes() == b"written so far"
    (here / "open").write_bytes(b"written so far")
    os.utime(here / "open", ns=(0, (kept / "open").stat().st_mtime_ns))
    before = listing(kept)
    assert before == listing(here)
    assert listing(there / ".snapshots" / "monday") == before
    run("rm", "-r", here / "d")
    (there / "linked").write_bytes(b"other")
    for seen in (here, there):
        assert listing(seen / ".snapshots" / "monday") == before
        assert "monday" not in run("ls", "-laR", seen).stdout
        assert os.listdir(seen / ".snapshots") == ["monday"]
    copy = there / "copy"
    run("cp", "-a", kept, copy)
    run("diff", "-r", kept, copy)
    assert (copy / "d" / "file").read_bytes() == b"here"
    with mounted(space.uri, there.parent.parent.parent / "unleased", "noleases") as other:
        assert listing(other.path / name / ".snapshots" / "monday") == before
    fetched = space.command("get", f"{name}/.snapshots/monday/d/e/file", "-").stdout
    assert fetched == "there"


def test_nothing_in_a_snapshot_can_be_changed(space: Space, both: tuple[Path, Path]) -> None:
    here, _ = both
    (here / "d").mkdir()
    (here / "d" / "file").write_bytes(b"content")
    (here / "free").write_bytes(b"")
    space.command("snapshot", "create", f"{here.name}/d", "of d")
    top = here / ".snapshots"
    kept = top / "of d"
    calls: list[Callable[[], object]] = [
        lambda: (kept / "file").open("r+b"),
        lambda: os.open(kept / "file", os.O_RDONLY | os.O_TRUNC),
        lambda: (kept / "file").unlink(),
        lambda: (kept / "new").touch(),
        lambda: (top / "new").mkdir(),
        lambda: os.rmdir(kept),
        lambda: os.rmdir(top),
        lambda: os.rename(kept / "file", here / "moved"),
        lambda: os.rename(here / "free", kept / "moved"),
        lambda: os.rename(kept, top / "renamed"),
        lambda: os.rename(top, here / "renamed"),
        lambda: os.link(kept / "file", here / "linked"),
        lambda: os.symlink("file", kept / "symlink"),
        lambda: os.chmod(kept / "file", 0o777),
        lambda: os.chown(kept, 1, 1),
        lambda: os.truncate(kept / "file", 0),
        lambda: os.utime(kept / "file", (1, 1)),
        lambda: os.setxattr(kept / "file", "user.a", b"b"),
    ]
    assert [refusal(call) for call in calls] == ["EROFS"] * len(calls)
    assert refusal(lambda: os.mkdir(top)) == "EEXIST"
    assert refusal(lambda: top.open("wb")) == "EISDIR"
    assert listing(kept) == listing(here / "d")
    goal = f"{here.name}/.snapshots/of d/new"
    put = space.command("put", here / "free", goal, check=False)
    assert put.returncode == 7
    # Anywhere else it is a name like others.
    (here / "d" / ".snapshots").mkdir()
    assert os.listdir(here / "d") == [".snapshots", "file"]
    (here / "d" / ".snapshots").rmdir()


def test_removed_snapshot_is_seen_by_no_mount(space: Space, both: tuple[Path, Path]) -> None:
    here, there = both
    (here / "file").write_bytes(b"content")
    space.command("snapshot", "create", here.name, "monday")
    space.command("snapshot", "create", here.name, "tuesday")
    for seen in both:
        assert (seen / ".snapshots" / "monday" / "file").read_bytes() == b"content"
        assert sorted(os.listdir(seen / ".snapshots")) == ["monday", "tuesday"]
    again = space.command("snapshot", "create", here.name, "monday", check=False)
    assert again.returncode == 4
    refused = space.command("bucket", "rm", "-r", here.name, check=False)
    assert (refused.returncode, (there / "file").read_bytes()) == (4, b"content")
    said = json.loads(space.command("snapshot", "ls", here.name, "--json").stdout)
    assert [(one["name"], one["names"], one["bytes"]) for one in said] == [
        *(("monday", 2, 7), ("tuesday", 2, 7)),
    ]
    space.command("snapshot", "rm", here.name, "monday")
    for seen in both:
        assert os.listdir(seen / ".snapshots") == ["tuesday"]
        assert not (seen / ".snapshots" / "monday").exists()
        assert refusal((seen / ".snapshots" / "monday" / "file").stat) == "ENOENT"
    space.command("snapshot", "rm", here.name, "tuesday")
    missing = space.command("snapshot", "rm", here.name, "tuesday", check=False)
    assert missing.returncode == 3
    space.command("bucket", "rm", "-r", here.name)


def test_snapshots_of_a_bucket_that_is_written_to_are_each_of_one_moment(
    space: Space, both: tuple[Path, Path]
) -> None:
    here, there = both
    # Two files with the same number in them, each replaced before the next number; the second of
    # a pair never leads.
    script = (
        "import os, sys\n"
        "for number in range(100000):\n"
        "    for name in ('first', 'second'):\n"
        "        with open('new', 'w') as file:\n"
        "            file.write(str(number))\n"
        "        os.replace('new', name)\n"
    )
    for name in ("first", "second"):
        (here / name).write_text("-1")
    with subprocess.Popen(["python3", "-c", script], cwd=here) as writer:
        try:
            for index in range(5):
                space.command("snapshot", "create", here.name, f"{index}")
        finally:
            writer.kill()
    seen = []
    for index in range(5):
        kept = there / ".snapshots" / f"{index}"
        first, second = (int((kept / name).read_text()) for name in ("first", "second"))
        assert second <= first <= second + 1
        seen.append(first)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
