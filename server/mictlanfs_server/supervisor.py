"""The supervisor: starts children stage by stage, keeps them running, stops them in reverse.

Children may join a stage, or leave it, while everything is up.

::

    starting -- every stage is ready --> up
       |                                 |
       | signal, a stage failed          | signal
       v                                 v
    stopping -- second signal --> hurrying (short graces)
       |                             |
       +----> gone: no child left <--+

Owns the order and the deadlines; `child.py` owns a process, `cluster.py` knows what the children
are. Never looks at data. Invariants: a stage starts when the one before it is ready and stops when
the ones after it are gone; whenever a process has started or ended the record says so before
anything else happens; every wait but the one of a space that is up is bounded.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from mictlanfs import logfiles
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.processes import ProcessIdentity
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs_server.child import BackOff, Change, Child, ChildSpec

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A refusal is final when repeated: a port, a lock or a place in the peer map that is left of the
# last run is free after a few seconds.
REFUSALS_MAX = 5
LOG_CHECK_INTERVAL_S = 10.0
# Then people are told whom they wait for.
STOP_PATIENCE_S = 12.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Children that start together.

    Attributes:
        title: what they are, for messages.
        children: those that start with the stage.
        ready: returns when all of them answer. Cancelled when the deadline is over.
        deadline_s: for that.
    """

    title: str
    children: Sequence[ChildSpec]
    ready: Callable[[], Awaitable[None]]
    deadline_s: float = 20.0


@dataclass(eq=False)
class Supervisor:
    """Runs stages of children from the first start to the last end.

    Attributes:
        record: told the running processes by name at each change; must not raise.
    """

    stages: Sequence[Stage]
    record: Callable[[Mapping[str, ProcessIdentity]], None]
    back_off: BackOff = field(default_factory=BackOff)
    _children: dict[str, Child] = field(default_factory=dict)
    _members: list[list[Child]] = field(default_factory=list)
    _nursery: trio.Nursery | None = None
    _up: trio.CancelScope = field(default_factory=trio.CancelScope)
    _hurry: trio.Event = field(default_factory=trio.Event)
    _is_up: bool = False
    _is_stopping: bool = False
    _failure: MictlanError | None = None

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, call `on_ready`, and go on until `request_stop`.

        No child is left when this returns or raises. Cancellation: as `request_stop`.

        Raises:
            MictlanError: a stage did not get ready; or whatever `on_ready` raised.
        """
        with raising_single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_logs)
                async with trio.open_nursery() as children:
                    # A cancellation from outside must not reach them: they are stopped in order.
                    children.cancel_scope.shield = True
                    self._nursery = children
                    try:
                        with self._up:
                            await self._start_all()
                            on_ready()
                            self._is_up = True
                            await trio.sleep_forever()
                    finally:
                        await self._stop_all()
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    def request_stop(self) -> None:
        """Stop in order. The second request shortens every wait."""
        if self._up.cancel_called:
            self._hurry.set()
        self._up.cancel()

    async def obey_signals(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Turn each SIGTERM, SIGINT and SIGHUP into a request to stop, for ever."""
        with trio.open_signal_receiver(*STOP_SIGNALS) as numbers:
            task_status.started()
            async for number in numbers:
                log.info("%s: stopping", signal.Signals(number).name)
                self.request_stop()

    @property
    def is_stopping(self) -> bool:
        """Whether the end has begun."""
        return self._is_stopping or self._up.cancel_called

    def add(self, stage: int, spec: ChildSpec) -> Child:
        """Start one more child of a space that is up; it stops with the stage of this index.

        Raises:
            MictlanError: BUSY: the space is stopping; CONFLICT: one of this name runs.
        """
        if self.is_stopping:
            # A stage that it would join may be gone.
            raise MictlanError(Kind.BUSY, "start", spec.name, "the space is stopping")
        if spec.name in self._children:
            raise MictlanError(Kind.CONFLICT, "start", spec.name, "it runs already")
        return self._start(stage, spec)

    async def remove(self, name: str) -> None:
        """Stop one child and forget it; returns when its process is gone. Unknown: no error.

        Cancellation: it is stopped all the same, and forgotten by the next call.
        """
        child = self._children.get(name)
        if child is None:
            return
        child.stop()
        await _gone(child)
        # Another call may have been faster, and a child of the same name started since.
        if self._children.get(name) is child:
            del self._children[name]
            for members in self._members:
                if child in members:
                    members.remove(child)

    async def _start_all(self) -> None:
        for index, stage in enumerate(self.stages):
            log.debug("starting %s", stage.title)
            self._members.append([])
            for spec in stage.children:
                self._start(index, spec)
            with trio.move_on_after(stage.deadline_s) as waiting:
                await stage.ready()
            if waiting.cancelled_caught:
                raise self._overdue(stage)

    def _start(self, stage: int, spec: ChildSpec) -> Child:
        assert self._nursery is not None
        child = Child(spec, self._on_change, self._hurry, self.back_off)
        self._children[spec.name] = child
        self._members[stage].append(child)
        self._nursery.start_soon(child.run)
        return child

    async def _stop_all(self) -> None:
        self._is_stopping = True
        for stage, members in reversed(list(zip(self.stages, self._members, strict=False))):
            started = list(members)
            if any(not child.gone.is_set() for child in started):
                log.info("stopping %s", stage.title)
            for child in started:
                child.stop()
            for child in started:
                await _gone(child)

    def _overdue(self, stage: Stage) -> MictlanError:
        children = [self._children[spec.name] for spec in stage.children]
        reasons = "; ".join(f"{c.spec.name}: {c.reason}" for c in children if c.reason)
        detail = f"it does not answer within {stage.deadline_s:g} s"
        return MictlanError(
            Kind.TIMED_OUT, "start", stage.title, f"{detail} ({reasons})" if reasons else detail
        )

    def _on_change(self, child: Child, change: Change) -> None:
        running = {name: c.process for name, c in self._children.items() if c.process is not None}
        self.record(running)
        name = child.spec.name
        # Before everything is up the error that ends the start says it, once.
        trouble = logging.WARNING if self._is_up else logging.INFO
        match change:
            case Change.STARTED:
                pid = child.process.pid if child.process else 0
                # Who read that it died should also read that it runs again.
                level = trouble if child.reason else logging.INFO
                log.log(level, "%s started (pid %d)", name, pid)
            case Change.DIED:
                log.log(trouble, "%s died: %s; starting it again", name, child.reason)
                self._give_up_on(child)
            case Change.ENDED:
                log.log(trouble, "%s ended by itself", name)
            case Change.STOPPED:
                log.debug("%s stopped", name)

    def _give_up_on(self, child: Child) -> None:
        if self._is_up or child.refusals < REFUSALS_MAX or self._up.cancel_called:
            return
        self._failure = UsageError(f"{child.spec.name} does not start: {child.reason}")
        self._up.cancel()

    async def _watch_logs(self) -> None:
        try:
            while True:
                await trio.sleep(LOG_CHECK_INTERVAL_S)
                for child in self._children.values():
                    try:
                        logfiles.shorten(child.spec.log_path)
                    except OSError as error:
                        log.warning("%s: %s", child.spec.log_path, error)
        finally:
            # Cancelled from outside, or done: whichever, there is nothing to stay up for.
            self._up.cancel()


async def _gone(child: Child) -> None:
    with trio.move_on_after(STOP_PATIENCE_S):
        await child.gone.wait()
        return
    log.warning("%s is still at work, waiting for it (stop again to hurry it)", child.spec.name)
    await child.gone.wait()
