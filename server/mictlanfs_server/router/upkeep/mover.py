"""Makes copies: has peers fetch chunks from one another, and records what they have then.

Order of durability: a copy is durable on its peer, then it gets its row. A crash in between leaves
a copy without a row, which the next attempt finds and counts, never a row without a copy.

A source that turns out not to have its copy, or a bad one, is passed over for the next. It loses
its row when the chunk was copied from another, and never before: what looks bad may be all there
is.

Owns the bounds: bytes a second, bytes a request, peers that fetch at a time. Decides nothing about
which copies there should be.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.fragments import fragment_size
from mictlanfs.wirecopies import PULL_SIZE_BYTES_MAX
from mictlanfs_server.router.peerrequests import delete_on_peer, pull
from mictlanfs_server.router.upkeep.fragments import FragmentMaker
from mictlanfs_server.router.upkeep.planning import Copy

if TYPE_CHECKING:
    from mictlanfs.clock import Clock
    from mictlanfs.model import ChunkId, PeerNumber
    from mictlanfs_server.metadata.copies import ChunkCopies, CopyStore
    from mictlanfs_server.router.peerrequests import Transport
    from mictlanfs_server.router.upkeep.standing import Standing

log = logging.getLogger(__name__)

# Peers that fetch at the same time, each from one other: the rest of the space has work to do.
TARGETS_AT_ONCE: Final = 4
# The source has no good copy, says the peer that wanted it.
_BAD_COPY: Final = frozenset({Kind.NOT_FOUND, Kind.CORRUPT})


@dataclass(slots=True)
class Moved:
    """What became of copies that were to be made.

    Attributes:
        copies: that were made and have a row.
        size: bytes of these.
        failed: that were not made.
        reasons: of these, one for each kind of trouble.
    """

    copies: list[Copy] = field(default_factory=list)
    size: int = 0
    failed: list[Copy] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)


class Pace:
    """At most so many bytes a second, on average; bursts last no longer than a second.

    Args:
        bytes_per_s: 0: as fast as it goes.
    """

    def __init__(self, bytes_per_s: int, clock: Clock) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at_s = 0.0

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be moved."""
        if not self._bytes_per_s:
            return
        now_s = self._clock.monotonic_s()
        starts_s = max(self._free_at_s, now_s - 1.0)
        self._free_at_s = starts_s + size / self._bytes_per_s
        if starts_s > now_s:
            await asyncio.sleep(starts_s - now_s)


