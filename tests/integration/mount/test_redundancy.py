"""Two copies of every chunk, and what happens when a peer is gone for good."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.model import MIB
from tests.support.spaces import LooseServers, free_ports, is_mounted, mounted, run

pytestmark = pytest.mark.fuse


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[LooseServers]:
    """A router and three peers that nobody restarts."""
    data = tmp_path / "servers"
    data.mkdir()
    started = LooseServers(data)
    ports = free_ports(4)
    try:
        started.start_router(ports[0])
        for index in range(3):
            started.start_peer(index, ports[index + 1])
        started.wait_for_peers(3)
        yield started
    finally:
        started.stop()


def copies_by_chunk(servers: LooseServers) -> Counter[bytes]:
    """How many peers hold each chunk, from the indexes on their disks."""
    copies: Counter[bytes] = Counter()
    for index in range(3):
        path = servers.data / f"peer-{index}" / "index.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as index_rows:
            copies.update(row[0] for row in index_rows.execute("SELECT id FROM chunks"))
    return copies


def test_every_chunk_is_on_two_peers(servers: LooseServers, tmp_path: Path) -> None:
    with mounted(servers.uri, tmp_path) as mount:
        for index in range(30):
            (mount.bucket / f"small{index}").write_bytes(os.urandom(9000 * (index + 1)))
        with (mount.bucket / "large").open("wb", buffering=0) as file:
            file.write(os.urandom(9 * MIB))
        for path in mount.bucket.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    # What an fsync waited for may have been with the router alone; the end of the mount moved it.
    copies = copies_by_chunk(servers)
    assert len(copies) >= 33
    assert set(copies.values()) == {2}


def test_mount_is_unmounted_in_order_while_the_router_is_away(
    servers: LooseServers, tmp_path: Path
) -> None:
    # After which it gives the router up. With the usual 30 s umount took most of its minute.
    with mounted(servers.uri, tmp_path, "deadline=10") as mount:
        with (mount.bucket / "file").open("wb") as file:
            file.write(b"synced")
            file.flush()
            os.fsync(file.fileno())
        servers.kill("router")
        mount.umount()
        assert not is_mounted(mount.path)


def test_with_one_peer_dead_all_is_read_and_new_files_are_written(
    servers: LooseServers, tmp_path: Path
) -> None:
    bodies = {f"f{index}": os.urandom(1000 + 200_000 * index) for index in range(30)}
    with mounted(servers.uri, tmp_path) as mount:
        for name, body in bodies.items():
            (mount.bucket / name).write_bytes(body)
        servers.kill("peer-1")
        mount.remount_cold()
        for name, body in bodies.items():
            assert (mount.bucket / name).read_bytes() == body
        fresh = os.urandom(10 * MIB)
        (mount.bucket / "fresh").write_bytes(fresh)
        mount.remount_cold()
        assert (mount.bucket / "fresh").read_bytes() == fresh


def test_peer_killed_in_the_middle_of_reading_and_writing_costs_no_error(
    servers: LooseServers, tmp_path: Path
) -> None:
    body = os.urandom(48 * MIB)
    with mounted(servers.uri, tmp_path) as mount:
        (mount.bucket / "read").write_bytes(body)
        mount.remount_cold()
        with (
            (mount.bucket / "read").open("rb") as file,
            (mount.bucket / "written").open("wb") as to,
        ):
            for index in range(48):
                piece = file.read(MIB)
                assert piece == body[index * MIB : (index + 1) * MIB]
                to.write(piece)
                if index == 20:
                    servers.kill("peer-2")
            os.fsync(to.fileno())
        mount.remount_cold()
        assert (mount.bucket / "written").read_bytes() == body


def test_full_peers_give_no_space_and_lose_nothing_stored(tmp_path: Path) -> None:
    data = tmp_path / "servers"
    data.mkdir()
    servers = LooseServers(data)
    ports = free_ports(3)
    try:
        servers.start_router(ports[0])
        for index in range(2):
            servers.start_peer(index, ports[index + 1], "--capacity", "64M")
        servers.wait_for_peers(2)
        with mounted(servers.uri, tmp_path) as mount:
            first = os.urandom(8 * MIB)
            (mount.bucket / "first").write_bytes(first)
            second = mount.bucket / "second"
            filled = run(
                "dd",
                "if=/dev/zero",
                f"of={second}",
                "bs=1M",
                "count=200",
                "conv=fsync",
                check=False,
            )
            assert filled.returncode != 0
            assert "No space left" in filled.stderr
            second.unlink()
            assert (mount.bucket / "first").read_bytes() == first
            mount.remount_cold()
            assert (mount.bucket / "first").read_bytes() == first
    finally:
        servers.stop()
