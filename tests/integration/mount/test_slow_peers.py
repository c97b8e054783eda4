"""Peers that are slow, stop, or are killed in the middle of a body, on real mounts and by commands.

Every peer is behind a proxy that can be narrow or end. Descriptors of local chunks would go past
it, so they are off.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mictlanfs.client.blocking import BlockingSpace
from mictlanfs.model import MIB, BucketPolicy
from tests.support.narrowspace import NarrowSpace, narrow_space
from tests.support.spaces import Mount, mictlanfs, mounted

pytestmark = pytest.mark.fuse

NETWORK = "noshort_circuit"
SIZE = 32 * MIB
# Where a peer is killed: in the middle of its third chunk, or of several at once.
IN_A_CHUNK = 5 * MIB // 2


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NarrowSpace]:
    with narrow_space(tmp_path_factory.mktemp("narrow") / "servers") as started:
        # So many chunks that each peer has its share of every file.
        BlockingSpace(started.uri).make_bucket("b", BucketPolicy(chunk_size=MIB))
        yield started


def content(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def stored(space: NarrowSpace, seed: int) -> bytes:
    """Content that is in the space as `b/SEED`, and in no cache."""
    body = content(seed)
    BlockingSpace(space.uri).put(io.BytesIO(body), "b", str(seed))
    return body


def fetched(space: NarrowSpace, name: str) -> bytes:
    """`b/NAME` as the peers have it, past every mount."""
    sink = io.BytesIO()
    BlockingSpace(space.uri).get("b", name, sink)
    return sink.getvalue()


def timed_read(mount: Mount, seed: int, body: bytes) -> float:
    """Seconds that reading `b/SEED` takes."""
    start_s = time.monotonic()
    with (mount.path / "b" / str(seed)).open("rb", buffering=0) as file:
        pieces = list(iter(lambda: file.read(MIB), b""))
    elapsed_s = time.monotonic() - start_s
    assert b"".join(pieces) == body
    return elapsed_s


def write(mount: Mount, name: str, body: bytes) -> None:
    with (mount.path / "b" / name).open("wb", buffering=0) as file:
        file.write(body)
        os.fsync(file.fileno())


def told(mount: Mount, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((mount.path / ".mictlanfs" / name).read_text())
    return found


def test_a_narrow_peer_hardly_delays_readers_of_replicated_data(
    space: NarrowSpace, tmp_path: Path
) -> None:
    before, while_narrow = stored(space, 1), stored(space, 2)
    with mounted(space.uri, tmp_path, NETWORK) as mount:
        usual_s = timed_read(mount, 1, before)
        # A third of what is read would come from there, in 21 s.
        with space.throttled(0, 0.5e6):
            narrow_s = timed_read(mount, 2, while_narrow)
        slow = {peer["id"] for peer in told(mount, "peers")["peers"] if peer["is_slow"]}
        assert told(mount, "stats")["races"]["second_won"] >= 1
    assert "mictlanx-peer-0" in slow
    # What other tests do to the machine meanwhile differs from one to the next.
    assert narrow_s < 2 * usual_s + 3.0


def test_a_peer_that_has_stopped_hardly_delays_readers(space: NarrowSpace, tmp_path: Path) -> None:
    body = stored(space, 3)
    with mounted(space.uri, tmp_path, NETWORK) as mount, space.stopped(1):
        # Waiting for an answer would take 20 s.
        assert timed_read(mount, 3, body) < 18.0


def test_writers_turn_away_from_a_narrow_peer(space: NarrowSpace, tmp_path: Path) -> None:
    body = content(4, 3 * SIZE)
    with mounted(space.uri, tmp_path, NETWORK) as mount:
        with space.throttled(2, 10e6) as proxy:
            passed = proxy.passed_bytes["to"]
            write(mount, "written", body)
            passed = proxy.passed_bytes["to"] - passed
        # Two thirds of all would have gone there: 64 MiB.
        assert passed < 44 * MIB
    assert fetched(space, "written") == body


def test_a_peer_killed_in_the_middle_of_a_read_costs_nothing(
    space: NarrowSpace, tmp_path: Path
) -> None:
    body = stored(space, 5)
    with mounted(space.uri, tmp_path, NETWORK) as mount:
        space.kill_after(0, IN_A_CHUNK, "from")
        timed_read(mount, 5, body)
        assert space.is_killed(0)
    space.revive(0)
    space.kill_after(1, IN_A_CHUNK, "from")
    mictlanfs("get", "b/5", tmp_path / "got", "--uri", space.uri)
    assert (tmp_path / "got").read_bytes() == body
    assert space.is_killed(1)
    space.revive(1)


def test_a_peer_killed_in_the_middle_of_a_write_costs_nothing(
    space: NarrowSpace, tmp_path: Path
) -> None:
    body = content(6)
    with mounted(space.uri, tmp_path, NETWORK) as mount:
        space.kill_after(1, IN_A_CHUNK, "to")
        write(mount, "interrupted", body)
        assert space.is_killed(1)
    assert fetched(space, "interrupted") == body
    space.revive(1)
    (tmp_path / "source").write_bytes(body)
    space.kill_after(2, IN_A_CHUNK, "to")
    mictlanfs("put", tmp_path / "source", "b/6", "--uri", space.uri)
    assert space.is_killed(2)
    assert fetched(space, "6") == body
    space.revive(2)


def test_a_mount_whose_peers_take_their_time_loses_nothing_to_one_that_wants_its_lease(
    tmp_path: Path,
) -> None:
    body, lease_s = content(7, 4 * MIB), 1.0
    with (
        narrow_space(tmp_path / "servers", "--lease-ttl", str(lease_s)) as space,
        mounted(space.uri, tmp_path / "writer", NETWORK) as writer,
        mounted(space.uri, tmp_path / "reader", NETWORK) as reader,
        contextlib.ExitStack() as stack,
    ):
        path = Path("b", "slowly")
        BlockingSpace(space.uri).make_bucket("b", BucketPolicy(chunk_size=4 * MIB))
        for index in range(3):
            stack.enter_context(space.throttled(index, 1.5e6))
        start_s = time.monotonic()
        with (writer.path / path).open("wb", buffering=0) as file:
            file.write(body)
            # One chunk: nothing is committed, and no byte of it counts, before all is there.
            assert (reader.path / path).read_bytes() == body
            assert time.monotonic() - start_s > 2 * lease_s
            os.fsync(file.fileno())
