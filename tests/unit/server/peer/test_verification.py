"""Bad copies on a peer: found by reads, routers and the scrub, and never served again."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer, ChunkId
from mictlanfs.wireverify import BadCopies, LastCopies, ScrubState, Verdict
from mictlanfs_server.peer import badcopies, badreports
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.backends.file import FileBackend
from mictlanfs_server.peer.badreports import BadReports
from mictlanfs_server.peer.index import Index
from mictlanfs_server.peer.inspection import Inspector
from mictlanfs_server.peer.recovery import reconcile
from mictlanfs_server.peer.scrubbing import STATE_NAME, Scrubber
from mictlanfs_server.peer.store import ChunkStore
from tests.support.damaging import DAMAGES, flip_a_bit
from tests.unit.server.peer.making import make_chunk, on_asyncio, open_store, pieces_of

LARGE = 200_000
SMALL = 3_000
RATE = 1_000_000_000


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


@dataclass
class Router:
    """Takes reports of bad copies; it says of `last` that they were last ones."""

    last: tuple[ChunkId, ...] = ()
    is_gone: bool = False
    told: list[ChunkId] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self, method: str, url: str, **values: object) -> Answer:
        assert (method, url) == ("POST", "http://router" + wire.Path.PEER_BAD)
        if self.is_gone:
            raise MictlanError(Kind.UNAVAILABLE)
        body = values["body"]
        assert isinstance(body, bytes)
        request = wire.decode(body, BadCopies)
        assert request.peer_id == "peer-1"
        self.told += request.chunks
        self.news.set()
        last = tuple(chunk for chunk in request.chunks if chunk in self.last)
        return Answer(200, wire.encode(LastCopies(last)))


@dataclass
class Peer:
    """A store with what verifies it."""

    folder: Path
    store: ChunkStore
    router: Router
    reports: BadReports
    inspector: Inspector

    async def put(self, length: int, seed: int = 0) -> tuple[StoredChunk, bytes]:
        chunk, body = make_chunk(length, seed)
        assert await self.store.put(chunk, pieces_of(body))
        return chunk, body

    def file_of(self, chunk: StoredChunk) -> Path:
        [path] = (self.folder / "chunks").rglob(f"{chunk.id.hex()}.*")
        return path

    def damage_row(self, chunk: StoredChunk) -> None:
        """Flip a bit of a small chunk."""
        with sqlite3.connect(self.folder / "index.sqlite") as connection:
            [(number, body)] = connection.execute(
                "SELECT number, bodies.body FROM chunks JOIN bodies ON number = chunks.body"
                " WHERE id = ?",
                (chunk.id,),
            ).fetchall()
            changed = bytes([body[0] ^ 1]) + body[1:]
            connection.execute("UPDATE bodies SET body = ? WHERE number = ?", (changed, number))
        connection.close()

    def is_served(self, chunk: StoredChunk) -> bool:
        return self.store.index.find(chunk.id) is not None

    def scrubber(self, period_s: float = 0, rate: int = RATE) -> Scrubber:
        return Scrubber(self.store, self.inspector, self.folder, rate, period_s)

    async def scrubbed(self) -> ScrubState:
        """The state after one pass that was asked for."""
        scrubber = self.scrubber()
        scrubber.begin()
        async with running(scrubber):
            await until(lambda: not scrubber.state().is_running)
        return scrubber.state()


@asynccontextmanager
async def peer_of(folder: Path) -> AsyncIterator[Peer]:
    with open_store(folder) as store:
        router = Router()
        # The part of the transport that is used.
        reports = BadReports(store, router, lambda: "http://router", "peer-1")  # type: ignore[arg-type]
        yield Peer(folder, store, router, reports, Inspector(store, reports.wake))


async def kind_or(work: Awaitable[Buffer]) -> Kind | bytes:
    """The bytes, or the kind of the error in their place."""
    try:
        return bytes(await work)
    except MictlanError as error:
        return error.kind


async def kind_of(work: Awaitable[object]) -> Kind | None:
    try:
        await work
    except MictlanError as error:
        return error.kind
    return None


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition` is true: a scrub says nothing, it is looked at."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - see above.
            await asyncio.sleep(0.001)


@asynccontextmanager
async def running(scrubber: Scrubber) -> AsyncIterator[Scrubber]:
    """A scrub at work inside the block."""
    task = asyncio.create_task(scrubber.run())
    try:
        yield scrubber
    finally:
        task.cancel()
        await asyncio.wait([task])


# --- reads ---------------------------------------------------------------------------------------


@on_asyncio
async def test_no_part_of_a_damaged_block_is_sent(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        for damage, change in DAMAGES.items():
            chunk, body = await peer.put(LARGE)
            change(peer.file_of(chunk))
            wrong = 0
            for start, end in ((0, 1), (0, 65_536), (65_000, 66_000), (70_000, 70_001), (1, LARGE)):
                found = await kind_or(peer.store.read(chunk, start, end))
                assert found in {Kind.CORRUPT, bytes(body[start:end])}, damage
                wrong += found is Kind.CORRUPT
            # A byte too many is nobody's to read: the scrub finds it.
            assert wrong >= (damage != "extended"), damage


@on_asyncio
async def test_a_reader_that_meets_damage_has_the_copy_taken_out(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, _ = await peer.put(LARGE)
        flip_a_bit(peer.file_of(chunk), 100_000)
        tasks = [
            asyncio.create_task(peer.inspector.run()),
            asyncio.create_task(peer.reports.run()),
        ]
        assert await kind_of(peer.store.read(chunk, 99_999, 100_002)) is Kind.CORRUPT
        async with asyncio.timeout(20):
            await peer.router.news.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert peer.router.told == [chunk.id]
        assert not peer.is_served(chunk)
        assert await kind_of(peer.store.read(chunk, 0, 10)) is Kind.NOT_FOUND


@on_asyncio
async def test_part_of_a_damaged_small_chunk_is_not_sent(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, body = await peer.put(SMALL)
        found, whole = peer.store.open(chunk.id)
        assert whole is not None
        assert bytes(peer.store.part_of(found, whole, 5, 9)) == body[5:9]
        peer.damage_row(chunk)
        found, whole = peer.store.open(chunk.id)
        assert whole is not None
        with pytest.raises(MictlanError) as caught:
            peer.store.part_of(found, whole, 5, 9)
        assert caught.value.kind is Kind.CORRUPT


@on_asyncio
async def test_checksums_that_are_missing_are_made_when_they_are_needed(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, body = await peer.put(LARGE)
        sums = peer.store.index.sums(chunk.id)
        await peer.store.index.keep_sums(chunk, b"")
        assert bytes(await peer.store.read(chunk, 7, 9)) == body[7:9]
        assert peer.store.index.sums(chunk.id) == sums


@on_asyncio
async def test_wrong_checksums_of_a_good_chunk_are_made_anew(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, body = await peer.put(LARGE)
        sums = peer.store.index.sums(chunk.id)
        await peer.store.index.keep_sums(chunk, bytes(len(sums)))
        assert await kind_of(peer.store.read(chunk, 7, 9)) is Kind.CORRUPT
        assert await peer.inspector.inspect(chunk) is Verdict.GOOD
        assert bytes(await peer.store.read(chunk, 7, 9)) == body[7:9]


# --- verdicts ------------------------------------------------------------------------------------


@on_asyncio
async def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        other, _ = await peer.put(LARGE, 1)
        for damage, change in DAMAGES.items():
            chunk, _ = await peer.put(LARGE)
            path = peer.file_of(chunk)
            change(path)
            is_missing = not path.exists()
            verdict = await peer.inspector.judge(chunk)
            assert verdict is (Verdict.MISSING if is_missing else Verdict.BAD), damage
            assert not path.exists()
            assert (tmp_path / "quarantine" / path.name).exists() is not is_missing
            assert not peer.is_served(chunk)
            assert await peer.inspector.judge(chunk) is Verdict.MISSING
        assert await peer.inspector.judge(other) is Verdict.GOOD
        assert peer.store.chunk_count == 1


@on_asyncio
async def test_swapped_files_are_both_bad(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunks = [(await peer.put(LARGE, seed))[0] for seed in range(2)]
        one, two = map(peer.file_of, chunks)
        between = tmp_path / "between"
        one.rename(between)
        two.rename(one)
        between.rename(two)
        assert [await peer.inspector.judge(chunk) for chunk in chunks] == [Verdict.BAD] * 2


@on_asyncio
async def test_a_damaged_small_chunk_is_kept_aside(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, _ = await peer.put(SMALL)
        peer.damage_row(chunk)
        assert await peer.inspector.judge(chunk) is Verdict.BAD
        assert not peer.is_served(chunk)
        assert badcopies.totals(peer.store.index) == (1, SMALL, 1)


@on_asyncio
async def test_other_bytes_than_the_metadata_means_are_bad(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, _ = await peer.put(LARGE)
        named = StoredChunk(chunk.id, chunk.length, bytes(32))
        assert await peer.inspector.judge(named) is Verdict.BAD
        assert not peer.is_served(chunk)


@on_asyncio
async def test_a_good_copy_is_taken_again_after_a_bad_one(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, body = await peer.put(LARGE)
        flip_a_bit(peer.file_of(chunk), 1)
        assert await peer.inspector.judge(chunk) is Verdict.BAD
        assert await peer.store.put(chunk, pieces_of(body))
        assert bytes(await peer.store.read(chunk, 0, 100)) == body[:100]
        # It may be damaged again.
        flip_a_bit(peer.file_of(chunk), 2)
        assert await peer.inspector.judge(chunk) is Verdict.BAD
        assert badcopies.totals(peer.store.index)[0] == 1


@on_asyncio
async def test_a_chunk_that_is_being_written_gets_no_verdict(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, body = await peer.put(LARGE)
        path = peer.file_of(chunk)
        flip_a_bit(path, 1)
        with peer.store._claim([chunk]):
            assert await peer.inspector.judge(chunk) is Verdict.UNKNOWN
        assert peer.is_served(chunk)
        assert body


# --- restarts ------------------------------------------------------------------------------------


@on_asyncio
async def test_a_crash_before_the_row_went_is_made_good_at_the_start(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, _ = await peer.put(LARGE)
        # The step before the row goes.
        assert await peer.store.backend.set_aside(chunk)
    backend, index = FileBackend(tmp_path), Index(tmp_path / "index.sqlite")
    reconcile(index, backend)
    assert index.find(chunk.id) is None
    assert badcopies.not_told(index, 9) == [chunk.id]
    assert list(backend.chunks_aside()) == [chunk]
    index.close()
    backend.close()


@on_asyncio
async def test_a_file_aside_that_no_row_tells_of_is_removed_at_the_start(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, _ = await peer.put(LARGE)
        flip_a_bit(peer.file_of(chunk), 1)
        await peer.inspector.judge(chunk)
        await peer.store.index.change(badcopies.forget([chunk.id]))
    backend, index = FileBackend(tmp_path), Index(tmp_path / "index.sqlite")
    reconcile(index, backend)
    assert list(backend.chunks_aside()) == []
    index.close()
    backend.close()


@on_asyncio
async def test_what_no_router_was_told_is_told_after_a_restart(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunk, _ = await peer.put(LARGE)
        flip_a_bit(peer.file_of(chunk), 1)
        peer.router.is_gone = True
        await peer.inspector.judge(chunk)
        assert await kind_of(peer.reports.report()) is Kind.UNAVAILABLE
    async with peer_of(tmp_path) as peer:
        await peer.reports.report()
        assert peer.router.told == [chunk.id]
        await peer.reports.report()
        assert peer.router.told == [chunk.id]


@on_asyncio
async def test_bad_copies_are_let_go_when_a_router_knows_and_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer_of(tmp_path) as peer:
        chunks = [(await peer.put(LARGE, seed))[0] for seed in range(3)]
        for chunk in chunks:
            flip_a_bit(peer.file_of(chunk), 1)
            await peer.inspector.judge(chunk)
        aside = tmp_path / "quarantine"
        found_s = 4_000_000_000
        await peer.reports.sweep(found_s)
        assert len(list(aside.iterdir())) == 3, "nobody was told"
        peer.router.last = (chunks[0].id,)
        await peer.reports.report()
        [first, *_] = badcopies.kept_aside(peer.store.index)
        await peer.reports.sweep(first.found_s + badreports.ASIDE_S_MAX - 60)
        assert len(list(aside.iterdir())) == 3
        monkeypatch.setattr(badreports, "ASIDE_SIZE_BYTES_MAX", LARGE)
        await peer.reports.sweep(first.found_s)
        # The last copy of a chunk stays longest.
        assert [path.name.split(".")[0] for path in aside.iterdir()] == [chunks[0].id.hex()]
        await peer.reports.sweep(first.found_s + badreports.ASIDE_S_MAX)
        assert list(aside.iterdir()) == []
        assert badcopies.totals(peer.store.index) == (0, 0, 0)


# --- the scrub -----------------------------------------------------------------------------------


@on_asyncio
async def test_a_pass_finds_all_that_is_bad_and_nothing_else(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunks = [(await peer.put(LARGE, seed))[0] for seed in range(len(DAMAGES))]
        small = [(await peer.put(SMALL, seed))[0] for seed in range(70)]
        good = [(await peer.put(LARGE + 5, 1))[0], small[0]]
        for chunk, damage in zip(chunks, DAMAGES.values(), strict=True):
            damage(peer.file_of(chunk))
        for chunk in small[1:3]:
            peer.damage_row(chunk)
        state = await peer.scrubbed()
        count = len(DAMAGES) + 71
        assert (state.passes, state.checked_count) == (1, count)
        assert state.bad_count == state.quarantined_count == len(DAMAGES) + 2
        assert state.total_count == count - state.bad_count
        assert not any(map(peer.is_served, chunks + small[1:3]))
        assert all(map(peer.is_served, good + small[3:]))
        assert (await peer.scrubbed()).bad_count == 0


@on_asyncio
async def test_the_next_process_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunks = sorted([(await peer.put(SMALL, seed))[0].id for seed in range(10)])
        # A chunk a second at this rate.
        scrubber = peer.scrubber(rate=SMALL + 4096)
        scrubber.begin()
        async with running(scrubber):
            await until(lambda: scrubber.state().checked_count == 1)
        told = json.loads((tmp_path / STATE_NAME).read_text())
        assert (told["position"], told["is_running"]) == (chunks[0].hex(), True)
        # What lies behind is not read again.
        await peer.store.delete(chunks[:1])
        async with running(peer.scrubber()) as again:
            await until(lambda: not again.state().is_running)
        assert (again.state().checked_count, again.state().passes) == (10, 1)


@on_asyncio
async def test_asking_for_a_pass_begins_anew_and_asking_twice_does_not(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        chunks = sorted([(await peer.put(SMALL, seed))[0].id for seed in range(3)])
        saved = {"position": chunks[1].hex(), "is_running": True, "checked_count": 2}
        (tmp_path / STATE_NAME).write_text(json.dumps(saved))
        scrubber = peer.scrubber()
        scrubber.begin()
        async with running(scrubber):
            await until(lambda: scrubber.state().passes == 1)
            assert scrubber.state().checked_count == 3
        (tmp_path / STATE_NAME).write_text(json.dumps({**saved, "is_asked": True}))
        scrubber = peer.scrubber()
        scrubber.begin()
        async with running(scrubber):
            await until(lambda: scrubber.state().passes == 1)
            assert scrubber.state().checked_count == 3


@on_asyncio
async def test_a_pass_that_nobody_asked_for_comes_when_its_period_is_over(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        await peer.put(SMALL)
        async with running(peer.scrubber(period_s=0.01)) as scrubber:
            await until(lambda: scrubber.state().passes >= 2)
        assert not scrubber.state().is_asked


@on_asyncio
async def test_a_scrub_reads_no_faster_than_its_rate(tmp_path: Path) -> None:
    async with peer_of(tmp_path) as peer:
        for seed in range(5):
            await peer.put(LARGE, seed)
        scrubber = peer.scrubber(rate=2_000_000)
        scrubber.begin()
        started_s = time.monotonic()
        async with running(scrubber):
            await until(lambda: scrubber.state().passes == 1)
        # A million bytes at two million a second.
        assert time.monotonic() - started_s >= 0.5


@on_asyncio
async def test_a_damaged_position_costs_a_pass_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with peer_of(tmp_path) as peer:
        await peer.put(SMALL)
        for text in ("", "{", '{"position": "zz"}', '{"position": 5}', "[]"):
            caplog.clear()
            (tmp_path / STATE_NAME).write_text(text)
            assert (await peer.scrubbed()).checked_count == 1
            assert "begins anew" in caplog.text
