"""Looks at all chunks for those that are short of copies, or have too many. Owns no state.

A look reads every row of the metadata once, page by page in a thread, and rests in between: it may
take a fifth of the time. What it found is only a hint, looked at again before anything is done.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mictlanfs_server.metadata.copies import CopiesAsked

if TYPE_CHECKING:
    from mictlanfs.clock import Clock
    from mictlanfs.model import ChunkId
    from mictlanfs_server.metadata.copies import CopyStore
    from mictlanfs_server.router.upkeep.standing import Standing

PAGE_COUNT: Final = 10_000
SHARE_MAX: Final = 0.2
# Ids kept of each kind: 4 MB of them. The rest is found by the next look.
KEPT_COUNT_MAX: Final = 50_000


@dataclass(slots=True)
class Survey:
    """What one look found.

    Attributes:
        short: chunks short of copies, by the number of copies that they have; not all of them when
            `is_cut`.
        surplus: chunks with more copies than wanted; the same holds.
        short_count, short_bytes: of all that are short.
        unreadable_count: chunks without a copy that can be read.
        took_s: seconds of reading.
    """

    short: dict[int, list[ChunkId]] = field(default_factory=lambda: defaultdict(list))
    surplus: list[ChunkId] = field(default_factory=list)
    short_count: int = 0
    short_bytes: int = 0
    unreadable_count: int = 0
    is_cut: bool = False
    took_s: float = 0.0

    def in_order(self) -> list[ChunkId]:
        """The chunks that are short, fewest copies first."""
        return [chunk_id for copies in sorted(self.short) for chunk_id in self.short[copies]]


async def survey(store: CopyStore, standing: Standing, clock: Clock) -> Survey:
    """Look at all chunks once."""
    found = Survey()
    asked = CopiesAsked(sorted(standing.counted), sorted(standing.steady), sorted(standing.sources))
    after: ChunkId | None = None
    while True:
        started_s = clock.monotonic_s()
        page = await store.survey(asked, after, PAGE_COUNT)
        took_s = clock.monotonic_s() - started_s
        found.took_s += took_s
        for chunk in page.short:
            _keep(found, found.short[chunk.copies], chunk.id)
            found.short_count += 1
            found.short_bytes += chunk.length
        for chunk_id in page.surplus:
            _keep(found, found.surplus, chunk_id)
        found.unreadable_count += page.unreadable_count
        after = page.last
        if after is None:
            return found
        await asyncio.sleep(took_s * (1 / SHARE_MAX - 1))


def _keep(found: Survey, kept: list[ChunkId], chunk_id: ChunkId) -> None:
    if len(kept) < KEPT_COUNT_MAX:
        kept.append(chunk_id)
    else:
        found.is_cut = True
