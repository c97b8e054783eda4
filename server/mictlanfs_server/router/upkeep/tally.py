"""How far the healer has come: counters that it adds to and that status and metrics show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mictlanfs.wirecopies import UpkeepStatus

if TYPE_CHECKING:
    from mictlanfs_server.router.upkeep.mover import Moved


@dataclass(slots=True)
class Tally:
    """The counters; see `wire.UpkeepStatus` for those that are shown as they are."""

    activity: str = "idle"
    short_count: int = 0
    short_bytes: int = 0
    unhealable_count: int = 0
    healed_count: int = 0
    moved_count: int = 0
    trimmed_count: int = 0
    deleted_count: int = 0
    copied_bytes: int = 0
    failed_count: int = 0
    given_up_count: int = 0
    problem: str = ""
    look_count: int = 0
    popular_count: int = 0
    extra_count: int = 0
    extra_bytes: int = 0
    extra_made_count: int = 0
    draining: dict[str, int] = field(default_factory=dict)

    def begin(self, short_count: int, short_bytes: int, unreadable_count: int) -> None:
        """A look has found so many chunks that are short."""
        self.short_count, self.short_bytes = short_count, short_bytes
        self.unhealable_count = unreadable_count
        self.problem = ""

    def healed(self, moved: Moved) -> None:
        """Copies were made of chunks that were short."""
        self.healed_count += len(moved.copies)
        # A chunk that lacks two copies counts once: it is done with the last of them.
        healed = {copy.chunk.id: copy.chunk.length for copy in moved.copies}
        for copy in moved.failed:
            healed.pop(copy.chunk.id, None)
        self.short_count = max(0, self.short_count - len(healed))
        self.short_bytes = max(0, self.short_bytes - sum(healed.values()))
        self._note(moved)

    def moved(self, moved: Moved) -> None:
        """Copies were made that somebody ordered."""
        self.moved_count += len(moved.copies)
        self._note(moved)

    def spread(self, moved: Moved) -> None:
        """Extra copies were made for readers."""
        self.extra_made_count += len(moved.copies)
        self._note(moved)

    def _note(self, moved: Moved) -> None:
        self.copied_bytes += moved.size
        self.failed_count += len(moved.failed)
        if moved.reasons:
            self.problem = "; ".join(sorted(moved.reasons)[:3])

    def status(self, waiting_s: Mapping[str, float], orders: Mapping[str, float]) -> UpkeepStatus:
        """The counters as they are now."""
        return UpkeepStatus(
            activity=self.activity,
            short_count=self.short_count,
            short_bytes=self.short_bytes,
            unhealable_count=self.unhealable_count,
            healed_count=self.healed_count,
            moved_count=self.moved_count,
            trimmed_count=self.trimmed_count,
            deleted_count=self.deleted_count,
            copied_bytes=self.copied_bytes,
            failed_count=self.failed_count,
            given_up_count=self.given_up_count,
            waiting_peers=dict(waiting_s),
            orders=dict(orders),
            problem=self.problem,
            draining=dict(self.draining),
            look_count=self.look_count,
            popular_count=self.popular_count,
            extra_count=self.extra_count,
            extra_bytes=self.extra_bytes,
            extra_made_count=self.extra_made_count,
        )
