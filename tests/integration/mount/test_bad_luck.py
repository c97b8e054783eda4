"""Bad input and bad luck: one clear line, nothing left behind, nothing promised lost."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from mictlanfs.model import KIB, MIB
from tests.support.spaces import (
    Mount,
    Space,
    free_ports,
    is_mounted,
    mictlanfs,
    mounted,
    run,
    wait_until,
)

pytestmark = pytest.mark.fuse


def assert_refused(done: object, *words: str) -> None:
    """The command failed with one line that holds `words`, and without a traceback."""
    returncode, stderr = getattr(done, "returncode", 0), getattr(done, "stderr", "")
    assert returncode != 0
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("http://127.0.0.1:60666", "mictlanx://"),
        ("mictlanx://", "no server"),
        ("mictlanx://r@127.0.0.1:99999/?protocol=http", "99999"),
        ("mictlanx://r@127.0.0.1:60666/?protocol=ftp", "ftp"),
    ],
)
def test_wrong_uri_is_named(tmp_path: Path, uri: str, word: str) -> None:
    (tmp_path / "mnt").mkdir()
    assert_refused(mictlanfs("mount", uri, tmp_path / "mnt", check=False), word)
    assert not is_mounted(tmp_path / "mnt")


def test_router_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "mnt").mkdir()
    uri = f"mictlanx://r@127.0.0.1:{port}/?protocol=http"
    assert_refused(mictlanfs("mount", uri, tmp_path / "mnt", check=False), str(port))
    assert not is_mounted(tmp_path / "mnt")


def test_wrong_mountpoints_are_named(space: Space, mount: Mount, tmp_path: Path) -> None:
    assert_refused(space.command("mount", space.uri, tmp_path / "none", check=False), "none")
    (tmp_path / "file").write_text("", encoding="ascii")
    assert_refused(space.command("mount", space.uri, tmp_path / "file", check=False), "file")
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("", encoding="ascii")
    assert_refused(space.command("mount", space.uri, full, check=False), "full", "empty")
    assert_refused(space.command("mount", space.uri, mount.path, check=False), "already")


def test_unknown_option_is_named(space: Space, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    done = space.command("mount", space.uri, tmp_path / "mnt", "-o", "cache_sise=1G", check=False)
    assert_refused(done, "cache_sise", "cache_size")


def test_cache_directory_in_use_is_named(space: Space, mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    options = f"cache_dir={mount.cache}"
    done = space.command("mount", space.uri, tmp_path / "other", "-o", options, check=False)
    assert_refused(done, str(mount.cache), "cache_dir")


def test_name_of_256_bytes_is_too_long(work: Path) -> None:
    (work / ("n" * 255)).write_text("fits", encoding="ascii")
    with pytest.raises(OSError, match="too long"):
        (work / ("n" * 256)).write_text("does not", encoding="ascii")


def test_killed_mount_is_unmounted_and_mounted_again(mount: Mount, work: Path) -> None:
    with (work / "kept").open("wb") as file:
        file.write(b"promised")
        file.flush()
        os.fsync(file.fileno())
    mount.kill()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(mount.path)
    mictlanfs("umount", mount.path)
    assert not is_mounted(mount.path)
    mount.mount()
    assert (work / "kept").read_bytes() == b"promised"


def test_mount_replaces_a_dead_mount_by_itself(mount: Mount, work: Path) -> None:
    with (work / "kept").open("wb", buffering=0) as file:
        file.write(b"synced")
        os.fsync(file.fileno())
    mount.kill()
    mount.mount()
    assert (work / "kept").read_bytes() == b"synced"


def test_killed_router_comes_back_and_requests_wait_for_it(space: Space, work: Path) -> None:
    with (work / "before").open("wb") as file:
        file.write(b"promised")
        file.flush()
        os.fsync(file.fileno())
    space.kill("router")
    (work / "during").write_bytes(b"written while the router was away")
    assert (work / "before").read_bytes() == b"promised"
    assert (work / "during").read_bytes() == b"written while the router was away"


def test_killed_peers_come_back_with_what_they_had(space: Space, mount: Mount, work: Path) -> None:
    body = os.urandom(3 * MIB)
    with (work / "before").open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    for index in range(3):
        space.kill(f"peer-{index}")
    mount.remount_cold()
    assert (work / "before").read_bytes() == body
    (work / "after").write_bytes(body)
    assert (work / "after").read_bytes() == body


def test_router_killed_again_and_again_loses_no_synced_file(space: Space, work: Path) -> None:
    stop = threading.Event()
    synced: dict[str, bytes] = {}
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for index in range(10_000):
                if stop.is_set():
                    return
                body = os.urandom(100 + index)
                with (work / f"f{index}").open("wb") as file:
                    file.write(body)
                    os.fsync(file.fileno())
                synced[f"f{index}"] = body
        except BaseException as error:
            failures.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(4):
            threading.Event().wait(0.7)
            space.kill("router")
            space.command("server", "status", "--data", space.data, check=False)
    finally:
        threading.Event().wait(1.5)
        stop.set()
        writer.join(60)
    assert not failures
    assert len(synced) > 20
    for name, body in synced.items():
        assert (work / name).read_bytes() == body


def is_answering(uri: str) -> bool:
    """Whether the router of a space answers."""
    return mictlanfs("ls", "--uri", uri, check=False).returncode == 0


def synced_files(work: Path, sizes: list[int]) -> dict[str, bytes]:
    """Make files with pieces here and there, each fsynced; returns their content."""
    found = {}
    for index, size in enumerate(sizes):
        body = os.urandom(size)
        descriptor = os.open(work / f"synced{index}", os.O_CREAT | os.O_RDWR)
        os.pwrite(descriptor, body[: size // 2], 0)
        os.pwrite(descriptor, body[size // 2 :], 3 * size)
        os.fsync(descriptor)
        os.close(descriptor)
        found[f"synced{index}"] = (
            body[: size // 2] + bytes(3 * size - size // 2) + body[size // 2 :]
        )
    return found


def test_fsync_holds_though_everything_is_killed_before_peers_have_the_bytes(
    space: Space, mount: Mount, work: Path
) -> None:
    synced = synced_files(work, [9_000, 20_000, 40_000, 64 * KIB])
    mount.kill()
    for name in ("router", "peer-0", "peer-1", "peer-2"):
        space.kill(name)
    mictlanfs("umount", mount.path)
    shutil.rmtree(mount.cache)
    mount.mount()
    for name, body in synced.items():
        assert (work / name).read_bytes() == body


def test_router_killed_while_synced_bytes_move_to_peers_loses_none(
    space: Space, mount: Mount, work: Path
) -> None:
    def inline_count() -> int:
        with closing(sqlite3.connect(space.data / "router" / "metadata.db", timeout=10)) as found:
            (count,) = found.execute("SELECT count(*) FROM inline").fetchone()
            assert isinstance(count, int)
            return count

    others = inline_count()
    synced = synced_files(work, [10_000 + 997 * index for index in range(40)])
    before = inline_count()
    assert before >= others + 40
    wait_until(lambda: inline_count() < before, "some have moved")
    space.kill("router")
    wait_until(lambda: inline_count() <= others, "all have moved", 60.0)
    # All may have moved before the router was killed.
    wait_until(lambda: is_answering(space.uri), "the router is back", 60.0)
    mount.remount_cold()
    for name, body in synced.items():
        assert (work / name).read_bytes() == body


def test_terminated_mount_stores_what_is_open_and_dirty(space: Space, tmp_path: Path) -> None:
    with mounted(space.uri, tmp_path) as mount:
        bucket = mount.path / tmp_path.name
        bucket.mkdir()
        pid = mount.pid()
        assert pid is not None
        descriptor = os.open(bucket / "open", os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(descriptor, b"dirty")
        os.kill(pid, signal.SIGTERM)
        run("tail", f"--pid={pid}", "-f", "/dev/null")
        with pytest.raises(OSError, match="not connected"):
            os.fsync(descriptor)
        os.close(descriptor)
        mount.mount()
        assert (bucket / "open").read_bytes() == b"dirty"
