"""When each session was last heard of: an expiring table over a clock, without any I/O.

The metadata store is the authority on which sessions exist and fences the others; this table knows
the same sessions and adds the time, which need not survive a restart: after one, every session gets
its whole time to live again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mictlanfs.clock import Clock
    from mictlanfs.model import SessionId
    from mictlanfs_server.metadata.base import SessionRecord


@dataclass(slots=True)
class _Session:
    record: SessionRecord
    last_seen_s: float
    is_saved: bool = True


class SessionTable:
    """The open sessions and their silence."""

    def __init__(self, clock: Clock, ttl_s: float, records: Iterable[SessionRecord]) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._sessions: dict[SessionId, _Session] = {}
        for record in records:
            self.add(record)

    def add(self, record: SessionRecord) -> None:
        """A session was opened, just now."""
        self._sessions[record.session] = _Session(record, self._clock.monotonic_s())

    def remove(self, session: SessionId) -> None:
        """A session was closed; an unknown one is no error."""
        self._sessions.pop(session, None)

    def with_leases(self) -> list[SessionId]:
        """The open sessions that may hold leases."""
        return [session for session, known in self._sessions.items() if known.record.leases]

    def record(self, session: SessionId) -> SessionRecord | None:
        """An open session."""
        known = self._sessions.get(session)
        return known.record if known else None

    def is_open(self, session: SessionId, epoch: int) -> bool:
        """Whether a session is open with this epoch; no sign of life."""
        known = self._sessions.get(session)
        return known is not None and known.record.epoch == epoch

    def touch(self, session: SessionId, epoch: int) -> None:
        """A session was heard of. Raises FENCED when it is not open with this epoch."""
        known = self._sessions.get(session)
        if known is None or known.record.epoch != epoch:
            detail = "the session has ended: open a new one"
            raise MictlanError(Kind.FENCED, "session", session, detail)
        known.last_seen_s = self._clock.monotonic_s()
        known.is_saved = False

    def expired(self) -> list[SessionRecord]:
        """The sessions whose time is over; they stay until removed."""
        limit_s = self._clock.monotonic_s() - self._ttl_s
        return [s.record for s in self._sessions.values() if s.last_seen_s < limit_s]

    def forgive(self, pause_s: float) -> None:
        """The router itself was stopped for a while: nobody could be heard."""
        for session in self._sessions.values():
            session.last_seen_s += pause_s

    def take_unsaved(self) -> dict[SessionId, int]:
        """When sessions were last seen, by the wall clock, for those seen since the last call."""
        now_s, now_ns = self._clock.monotonic_s(), self._clock.wall_ns()
        unsaved = {}
        for session, known in self._sessions.items():
            if not known.is_saved:
                known.is_saved = True
                unsaved[session] = now_ns - int((now_s - known.last_seen_s) * 1e9)
        return unsaved

    def statuses(
        self, leases: Callable[[SessionId], tuple[int, int]] = lambda _: (0, 0)
    ) -> list[wire.SessionStatus]:
        """The sessions, for people, with how many leases each holds and waits for."""
        now_s = self._clock.monotonic_s()
        return [
            wire.SessionStatus(
                label=known.record.label,
                host=known.record.host,
                pid=known.record.pid,
                last_seen_s=now_s - known.last_seen_s,
                lease_count=held,
                waited_count=waited,
            )
            for session, known in self._sessions.items()
            for held, waited in [leases(session)]
        ]
