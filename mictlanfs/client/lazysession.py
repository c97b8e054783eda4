"""A session that is opened when it is first needed, by whichever task needs it.

Owns the task that holds the session: a session has a nursery, and a nursery belongs to the task
that opened it, which a task that comes and goes must not be.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from mictlanfs import wire
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session, open_session
from mictlanfs.taskerrors import raising_single_errors


class LazySession:
    """Opens a session on first use and keeps it until `end`.

    Args:
        nursery: of the owner; the holding task lives in it.
        label: what `status` shows of the session.
        deadline_s: how long a change waits for its answer.
        on_grant: called with each grant of the session.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        router: RouterClient,
        label: str,
        deadline_s: float,
        on_grant: Callable[[wire.SessionGrant], None],
    ) -> None:
        self._nursery = nursery
        self._router = router
        self._label = label
        self._deadline_s = deadline_s
        self._on_grant = on_grant
        self._session: Session | None = None
        # Held while the router is asked, so that tasks that need a session together get one.
        self._lock = trio.Lock()
        self._is_over = trio.Event()

    async def get(self) -> Session:
        """The session.

        Cancellation: none is open, or the one that is.

        Raises:
            MictlanError: the router cannot be reached or refuses.
        """
        if self._session is None:
            async with self._lock:
                if self._session is None:
                    self._session = await self._nursery.start(self._hold)
        return self._session

    def end(self) -> None:
        """Let the holding task close the session; the owner's nursery waits for it."""
        self._is_over.set()

    async def _hold(self, *, task_status: trio.TaskStatus[Session]) -> None:
        with raising_single_errors():
            async with open_session(
                self._router, self._label, deadline_s=self._deadline_s, on_grant=self._on_grant
            ) as session:
                task_status.started(session)
                await self._is_over.wait()
