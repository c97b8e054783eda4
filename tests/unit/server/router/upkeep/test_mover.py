"""How copies are put into requests, and how fast they may go."""

import asyncio

import pytest

from mictlanfs.model import MIB, PeerNumber
from mictlanfs_server.metadata.copies import ChunkCopies
from mictlanfs_server.router.upkeep import mover
from mictlanfs_server.router.upkeep.mover import Pace
from mictlanfs_server.router.upkeep.planning import Copy
from tests.contract.metadata.forms import new_chunk
from tests.unit.server.router.fakes import FakeClock
from tests.unit.server.router.upkeep.copying import ONE, THREE, TWO


def copy(length: int, *sources: int) -> Copy:
    chunk = ChunkCopies(new_chunk().id, length, b"d" * 32, 2, tuple(sources))  # type: ignore[arg-type] # numbers
    return Copy(chunk, chunk.peers, THREE)


def test_request_holds_at_most_256_chunks_and_32_mib_of_one_source() -> None:
    copies = [copy(10, ONE) for _ in range(300)] + [copy(16 * MIB, ONE) for _ in range(3)]
    batches = list(mover._batches(copies, set()))
    assert [len(batch) for _, batch in batches] == [256, 45, 2]
    assert {source for source, _ in batches} == {ONE}
    large = [copy(40 * MIB, ONE), copy(10, ONE)]
    assert [len(batch) for _, batch in mover._batches(large, set())] == [1, 1]


def test_source_that_falls_silent_is_left_out_of_what_follows() -> None:
    silent: set[PeerNumber] = set()
    copies = [copy(20 * MIB, ONE, TWO), copy(20 * MIB, ONE, TWO), copy(20 * MIB, ONE)]
    sources = []
    for source, _ in mover._batches(copies, silent):
        sources.append(source)
        silent.add(ONE)
    assert sources == [ONE, TWO, None]


def test_pace_holds_back_what_is_above_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept = FakeClock(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr("mictlanfs_server.router.upkeep.mover.asyncio.sleep", sleep)

    async def main() -> None:
        pace = Pace(1000, clock)
        for _ in range(5):
            await pace.take(1000)
        assert sum(slept) == pytest.approx(3.0)
        await Pace(0, clock).take(10**12)
        assert sum(slept) == pytest.approx(3.0)

    asyncio.run(main())
