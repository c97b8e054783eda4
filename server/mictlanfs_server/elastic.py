"""The peers of a space that runs: added, stopped and started again on request.

::

    add --> running -- stop --> stopped
               ^                   |
               +------ start ------+

Owns the order of steps. Never removes data: a stopped peer stays a peer of the space, with its
folder and its port. Invariants: one change at a time; what is wanted is recorded before a process
is started or stopped, so it holds after the supervisor was killed at any moment; a peer that does
not work within its time is recorded as stopped, and tried again when somebody asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import trio

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_server import plan
from mictlanfs_server.channel import AddPeers, Request, Say, StartPeer, StopPeer
from mictlanfs_server.child import Child, ChildSpec
from mictlanfs_server.plan import peer_id, peer_name
from mictlanfs_server.probe import Probe
from mictlanfs_server.space import SpaceRecord
from mictlanfs_server.supervisor import REFUSALS_MAX, Supervisor

log = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
# A peer that could not say good-bye is down after 10 s of silence.
DOWN_TIMEOUT_S = 12.0
INTERVAL_S = 0.1


class RunningSpace(Protocol):
    """The space as far as its peers go."""

    @property
    def record(self) -> SpaceRecord:
        """What is recorded of it now."""
        ...

    def change(
        self, *, peer_ports: Sequence[int] | None = None, stopped: Sequence[int] | None = None
    ) -> None:
        """Record other ports, or other stopped peers, durably. Raises UsageError: it cannot be."""
        ...

    def peer_spec(self, index: int) -> ChildSpec:
        """How a peer is run."""
        ...


class PeerPool:
    """The peers of one running space.

    Args:
        space: what is recorded.
        supervisor: which runs them.
        probe: how they are.
        stage: of the supervisor to which they belong.
    """

    def __init__(
        self, space: RunningSpace, supervisor: Supervisor, probe: Probe, stage: int
    ) -> None:
        self._space = space
        self._supervisor = supervisor
        self._probe = probe
        self._stage = stage
        self._is_busy = False

    async def handle(self, request: Request, say: Say) -> str:
        """Do what a command asks for; what was done, for people.

        Cancellation: what is recorded as wanted is done by the next supervisor.

        Raises:
            MictlanError: as the methods below; BUSY: another change is under way.
        """
        with self._alone():
            match request:
                case AddPeers(count):
                    return await self._add(count, say)
                case StartPeer(name):
                    return await self._start(plan.peer_index(self._space.record, name), say)
                case StopPeer(name, force):
                    index = plan.peer_index(self._space.record, name)
                    return await self._stop(index, say, force=force)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._is_busy:
            detail = "another change of the peers is under way: try again when it is done"
            raise MictlanError(Kind.BUSY, "change peers", detail=detail)
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    async def _add(self, count: int, say: Say) -> str:
        """Start new peers.

        Raises:
            MictlanError: UNAVAILABLE: some do not start, and are stopped; UsageError: there cannot
                be so many.
        """
        if count < 1:
            raise UsageError("at least one peer can be added")
        record = self._space.record
        indices = range(len(record.peer_ports), len(record.peer_ports) + count)
        ports = await trio.to_thread.run_sync(plan.grown, record, count)
        self._space.change(peer_ports=ports)
        for index in indices:
            await say(f"starting {peer_name(index)} ({peer_id(index)}) on port {ports[index]}")
        await self._run(indices)
        running = len(self._space.record.running_peers)
        return f"{_counted(count, 'peer')} added, {running} run"

    async def _start(self, index: int, say: Say) -> str:
        """Start a peer that was stopped; on another port if its own was taken meanwhile.

        Raises:
            MictlanError: UNAVAILABLE: it does not start, and stays stopped.
        """
        record = self._space.record
        if index not in record.stopped_peers:
            return f"{peer_id(index)} runs already"
        ports = (await trio.to_thread.run_sync(plan.with_free_port, record, index)).peer_ports
        stopped = [other for other in record.stopped_peers if other != index]
        self._space.change(peer_ports=ports, stopped=stopped)
        await say(f"starting {peer_name(index)} ({peer_id(index)}) on port {ports[index]}")
        await self._run([index])
        return f"{peer_id(index)} runs"

    async def _stop(self, index: int, say: Say, *, force: bool) -> str:
        """Stop a peer; its data stays.

        Raises:
            MictlanError: CONFLICT: chunks could not be read without it; UNAVAILABLE: there is no
                telling; both unless `force`; UsageError: it is the last one.
        """
        record = self._space.record
        if index in record.stopped_peers:
            return f"{peer_id(index)} is stopped already"
        if len(record.running_peers) == 1:
            raise UsageError(
                f"{peer_id(index)} is the last peer that runs: stop the whole space instead"
            )
        await self._weigh(index, say, force=force)
        self._space.change(stopped=sorted([*record.stopped_peers, index]))
        await say(f"stopping {peer_name(index)} ({peer_id(index)})")
        await self._supervisor.remove(peer_name(index))
        await self._wait_down(index)
        return (
            f"{peer_id(index)} is stopped; its data stays: "
            f"`mictlanfs server peers start {peer_name(index)}` brings it back"
        )

    async def _weigh(self, index: int, say: Say, *, force: bool) -> None:
        """Refuse what would make chunks unreadable; say what else it costs."""
        try:
            cost = await self._probe.leave_cost(peer_id(index))
        except MictlanError as error:
            if force:
                return
            detail = (
                f"there is no telling which chunks only it has ({error}): "
                "--force stops it all the same"
            )
            raise MictlanError(Kind.UNAVAILABLE, "stop", peer_id(index), detail) from error
        if cost.lost_count:
            what = f"{_counted(cost.lost_count, 'chunk')} cannot be read without it"
            if not force:
                detail = f"{what}: it has the only copy; --force stops it all the same"
                raise MictlanError(Kind.CONFLICT, "stop", peer_id(index), detail)
            await say(f"{what}, until it is started again")
        if cost.short_count:
            what = _counted(cost.short_count, "chunk")
            await say(f"{what} will have fewer copies than wanted, until it is started again")

    async def _run(self, indices: Sequence[int]) -> None:
        """Start peers and wait until they work; those that do not are stopped."""
        children = {}
        for index in indices:
            children[index] = self._supervisor.add(self._stage, self._space.peer_spec(index))
        failed = await self._wait_up(children)
        if not failed:
            return
        if self._supervisor.is_stopping:
            raise MictlanError(Kind.BUSY, "start", "peers", "the space is stopping")
        stopped = {*self._space.record.stopped_peers, *failed}
        self._space.change(stopped=sorted(stopped))
        for index in failed:
            await self._supervisor.remove(peer_name(index))
        reasons = "; ".join(
            f"{peer_name(index)}: {children[index].reason or 'it does not answer in time'}"
            for index in failed
        )
        again = f"`mictlanfs server peers start {peer_name(failed[0])}`"
        detail = f"stopped again, {again} tries once more ({reasons})"
        names = ", ".join(peer_id(index) for index in failed)
        raise MictlanError(Kind.UNAVAILABLE, "start", names, detail)

    async def _wait_up(self, children: dict[int, Child]) -> list[int]:
        """Wait until all work, or will not; those that do not."""
        waiting, refused = set(children), set()
        with trio.move_on_after(START_TIMEOUT_S):
            while waiting:
                known = await self._probe.known_up()
                for index in sorted(waiting):
                    if children[index].refusals >= REFUSALS_MAX:
                        refused.add(index)
                    elif peer_id(index) in known:
                        address = plan.peer_address(self._space.record, index)
                        if await self._probe.is_answering(address):
                            waiting.discard(index)
                waiting -= refused
                await trio.sleep(INTERVAL_S)
        return sorted(waiting | refused)

    async def _wait_down(self, index: int) -> None:
        """Wait until writers are told; a router that does not answer tells them later."""
        with trio.move_on_after(DOWN_TIMEOUT_S):
            while peer_id(index) in await self._probe.known_up():  # noqa: ASYNC110 - it is elsewhere.
                await trio.sleep(INTERVAL_S)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
