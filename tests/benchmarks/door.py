"""The MictlanX v4 door under load: rates, and what they cost router, peers and client in processor.

Sends what the public client sends: for each put the two steps, the bytes in pieces and without a
length; for each get the metadata and then the bytes. `scale` is 1.0 for real figures.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from mictlanfs.uri import parse_routers
from tests.benchmarks.processes import processor_s, server_pids
from tests.benchmarks.workloads import BLOCKS, MIB
from tests.support.spaces import Space, running_space

API = "/api/v4"
SMALL_SIZE_BYTES = 4096
# As its own `put` cuts a chunk on the wire.
PIECE_SIZE_BYTES = MIB
TIMEOUT_S = 120.0


def sha256(data: bytes | memoryview) -> str:
    """As the interface writes it."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Piece:
    """One record to be put, with everything about it that is no part of what is measured."""

    key: str
    data: bytes
    checksum: str
    ball: str
    tags: dict[str, str]


class Door:
    """The router of a space by its v4 interface. Used by several threads at once."""

    def __init__(self, uri: str) -> None:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        self.client = httpx.Client(
            base_url=parse_routers(uri)[0].base_url,
            timeout=TIMEOUT_S,
            limits=limits,
            trust_env=False,
        )

    def put(self, bucket: str, piece: Piece) -> None:
        """Both steps of a put."""
        described = {
            "bucket_id": bucket,
            "key": piece.key,
            "ball_id": piece.ball,
            "checksum": piece.checksum,
            "producer_id": "bench",
            "size": len(piece.data),
            "tags": piece.tags,
            "content_type": "application/octet-stream",
            "is_disabled": False,
            "replication_factor": 1,
        }
        answer = self.client.post(f"{API}/buckets/{bucket}/metadata", json=described)
        assert answer.status_code == 200, answer.text
        (task,) = answer.json()["tasks_ids"]
        answer = self.client.post(
            f"{API}/buckets/data/{task}/chunked",
            content=_in_pieces(piece.data),
            headers={"Content-Type": "application/octet-stream"},
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["size"] == len(piece.data)

    def get(self, bucket: str, piece: Piece) -> None:
        """The metadata and the bytes of what was put, from the peers and not from the cache."""
        answer = self.client.get(f"{API}/buckets/{bucket}/metadata/{piece.key}")
        assert answer.status_code == 200, answer.text
        assert answer.json()["metadata"]["checksum"] == piece.checksum
        headers = {"Accept-Encoding": "identity", "Chunk-Size": "1MB", "Force-Get": "1"}
        answer = self.client.get(f"{API}/buckets/{bucket}/{piece.key}", headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.content == piece.data


def _in_pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE_SIZE_BYTES):
        yield data[start : start + PIECE_SIZE_BYTES]


def small_pieces(count: int) -> list[Piece]:
    """Records of 4 KiB, each a ball of its own."""
    return [
        _piece(f"s{index}", 0, 1, BLOCKS[index % 8][index : index + SMALL_SIZE_BYTES])
        for index in range(count)
    ]


def chunks_of_a_ball(count: int) -> list[Piece]:
    """The chunks of 1 MiB of one ball."""
    whole = hashlib.sha256()
    for index in range(count):
        whole.update(BLOCKS[index % 8])
    checksums = [sha256(block) for block in BLOCKS]
    tags = {"num_chunks": str(count), "full_checksum": whole.hexdigest()}
    return [
        Piece(
            f"large_{index}",
            BLOCKS[index % 8],
            checksums[index % 8],
            "large",
            {**tags, "index": str(index), "chunk_size": str(MIB)},
        )
        for index in range(count)
    ]


def _piece(ball: str, index: int, count: int, data: bytes) -> Piece:
    checksum = sha256(data)
    tags = {"num_chunks": str(count), "full_checksum": checksum, "index": str(index)}
    return Piece(f"{ball}_{index}", data, checksum, ball, {**tags, "chunk_size": str(len(data))})


@dataclass(frozen=True)
class DoorWorkload:
    """A workload.

    Attributes:
        unit: of the rate; there is one for each piece.
        pieces: what is put, or what was put before, at a scale.
        at_once: pieces under way at the same time.
        needs: the workload whose records it gets.
    """

    name: str
    unit: str
    pieces: Callable[[float], list[Piece]]
    at_once: int = 1
    needs: str = ""


def _small(scale: float) -> list[Piece]:
    return small_pieces(max(1, int(1000 * scale)))


def _large(scale: float) -> list[Piece]:
    return chunks_of_a_ball(max(1, int(1024 * scale)))


DOOR_WORKLOADS = {
    found.name: found
    for found in (
        DoorWorkload("v4-small-put", "puts/s", _small),
        DoorWorkload("v4-small-put-by-8", "puts/s", _small, at_once=8),
        # As many at once as the public client has.
        DoorWorkload("v4-put", "MiB/s", _large, at_once=10),
        DoorWorkload("v4-get", "MiB/s", _large, at_once=10, needs="v4-put"),
    )
}


@dataclass
class Cost:
    """What one run took.

    Attributes:
        count: units done.
        seconds: by the clock.
        router_s, peers_s, client_s: of processors.
    """

    count: int
    seconds: float
    router_s: float
    peers_s: float
    client_s: float


@dataclass
class DoorResult:
    """All runs of one workload."""

    workload: DoorWorkload
    costs: list[Cost] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Units a second, by round."""
        return [cost.count / cost.seconds for cost in self.costs]


@contextmanager
def _counting(space: Space, count: int, costs: list[Cost]) -> Iterator[None]:
    """Note what the block costs."""
    router, *peers = server_pids(space.data)
    watched = ([router], peers, [os.getpid()])
    before = [sum(map(processor_s, pids)) for pids in watched]
    started_s = time.perf_counter()
    yield
    seconds = time.perf_counter() - started_s
    after = [sum(map(processor_s, pids)) for pids in watched]
    used = [late - early for early, late in zip(before, after, strict=True)]
    costs.append(Cost(count, seconds, *used))


def run_door_rounds(
    found: Sequence[DoorWorkload], rounds: int, scale: float, base: Path
) -> list[DoorResult]:
    """Every workload `rounds` times, each time in new buckets, on a space of three peers."""
    results = {one.name: DoorResult(one) for one in found}
    if not found:
        return []
    with running_space(base / "door") as space:
        door = Door(space.uri)
        with door.client:
            for number in range(rounds):
                for one in found:
                    bucket = f"r{number}{(one.needs or one.name).replace('-', '')}"
                    _run(space, door, one, bucket, scale, results[one.name].costs)
    return list(results.values())


def _run(
    space: Space, door: Door, one: DoorWorkload, bucket: str, scale: float, costs: list[Cost]
) -> None:
    pieces = one.pieces(scale)
    act = door.get if one.needs else door.put
    with ThreadPoolExecutor(one.at_once) as threads:
        # Threads and connections are there before it counts.
        list(threads.map(lambda _: door.client.get("/mictlanfs/v1/health"), range(one.at_once)))
        with _counting(space, len(pieces), costs):
            # All of them, or the first error.
            list(threads.map(act, itertools.repeat(bucket), pieces))


def door_table(results: Sequence[DoorResult]) -> str:
    """Medians of rates and of processor use, as Markdown.

    A share is seconds of processors by seconds of the clock: 100 % is one processor all the time.
    """
    lines = ["| v4 door | rate | router | peers | client | router, each |", f"|{'---|' * 6}"]
    for result in results:
        unit = result.workload.unit
        shares = [
            statistics.median(getattr(cost, name) / cost.seconds for cost in result.costs)
            for name in ("router_s", "peers_s", "client_s")
        ]
        each_ms = statistics.median(1000 * c.router_s / c.count for c in result.costs)
        cells = [f"{result.workload.name} ({unit})", f"{statistics.median(result.rates):,.0f}"]
        cells += [*(f"{share:.0%}" for share in shares), f"{each_ms:.2f} ms"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