@dataclass(slots=True)
class _Round:
    """One list of copies on its way.

    Attributes:
        is_check: the copies have rows already, and are looked at.
        silent: peers that do not answer, or take nothing, as far as was noticed.
        bad: peers whose copies of a chunk are missing or damaged, by the chunk and who says so.
    """

    standing: Standing
    raises_wanted: bool = False
    is_check: bool = False
    moved: Moved = field(default_factory=Moved)
    silent: set[PeerNumber] = field(default_factory=set)
    bad: dict[tuple[ChunkId, PeerNumber], list[PeerNumber]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def name(self, number: PeerNumber) -> str:
        return self.standing.peers[number].id

    def url(self, number: PeerNumber) -> str:
        return self.standing.peers[number].url


class Mover:
    """Makes copies, one list after the other; used by one task at a time.

    Args:
        give_up_at_ns: when a fragment that moves now may be deleted where it was.
    """

    def __init__(
        self,
        store: CopyStore,
        transport: Transport,
        pace: Pace,
        give_up_at_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        self._store = store
        self._transport = transport
        self._pace = pace
        self._fragments = FragmentMaker(store, transport, give_up_at_ns)

    async def make(
        self, copies: Sequence[Copy], standing: Standing, *, raises_wanted: bool = False
    ) -> Moved:
        """Make copies, each from the first of its sources that has not failed yet.

        Args:
            copies: at most one for a chunk and a target.
            standing: that they were planned by.
            raises_wanted: they are to be kept beside those that are wanted already.

        Cancellation: some are made, with a row or without.
        """
        return await self._serve(_Round(standing, raises_wanted), copies)

    async def confirm(
        self,
        chunks: Sequence[ChunkCopies],
        going: Mapping[ChunkId, Collection[PeerNumber]],
        standing: Standing,
    ) -> list[ChunkId]:
        """The chunks of which every peer that answers, and keeps its copy, says that it has it.

        One that has not fetches it there and then, from those in `going`: the peers whose copies
        are to be given up.

        Cancellation: nothing has changed but for that.
        """
        checks = [
            _check_of(chunk, going[chunk.id], keeper)
            for chunk in chunks
            for keeper in chunk.peers
            if keeper in standing.up and keeper not in going[chunk.id]
        ]
        moved = await self._serve(_Round(standing, is_check=True), checks)
        failed = {check.chunk.id for check in moved.failed}
        return [chunk.id for chunk in chunks if chunk.id not in failed]

    async def _serve(self, this: _Round, copies: Sequence[Copy]) -> Moved:
        queues: dict[PeerNumber, list[Copy]] = defaultdict(list)
        fragments: dict[PeerNumber, list[Copy]] = defaultdict(list)
        for copy in copies:
            (queues if copy.chunk.coding is None else fragments)[copy.target].append(copy)
        turns = asyncio.Semaphore(TARGETS_AT_ONCE)

        async def serve(target: PeerNumber) -> None:
            async with turns:
                left = queues[target]
                while left:
                    left = await self._pass(this, target, left)
                for copy in fragments[target]:
                    await self._make_fragment(this, copy)

        async with asyncio.TaskGroup() as tasks:
            for target in {**queues, **fragments}:
                tasks.create_task(serve(target))
        return this.moved

    async def _pass(self, this: _Round, target: PeerNumber, copies: Sequence[Copy]) -> list[Copy]:
        """Make copies; those to be tried from another source."""
        again: list[Copy] = []
        for source, batch in _batches(copies, this.silent):
            if source is None or target in this.silent:
                this.moved.failed += batch
            else:
                again += await self._make_batch(this, source, target, batch)
        return again

    async def _make_batch(
        self, this: _Round, source: PeerNumber, target: PeerNumber, batch: list[Copy]
    ) -> list[Copy]:
        if not this.is_check:
            await self._pace.take(sum(copy.chunk.length for copy in batch))
        chunks = [
            wire.FrameChunk(copy.chunk.id, copy.chunk.length, copy.chunk.digest) for copy in batch
        ]
        try:
            outcomes = await pull(self._transport, this.url(target), this.url(source), chunks)
        except MictlanError as error:
            log.info("%s copies nothing from %s: %s", this.name(target), this.name(source), error)
            this.moved.reasons.add(f"{this.name(target)}: {error}")
            this.moved.failed += batch
            this.silent.add(target)
            return []
        made: list[Copy] = []
        again: list[Copy] = []
        for copy, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                made.append(copy)
                continue
            _note_failure(this, copy, source, outcome)
            others = tuple(number for number in copy.sources if number != source)
            if outcome.kind is Kind.NO_SPACE or not others:
                this.moved.failed.append(copy)
            else:
                again.append(Copy(copy.chunk, others, target))
        await self._record(this, made, target)
        return again

    async def _make_fragment(self, this: _Round, copy: Copy) -> None:
        """Make one fragment, or look at one."""
        assert copy.chunk.coding is not None
        if copy.target in this.silent:
            this.moved.failed.append(copy)
            return
        size = fragment_size(copy.chunk.length, copy.chunk.coding.data)
        if not this.is_check:
            # What the target reads is that, or as many times as much as there are data fragments.
            await self._pace.take(size)
        made = await self._fragments.make(
            copy.chunk,
            copy.index,
            copy.target,
            this.standing,
            this.silent,
            is_check=this.is_check,
        )
        if made.is_silent:
            this.silent.add(copy.target)
        if not made.is_made:
            this.moved.failed.append(copy)
            this.moved.reasons.add(made.reason)
        elif not this.is_check:
            this.moved.copies.append(copy)
            this.moved.size += size

    async def _record(self, this: _Round, made: list[Copy], target: PeerNumber) -> None:
        if this.is_check or not made:
            return
        added = {copy.chunk.id: [target] for copy in made}
        refused = await self._store.add_replicas(added, raises_wanted=this.raises_wanted)
        gone = {chunk_id for chunk_id, _ in refused}
        this.moved.copies += [copy for copy in made if copy.chunk.id not in gone]
        this.moved.size += sum(copy.chunk.length for copy in made)
        if gone:
            # Where the chunk died and was forgotten nobody else would ever delete the copy.
            gone -= {chunk.id for chunk in await self._store.copies(list(gone))}
            if gone:
                await delete_on_peer(self._transport, this.url(target), list(gone))
        # Who says that a copy is bad has a good one now, so it is not its own fault.
        places = ((chunk_id, target) for chunk_id in added)
        bad = {place[0]: this.bad[place] for place in places if place in this.bad}
        if bad:
            log.warning("%d chunks have copies that are missing or bad: these go", len(bad))
            await self._store.drop_replicas(bad)


def _check_of(chunk: ChunkCopies, going: Collection[PeerNumber], keeper: PeerNumber) -> Copy:
    """The look at the copy of `keeper`, which it gets from those in `going` if it has none."""
    if chunk.coding is None:
        return Copy(chunk, tuple(going), keeper)
    # From any of the others: it may have to be computed.
    return Copy(chunk, chunk.peers, keeper, chunk.coding.indices[chunk.peers.index(keeper)])


def _note_failure(this: _Round, copy: Copy, source: PeerNumber, error: MictlanError) -> None:
    """Take note of why a copy was not made."""
    what = f"{this.name(copy.target)} from {this.name(source)}: {error.kind.value}"
    log.info("chunk %s on %s", copy.chunk.id.hex(), what)
    this.moved.reasons.add(what)
    if error.kind in _BAD_COPY:
        this.bad[copy.chunk.id, copy.target].append(source)
    elif error.kind is Kind.NO_SPACE:
        this.silent.add(copy.target)
    elif error.is_retryable:
        this.silent.add(source)


def _batches(
    copies: Sequence[Copy], silent: set[PeerNumber]
) -> Iterator[tuple[PeerNumber | None, list[Copy]]]:
    """`copies` by the source that each is made from now, in parts that one request may ask for.

    What is silent is looked up when a part is made, so that a source that fails is left out then.
    """
    left = list(copies)
    while left:
        source = _source(left[0], silent)
        batch: list[Copy] = []
        rest: list[Copy] = []
        size = 0
        for copy in left:
            fits = len(batch) < wire.FRAME_CHUNKS_MAX and (
                not batch or size + copy.chunk.length <= PULL_SIZE_BYTES_MAX
            )
            if fits and _source(copy, silent) == source:
                batch.append(copy)
                size += copy.chunk.length
            else:
                rest.append(copy)
        left = rest
        yield source, batch


def _source(copy: Copy, silent: set[PeerNumber]) -> PeerNumber | None:
    return next((number for number in copy.sources if number not in silent), None)
