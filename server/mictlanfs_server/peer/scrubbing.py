"""The scrub: every chunk of a peer is read and verified, again and again, a little at a time.

Owns one task and the file `scrub.json`, which says how far the present pass has come, so that the
next process goes on from there. A pass goes through the chunks in the order of their ids; what
comes meanwhile lies ahead of it. It spreads over its period, but never reads faster than the
rate, nor slower than `RATE_MIN`. One that somebody asked for reads at the rate.

::

    waiting --(the period is over)--> running --(no chunk is left)--> waiting
       |                                 |
       +-----------(asked for)-----------+--> running, asked for, from the beginning
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

import msgspec

from mictlanfs.durable import replace_file
from mictlanfs.identifiers import chunk_id_from_hex
from mictlanfs.jsontext import from_json, to_json
from mictlanfs.model import KIB, ChunkId
from mictlanfs.wireverify import ScrubState, Verdict
from mictlanfs_server.peer import badcopies

if TYPE_CHECKING:
    from pathlib import Path

    from mictlanfs_server.peer.inspection import Inspector
    from mictlanfs_server.peer.store import ChunkStore

log = logging.getLogger(__name__)

STATE_NAME: Final = "scrub.json"
RATE_MIN: Final = 256 * KIB
# What a chunk costs besides its bytes.
_CHUNK_COST_SIZE_BYTES: Final = 4 * KIB
_PAGE_COUNT: Final = 64
_SAVE_INTERVAL_S: Final = 5.0
# Shorter sleeps cost more than they are worth.
_SLEEP_S_MIN: Final = 0.02
_RECOVERY_S: Final = 30.0


class _Saved(msgspec.Struct):
    """What outlives the process; times in nanoseconds since the epoch, 0 for never."""

    position: str = ""
    passes: int = 0
    is_running: bool = False
    is_asked: bool = False
    checked_count: int = 0
    checked_bytes: int = 0
    bad_count: int = 0
    started_ns: int = 0
    finished_ns: int = 0


class Scrubber:
    """Scrubs a store. `run` is the task.

    Args:
        folder: where the state is kept.
        rate: bytes per second, at most.
        period_s: seconds for a pass that nobody asked for; 0: only such passes as are asked for.
    """

    def __init__(
        self, store: ChunkStore, inspector: Inspector, folder: Path, rate: int, period_s: float
    ) -> None:
        self._store = store
        self._inspector = inspector
        self._path = folder / STATE_NAME
        self._rate = rate
        self._period_s = period_s
        self._saved = _load(self._path)
        self._saved_at_s = time.monotonic()
        self._debt_s = 0.0
        self._is_wanted = False
        self._asked = asyncio.Event()

    def begin(self) -> None:
        """Begin a pass now, unless one that was asked for is running."""
        if not (self._saved.is_running and self._saved.is_asked):
            self._is_wanted = True
            self._asked.set()

    def state(self) -> ScrubState:
        """How it stands."""
        saved = self._saved
        count, size, untold_count = badcopies.totals(self._store.index)
        return ScrubState(
            passes=saved.passes,
            is_running=saved.is_running or self._is_wanted,
            is_asked=saved.is_asked or self._is_wanted,
            checked_count=saved.checked_count,
            checked_bytes=saved.checked_bytes,
            bad_count=saved.bad_count,
            total_count=self._store.chunk_count,
            total_bytes=self._store.used_bytes,
            started_ns=saved.started_ns,
            finished_ns=saved.finished_ns,
            quarantined_count=count,
            quarantined_bytes=size,
            untold_count=untold_count,
        )

    async def run(self) -> None:
        """Scrub until cancelled; the position is saved then."""
        try:
            while True:
                try:
                    await self._work()
                except Exception:
                    log.exception("the scrub failed, it goes on in a while")
                    await asyncio.sleep(_RECOVERY_S)
        finally:
            self._save()

    async def _work(self) -> None:
        if not (self._saved.is_running or self._is_wanted):
            await self._wait_for_turn()
        if self._is_wanted or not self._saved.is_running:
            self._start()
        while page := await self._store.page(self._position, _PAGE_COUNT):
            for entry, _ in page:
                await self._scrub(entry.id, entry.length, await self._inspector.inspect(entry))
                if self._is_wanted:
                    return
            await self._save_sometimes()
        saved = self._saved
        saved.passes += 1
        saved.is_running = saved.is_asked = False
        saved.position = ""
        saved.finished_ns = time.time_ns()
        log.log(
            logging.INFO if saved.checked_count else logging.DEBUG,
            "scrubbed %d chunks, %d bytes: %d bad",
            saved.checked_count,
            saved.checked_bytes,
            saved.bad_count,
        )
        self._save()

    @property
    def _position(self) -> ChunkId:
        return ChunkId(bytes.fromhex(self._saved.position))

    async def _wait_for_turn(self) -> None:
        wait_s: float | None = None
        if self._period_s:
            since_s = (time.time_ns() - self._saved.started_ns) / 1e9
            # A clock that was put back must not put the scrub off for ever.
            wait_s = min(max(self._period_s - since_s, 0.0), self._period_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), wait_s)

    def _start(self) -> None:
        before = self._saved
        self._saved = _Saved(
            passes=before.passes,
            is_running=True,
            is_asked=self._is_wanted,
            started_ns=time.time_ns(),
            finished_ns=before.finished_ns,
        )
        self._is_wanted = False
        self._asked.clear()
        self._debt_s = 0.0
        self._save()

    async def _scrub(self, chunk_id: ChunkId, length: int, verdict: Verdict) -> None:
        """Count a chunk that was inspected, and pause for as long as it should have taken."""
        saved = self._saved
        saved.position = chunk_id.hex()
        saved.checked_count += 1
        saved.checked_bytes += length
        saved.bad_count += verdict is Verdict.BAD or verdict is Verdict.MISSING
        self._debt_s += (length + _CHUNK_COST_SIZE_BYTES) / self._rate_now()
        if self._debt_s >= _SLEEP_S_MIN:
            debt_s, self._debt_s = self._debt_s, 0.0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), debt_s)

    def _rate_now(self) -> float:
        if self._saved.is_asked:
            return self._rate
        total = self._store.used_bytes + self._store.chunk_count * _CHUNK_COST_SIZE_BYTES
        return min(self._rate, max(RATE_MIN, total / self._period_s if self._period_s else 0))

    async def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved_at_s >= _SAVE_INTERVAL_S:
            await asyncio.to_thread(self._save)

    def _save(self) -> None:
        self._saved_at_s = time.monotonic()
        try:
            replace_file(self._path, to_json(self._saved))
        except OSError as error:
            log.warning("the position of the scrub is not saved: %s", error)


def _load(path: Path) -> _Saved:
    """What the last process saved; a file that is damaged costs a pass, nothing else."""
    try:
        saved = from_json(path.read_bytes(), _Saved)
        if saved.position:
            chunk_id_from_hex(saved.position)
    except FileNotFoundError:
        return _Saved()
    except (OSError, ValueError, msgspec.ValidationError) as error:
        log.warning("the scrub begins anew: %s", error)
        return _Saved()
    return saved
