from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, FileKind, InodeNumber, PeerMap, SessionId, Struct
from mictlanfs_server.v4.space import Changes

ROOT = Attributes(InodeNumber(1), FileKind.DIRECTORY, 0o777, 0, 0, 0, 0, 0, 0, 2)


class FakeSpace:
    """A router that applies every operation but `Unlink` of the name `bad`."""

    def __init__(self) -> None:
        self.batches: list[wire.Commit] = []
        self.sessions = 0
        self.closed = 0
        self.failures: list[MictlanError] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, path: str, request: Struct, answer: type[Any]) -> Any:
        await asyncio.sleep(0)
        if path == wire.Path.SESSION_OPEN:
            self.sessions += 1
            inodes = wire.InodeRange(self.sessions * 1000, 3)
            return wire.SessionGrant(
                SessionId(f"s{self.sessions}"), 1, "space", 30, 5, inodes, ROOT, PeerMap(1, ())
            )
        if path == wire.Path.SESSION_INODES:
            return wire.InodeRange(self.sessions * 1000 + 500, 3)
        if path == wire.Path.SESSION_CLOSE:
            self.closed += 1
            return wire.Done()
        assert isinstance(request, wire.Commit)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(request)
        results = []
        for op in request.ops:
            assert isinstance(op, wire.Unlink)
            is_bad = op.name == b"bad"
            error = wire.WireError.of(MictlanError(Kind.NOT_FOUND, "unlink", "bad"))
            results.append(wire.OpResult(error=error) if is_bad else wire.OpResult((ROOT,)))
            if is_bad and request.stop_on_error:
                break
        return wire.CommitAnswer(tuple(results))

    async def peer_map(self) -> PeerMap:
        return PeerMap(1, ())


def unlink(name: str) -> wire.Unlink:
    return wire.Unlink(InodeNumber(1), name.encode(), 0)


def test_changes_of_many_callers_share_batches() -> None:
    async def main() -> None:
        space = FakeSpace()
        changes = Changes(space, "test")
        space.gate.clear()
        tasks = [
            asyncio.create_task(changes.apply([unlink(f"{i}a"), unlink(f"{i}b")]))
            for i in range(1000)
        ]
        await asyncio.sleep(0.01)
        space.gate.set()
        answers = await asyncio.gather(*tasks)
        assert answers == [[(ROOT,), (ROOT,)]] * 1000
        assert len(space.batches) <= 3
        assert all(batch.sync for batch in space.batches)
        ops = [op for batch in space.batches for op in batch.ops]
        assert ops == [unlink(f"{i}{letter}") for i in range(1000) for letter in "ab"]
        numbers = [batch.first_number for batch in space.batches]
        sizes = [len(batch.ops) for batch in space.batches]
        assert numbers == [1 + sum(sizes[:i]) for i in range(len(sizes))]
        await changes.close()
        assert (space.sessions, space.closed) == (1, 1)

    asyncio.run(main())


def test_each_caller_gets_its_own_errors() -> None:
    async def main() -> None:
        changes = Changes(FakeSpace(), "test")
        good, bad = await asyncio.gather(
            changes.apply([unlink("a")]),
            changes.apply([unlink("bad"), unlink("b")]),
            return_exceptions=True,
        )
        assert good == [(ROOT,)]
        assert isinstance(bad, MictlanError)
        assert bad.kind is Kind.NOT_FOUND
        await changes.close()

    asyncio.run(main())


def test_strict_changes_travel_alone_and_end_at_the_first_failure() -> None:
    async def main() -> None:
        space = FakeSpace()
        changes = Changes(space, "test")
        strict = changes.submit([unlink("a"), unlink("bad"), unlink("c")], is_strict=True)
        results, _, _ = await asyncio.gather(
            strict, changes.apply([unlink("x")]), changes.apply([unlink("y")])
        )
        assert [result.error is None for result in results] == [True, False]
        assert [len(batch.ops) for batch in space.batches] == [3, 2]
        assert [batch.first_number for batch in space.batches] == [1, 3]
        await changes.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [Kind.FENCED, Kind.CONFLICT])
def test_session_that_is_lost_is_replaced_and_the_batch_goes_on(kind: Kind) -> None:
    async def main() -> None:
        space = FakeSpace()
        changes = Changes(space, "test")
        await changes.apply([unlink("a")])
        space.failures.append(MictlanError(kind))
        await changes.apply([unlink("b")])
        assert space.sessions == 2
        assert [(b.session, b.first_number) for b in space.batches] == [("s1", 1), ("s2", 1)]
        await changes.close()

    asyncio.run(main())


def test_failure_of_a_batch_is_that_of_all_in_it_and_of_no_other() -> None:
    async def main() -> None:
        space = FakeSpace()
        changes = Changes(space, "test")
        space.failures.append(MictlanError(Kind.UNAVAILABLE))
        with pytest.raises(MictlanError) as caught:
            await changes.apply([unlink("a")])
        assert caught.value.kind is Kind.UNAVAILABLE
        assert await changes.apply([unlink("b")]) == [(ROOT,)]
        await changes.close()

    asyncio.run(main())


def test_inode_numbers_are_given_once_and_asked_for_when_they_run_out() -> None:
    async def main() -> None:
        changes = Changes(FakeSpace(), "test")
        first = await asyncio.gather(*(changes.new_inode() for _ in range(3)))
        more = await asyncio.gather(*(changes.new_inode() for _ in range(3)))
        assert sorted(first) == [1000, 1001, 1002]
        assert sorted(more) == [1500, 1501, 1502]
        await changes.close()

    asyncio.run(main())


def test_caller_that_gives_up_holds_up_nobody() -> None:
    async def main() -> None:
        space = FakeSpace()
        changes = Changes(space, "test")
        space.gate.clear()
        first = asyncio.create_task(changes.apply([unlink("a")]))
        second = asyncio.create_task(changes.apply([unlink("b")]))
        await asyncio.sleep(0.01)
        first.cancel()
        space.gate.set()
        assert await second == [(ROOT,)]
        with pytest.raises(asyncio.CancelledError):
            await first
        await changes.close()

    asyncio.run(main())
