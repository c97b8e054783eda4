"""Chunks read from the files of peers on this machine, and what happens when that is no way."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mictlanfs.localchunks import socket_name
from mictlanfs.model import KIB, MIB
from tests.support.spaces import LooseServers, Mount, free_ports, mounted, run, wait_until

pytestmark = pytest.mark.fuse

NOBODY = 65534
CONTENT = random.Random(5).randbytes(9 * MIB + 77)
# Larger than a small chunk, so a file of its own, and not of whole blocks.
MIDDLE = random.Random(6).randbytes(200 * KIB + 3)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[LooseServers]:
    """A router and three peers, on this machine."""
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


def stats(mount: Mount) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((mount.path / ".mictlanfs" / "stats").read_text())
    return found


def write_files(mount: Mount) -> None:
    for name, content in (("large", CONTENT), ("middle", MIDDLE)):
        with (mount.bucket / name).open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())


def chunk_files(servers: LooseServers, index: int) -> list[Path]:
    folder = servers.data / f"peer-{index}" / "chunks"
    return [path for path in folder.rglob("*") if path.is_file()]


def flip_a_bit(path: Path) -> None:
    position = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_no_peer_is_asked_for_bytes(servers: LooseServers, tmp_path: Path) -> None:
    with mounted(servers.uri, tmp_path) as mount:
        write_files(mount)
        mount.remount_cold()
        with (mount.bucket / "large").open("rb", buffering=0) as file:
            for offset in (8 * MIB, 77, 5 * MIB - 1, 4 * MIB - 9):
                assert os.pread(file.fileno(), 4096, offset) == CONTENT[offset : offset + 4096]
        assert (mount.bucket / "large").read_bytes() == CONTENT
        assert (mount.bucket / "middle").read_bytes() == MIDDLE
        told = stats(mount)
        assert told["cache"]["local"]["hits"] > 0
        assert told["cache"]["local"]["descriptors"] == 4
        assert told["peer_requests"] == 0


def test_no_byte_is_sent_to_a_peer_that_has_the_file_written(
    servers: LooseServers, tmp_path: Path
) -> None:
    with mounted(servers.uri, tmp_path) as mount:
        write_files(mount)
        # Three chunks and one, each on two peers. What fsync waits for may be only the commit.
        wait_until(lambda: stats(mount)["local_writes"] == 8, "chunks are not written to files")
        assert stats(mount)["peer_requests"] == 0
        mount.remount_cold()
        assert (mount.bucket / "large").read_bytes() == CONTENT
        assert (mount.bucket / "middle").read_bytes() == MIDDLE


def test_every_byte_may_go_through_the_network(servers: LooseServers, tmp_path: Path) -> None:
    with mounted(servers.uri, tmp_path, "noshort_circuit") as mount:
        write_files(mount)
        mount.remount_cold()
        assert (mount.bucket / "large").read_bytes() == CONTENT
        told = stats(mount)
        assert told["local_writes"] == 0
        assert told["cache"]["local"] is None
        assert told["peer_requests"] >= 3


def test_a_flipped_bit_is_not_served(servers: LooseServers, tmp_path: Path) -> None:
    with mounted(servers.uri, tmp_path) as mount:
        write_files(mount)
        # Which copy a mount reads first is chance: of so many, one that is damaged.
        more = [mount.bucket / f"more-{number}" for number in range(16)]
        for path in more:
            path.write_bytes(MIDDLE)
        mount.remount_cold()
        damaged = [path for index in range(2) for path in chunk_files(servers, index)]
        # Of each chunk one copy at least stays whole.
        seen: set[str] = set()
        for path in damaged:
            if path.name not in seen:
                seen.add(path.name)
                flip_a_bit(path)
        # Where the bits are, and where they are not.
        with (mount.bucket / "large").open("rb", buffering=0) as file:
            for offset in range(0, len(CONTENT), MIB):
                assert os.pread(file.fileno(), 4096, offset) == CONTENT[offset : offset + 4096]
        assert (mount.bucket / "large").read_bytes() == CONTENT
        for path in [mount.bucket / "middle", *more]:
            assert path.read_bytes() == MIDDLE
        assert stats(mount)["cache"]["local"]["corrupt"] >= 1


def test_peers_that_are_gone_are_done_without(servers: LooseServers, tmp_path: Path) -> None:
    with mounted(servers.uri, tmp_path) as mount:
        write_files(mount)
        mount.remount_cold()
        servers.kill("peer-0")
        assert (mount.bucket / "large").read_bytes() == CONTENT
        assert (mount.bucket / "middle").read_bytes() == MIDDLE


def test_peers_without_sums_are_read_from_their_files_too(
    servers: LooseServers, tmp_path: Path
) -> None:
    with mounted(servers.uri, tmp_path) as mount:
        write_files(mount)
        mount.umount()
        for index, port in sorted(servers.ports.items()):
            servers.kill(f"peer-{index}")
            # The files are found again when the peer starts; what they sum up to is not.
            for path in (servers.data / f"peer-{index}").glob("index*"):
                path.unlink()
            servers.start_peer(index, port)
        for index in servers.ports:
            # The router does not notice that a peer was away so shortly.
            log = servers.data / f"peer-{index}.log"
            wait_until(
                lambda log=log: log.read_text().count("registered with the router") == 2,
                f"peer {index} is there again",
            )
        mount.mount()
        mount.remount_cold()
        with (mount.bucket / "large").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4096, 77) == CONTENT[77 : 77 + 4096]
        assert (mount.bucket / "large").read_bytes() == CONTENT
        told = stats(mount)
        assert told["cache"]["local"]["descriptors"] == 3
        assert told["peer_requests"] == 0


# What somebody is told who asks a peer at its socket as a mount does, as user `argv[1]`.
ASK = """
import os, socket, sys
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.connect("\\0" + sys.argv[2])
try:
    client.send(bytes.fromhex(sys.argv[3]))
    packet, descriptors, _, _ = socket.recv_fds(client, 100_000, 10)
except OSError:
    packet, descriptors = b"", []
print(len(packet) > 0, len(descriptors))
"""


def test_another_user_gets_no_descriptors(servers: LooseServers, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with mounted(servers.uri, tmp_path) as mount:
        write_files(mount)
        space_id = json.loads((mount.path / ".mictlanfs" / "session").read_text())["space"]
    index = next(index for index in range(3) if chunk_files(servers, index))
    chunk_id = chunk_files(servers, index)[0].name.partition(".")[0]
    name = socket_name(space_id, f"mictlanx-peer-{index}").removeprefix("\0")

    def told(uid: int) -> str:
        return run("/usr/bin/env", "python3", "-c", ASK, str(uid), name, chunk_id).stdout.strip()

    assert told(0) == "True 1"
    assert told(NOBODY) == "False 0"


def test_a_chunk_in_use_outlives_its_peer(servers: LooseServers, tmp_path: Path) -> None:
    with mounted(servers.uri, tmp_path) as mount:
        write_files(mount)
        mount.remount_cold()
        with (mount.bucket / "large").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4096, 0) == CONTENT[:4096]
            for index in range(3):
                servers.kill(f"peer-{index}")
            assert os.pread(file.fileno(), 4096, 2 * MIB) == CONTENT[2 * MIB :][:4096]
