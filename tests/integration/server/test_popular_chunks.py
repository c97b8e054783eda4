"""A chunk that is read often gets an extra copy on real peers, and loses it again."""

from __future__ import annotations

import http.client
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import pytest

from mictlanfs import wire
from tests.support.spaces import LooseServers, free_ports, mictlanfs, wait_until

PEERS = 3
SIZE = 200_000
# Of a chunk with two copies, read so often within seconds: 208 a minute by the peers' measure.
READS, READS_PER_MIN = 300, 60


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[LooseServers]:
    data = tmp_path / "servers"
    data.mkdir()
    started = LooseServers(data)
    ports = free_ports(1 + PEERS)
    try:
        start_router(started, ports[0], READS_PER_MIN)
        for index in range(PEERS):
            started.start_peer(index, ports[1 + index])
        started.wait_for_peers(PEERS)
        yield started
    finally:
        started.stop()


def start_router(servers: LooseServers, port: int, reads_per_min: int) -> None:
    servers.start_router(port, "--popular-reads", str(reads_per_min), "--gc-grace", "0")


def rows(servers: LooseServers, query: str, *values: object) -> list[tuple[bytes | str, ...]]:
    path = servers.data / "router" / "metadata.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as metadata:
        return metadata.execute(query, values).fetchall()


def holders(servers: LooseServers, chunk: bytes) -> set[int]:
    """The peers that a reader is told of."""
    query = "SELECT peer.id FROM replica JOIN peer ON number = peer WHERE chunk = ?"
    return {int(str(name).rpartition("-")[2]) for (name,) in rows(servers, query, chunk)}


def on_disks(servers: LooseServers, chunk: bytes) -> set[int]:
    """The peers that have it."""
    return {
        index
        for index in range(PEERS)
        if list((servers.data / f"peer-{index}" / "chunks").rglob(f"{chunk.hex()}.*"))
    }


def read(servers: LooseServers, peer: int, chunk: bytes, count: int) -> bytes:
    """Read a chunk from a peer so often, as many readers would."""
    connection = http.client.HTTPConnection("127.0.0.1", servers.ports[peer], timeout=20)
    with closing(connection):
        for _ in range(count):
            connection.request("GET", f"{wire.Path.CHUNK}{chunk.hex()}")
            answer = connection.getresponse()
            assert answer.status == 200
            body = answer.read()
    return body


def upkeep(servers: LooseServers) -> dict[str, int]:
    found = servers.status().get("upkeep", {})
    assert isinstance(found, dict)
    return found


@pytest.mark.timeout(300)
def test_chunk_that_is_read_often_has_an_extra_copy_for_as_long(
    servers: LooseServers, tmp_path: Path
) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "source").write_bytes(content)
    mictlanfs("bucket", "create", "bucket", "--replicas", "2", "--uri", servers.uri)
    mictlanfs("put", tmp_path / "source", "bucket/file", "--uri", servers.uri)
    [(chunk,)] = rows(servers, "SELECT id FROM chunk")
    assert isinstance(chunk, bytes)
    wanted = holders(servers, chunk)
    assert len(wanted) == 2

    assert read(servers, min(wanted), chunk, READS) == content
    wait_until(lambda: len(holders(servers, chunk)) == 3, "there is an extra copy")
    [extra] = holders(servers, chunk) - wanted
    assert read(servers, extra, chunk, 1) == content
    wait_until(lambda: upkeep(servers).get("extra_count") == 1, "the status tells of it")
    assert "1 extra copy of 1 chunk" in mictlanfs("status", "--uri", servers.uri).stdout
    router = servers.uri.partition("@")[2].partition("/")[0]
    with urlopen(f"http://{router}/metrics") as answer:
        assert b"\nmictlanfs_extra_copies 1.0\n" in answer.read()

    # Looks at all chunks, and a router that is started again, leave it where it is.
    mictlanfs("heal", "--uri", servers.uri)
    servers.kill("router")
    start_router(servers, int(router.rpartition(":")[2]), READS_PER_MIN)
    servers.wait_for_peers(PEERS)
    wait_until(lambda: upkeep(servers).get("extra_count") == 1, "it is known again")
    mictlanfs("heal", "--uri", servers.uri)
    assert len(holders(servers, chunk)) == 3
    assert upkeep(servers)["trimmed_count"] == 0

    # By this measure nobody reads it.
    servers.kill("router")
    start_router(servers, int(router.rpartition(":")[2]), 1000 * READS_PER_MIN)
    servers.wait_for_peers(PEERS)
    wait_until(lambda: len(on_disks(servers, chunk)) == 2, "the extra copy is gone")
    assert holders(servers, chunk) == on_disks(servers, chunk)
    mictlanfs("get", "bucket/file", tmp_path / "got", "--uri", servers.uri)
    assert (tmp_path / "got").read_bytes() == content
