import asyncio
from pathlib import Path

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import Chunk, PeerNumber
from mictlanfs.wireverify import BAD_COPIES_MAX, BadCopies, DamagedFile, ReportCopy
from mictlanfs_server.router.verifying import REPEAT_S_MIN
from tests.contract.metadata.forms import kind_of, new_chunk
from tests.unit.server.router.verified import Verified, run_verified

ONE, TWO, THREE = PeerNumber(1), PeerNumber(2), PeerNumber(3)


async def reported(verified: Verified, chunk: Chunk, peer: PeerNumber) -> None:
    """A reader complains, and the router has looked."""
    count = verified.verifier.report_count
    asked = len(verified.peers.asked)
    await verified.verifier.report(ReportCopy(chunk.id, peer))
    async with asyncio.timeout(20):
        while verified.verifier.report_count == count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        while len(verified.peers.asked) == asked:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    # Its effect comes right behind, in order.
    await verified.parts.store.touch_sessions({})
    await asyncio.sleep(0.05)


def test_a_report_alone_changes_nothing(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await verified.parts.file_of(chunk)
        verified.peers.hold(1, chunk)
        await reported(verified, chunk, ONE)
        assert verified.peers.asked == [(1, chunk.id)]
        assert await verified.peers_of(chunk) == (ONE, TWO)
        assert verified.woken == []

    run_verified(tmp_path, scenario)


def test_a_bad_or_missing_copy_loses_its_row_and_healing_is_woken(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        bad, missing = new_chunk(10, (ONE, TWO)), new_chunk(20, (ONE, TWO))
        await verified.parts.file_of(bad, missing)
        verified.peers.hold(1, bad)
        verified.peers.bad.add((1, bad.id))
        await reported(verified, bad, ONE)
        assert await verified.peers_of(bad) == (TWO,)
        assert len(verified.woken) == 1
        verified.peers.hold(2)
        await reported(verified, missing, TWO)
        assert await verified.peers_of(missing) == (ONE,)
        assert verified.verifier.dropped_count == 2

    run_verified(tmp_path, scenario)


def test_the_same_report_is_followed_up_once_in_a_while(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await verified.parts.file_of(chunk)
        verified.peers.hold(1, chunk)
        await reported(verified, chunk, ONE)
        await verified.verifier.report(ReportCopy(chunk.id, ONE))
        await asyncio.sleep(0.02)
        assert len(verified.peers.asked) == 1
        verified.parts.clock.advance(REPEAT_S_MIN)
        await reported(verified, chunk, ONE)
        assert len(verified.peers.asked) == 2

    run_verified(tmp_path, scenario)


def test_reports_of_what_nobody_needs_or_of_other_peers_are_passed_over(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await verified.parts.file_of(chunk)
        for chunk_id, peer in ((new_chunk_id(), ONE), (chunk.id, THREE), (chunk.id, PeerNumber(9))):
            await verified.verifier.report(ReportCopy(chunk_id, peer))
        await asyncio.sleep(0.05)
        assert verified.peers.asked == []

    run_verified(tmp_path, scenario)


def test_a_peer_that_does_not_answer_keeps_its_rows(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await verified.parts.file_of(chunk)
        verified.peers.broken.add(1)
        await verified.verifier.report(ReportCopy(chunk.id, ONE))
        await asyncio.sleep(0.05)
        assert await verified.peers_of(chunk) == (ONE, TWO)
        verified.peers.broken.clear()
        verified.peers.hold(1)
        verified.parts.clock.advance(REPEAT_S_MIN)
        await verified.parts.announce(1, 2, 3)
        await reported(verified, chunk, ONE)
        assert await verified.peers_of(chunk) == (TWO,)

    run_verified(tmp_path, scenario)


def test_the_last_copy_keeps_its_row_and_its_file_is_named(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        chunk, other = new_chunk(10, (ONE, TWO)), new_chunk(20, (TWO,))
        await verified.parts.file_of(chunk, other)
        tell = verified.verifier.bad_copies
        assert (await tell(BadCopies("peer-1", (chunk.id,)))).chunks == ()
        assert await verified.verifier.damaged() == []
        answer = await tell(BadCopies("peer-2", (chunk.id, other.id, new_chunk_id())))
        assert answer.chunks == (chunk.id, other.id)
        # Told again after a crash: the same answer.
        assert await tell(BadCopies("peer-2", (chunk.id, other.id))) == answer
        assert await verified.peers_of(chunk) == await verified.peers_of(other) == (TWO,)
        damaged = await verified.verifier.damaged()
        assert sorted(damaged, key=lambda one: one.chunk) == sorted(
            (DamagedFile(one.id.hex(), ("bucket/file",)) for one in (chunk, other)),
            key=lambda one: one.chunk,
        )
        # Somebody brought the bytes back.
        verified.peers.hold(2, chunk, other)
        state = await verified.check(repair=True)
        assert state.damaged == ()

    run_verified(tmp_path, scenario)


def test_a_peer_that_is_not_known_is_not_believed(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        tell = verified.verifier.bad_copies
        assert await kind_of(tell(BadCopies("peer-9", ()))) is Kind.NOT_FOUND
        too_many = tuple(new_chunk_id() for _ in range(BAD_COPIES_MAX + 1))
        assert await kind_of(tell(BadCopies("peer-1", too_many))) is Kind.INVALID

    run_verified(tmp_path, scenario)


def test_its_messages_are_among_those_of_the_router(tmp_path: Path) -> None:
    async def scenario(verified: Verified) -> None:
        paths = {route.path for route in verified.verifier.routes() + verified.auditor.routes()}
        assert paths == {wire.Path.PEER_BAD, wire.Path.REPORT, wire.Path.CHECK}

    run_verified(tmp_path, scenario)
