"""Stopping a space on this machine and looking at it, from another process than its supervisor.

Reads what the supervisor recorded, asks the servers themselves how they are, and signals; what
needs the supervisor's help goes over `channel`. Writes
nothing, except to clean up after a supervisor that was killed, and then under the lock.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.mounts.users import names_of, users_of
from mictlanfs.processes import (
    ProcessIdentity,
    is_running,
    send_signal,
    started_at_s,
    wait_ended,
)
from mictlanfs.uri import ServerAddress
from mictlanfs_server import mountpoint
from mictlanfs_server.cluster import (
    MOUNT,
    MOUNT_USERS_GRACE_S,
    ROUTER,
    SUPERVISOR,
    end_leftovers,
    idle,
)
from mictlanfs_server.plan import ROUTER_ID, peer_address, peer_name, reachable
from mictlanfs_server.probe import open_probe, peers_up
from mictlanfs_server.space import SpaceDirectory, SpaceRecord, claimed

# Above the sum of the graces that a supervisor grants its children.
STOP_TIMEOUT_S = 130.0
HURRIED_STOP_TIMEOUT_S = 20.0
KILLED_TIMEOUT_S = 5.0

HEALTHY, DEGRADED, STOPPED = "healthy", "degraded", "stopped"
# Of a process: as wanted.
_AS_WANTED = frozenset({HEALTHY, STOPPED})


def stop(directory: SpaceDirectory, say: Callable[[str], None]) -> None:
    """Stop what serves the space and return when all is gone. Blocks for two minutes at most.

    `say` is told what is done, for people.

    Raises:
        MictlanError: TIMED_OUT: something is left; UsageError: the record is not readable.
    """
    supervisor = directory.owner()
    if supervisor is not None:
        say(f"stopping {directory.path} (pid {supervisor.pid})")
        _name_users(directory, say)
        _end(supervisor)
    record = directory.read_record()
    was_killed = record is not None and bool(record.processes)
    if record is not None and was_killed:
        with claimed(directory) as claim:
            claim.keep = True
            end_leftovers(record)
            claim.write_record(idle(record))
        _check_gone(record.children.values())
    if supervisor is None and not was_killed:
        say(f"nothing runs in {directory.path}")
    else:
        say(f"stopped; the data stays in {directory.path}")


def _name_users(directory: SpaceDirectory, say: Callable[[str], None]) -> None:
    """Say who uses the mount, since the supervisor gives them time and cannot say so itself."""
    record = directory.read_record()
    if record is None or record.mount is None:
        return
    where, grace_s = record.mount.mountpoint, MOUNT_USERS_GRACE_S
    if users := users_of(Path(where)):
        names = names_of(users)
        say(f"{where} is in use by {names}: waiting up to {grace_s:g} s for them to leave it")


def _end(supervisor: ProcessIdentity) -> None:
    for number, grace_s in (
        (signal.SIGTERM, STOP_TIMEOUT_S),
        # The second one hurries it.
        (signal.SIGTERM, HURRIED_STOP_TIMEOUT_S),
        (signal.SIGKILL, KILLED_TIMEOUT_S),
    ):
        if not send_signal(supervisor, number) or not wait_ended([supervisor], grace_s):
            return
    _check_gone([supervisor])


def _check_gone(processes: Iterable[ProcessIdentity]) -> None:
    left = [process for process in processes if is_running(process)]
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise MictlanError(Kind.TIMED_OUT, "stop", f"pid {pids}", "it does not end")


class ProcessStatus(msgspec.Struct, frozen=True):
    """One process of a space, for people and scripts.

    Attributes:
        pid: None when it does not run.
        port: None when it has none.
        health: "healthy", "stopped" (a peer that is not to run), or what is wrong.
        since: when the process started, in seconds since the epoch; None when it does not run.
    """

    name: str
    pid: int | None
    port: int | None
    health: str
    since: float | None


class LocalStatus(msgspec.Struct, frozen=True):
    """A space on this machine, for people and scripts.

    Attributes:
        data: its directory.
        state: "healthy", "degraded" or "stopped".
        uri: None when no space was ever started there.
        mountpoint: None when the supervisor does not mount it.
    """

    data: str
    state: str
    uri: str | None
    mountpoint: str | None
    processes: list[ProcessStatus]


async def inspect(directory: SpaceDirectory) -> LocalStatus:
    """The state of a space now. Bounded to about ten seconds.

    Raises:
        UsageError: the record is not readable.
    """
    record = directory.read_record()
    supervisor = directory.owner()
    if record is None:
        return LocalStatus(str(directory.path), STOPPED, None, None, [])
    running = {name: p for name, p in record.children.items() if is_running(p)}
    mounted = record.mount.mountpoint if record.mount else None
    if supervisor is None and not running:
        return LocalStatus(str(directory.path), STOPPED, record.uri, None, [])
    processes = [_described(SUPERVISOR, supervisor, None, None)]
    processes += await _Inspection(record, running).processes()
    is_healthy = all(process.health in _AS_WANTED for process in processes)
    state = HEALTHY if is_healthy else DEGRADED
    return LocalStatus(str(directory.path), state, record.uri, mounted, processes)


@dataclass(frozen=True, slots=True)
class _Inspection:
    """Questions to all servers of one space at once."""

    record: SpaceRecord
    running: dict[str, ProcessIdentity]

    async def processes(self) -> list[ProcessStatus]:
        """What is true of router, peers and mount, in this order."""
        router = ServerAddress(ROUTER_ID, reachable(self.record.host), self.record.port)
        running = self.record.running_peers
        peers = [peer_address(self.record, index) for index in running]
        names = [ROUTER, *(peer_name(index) for index in running)]
        problems: dict[str, str | None] = {}

        async with open_probe(router) as probe, trio.open_nursery() as nursery:

            async def ask(name: str, server: ServerAddress) -> None:
                is_answering = await probe.is_answering(server)
                problems[name] = None if is_answering else "does not answer"

            for name, server in zip(names, [router, *peers], strict=True):
                nursery.start_soon(ask, name, server)
            if self.record.mount is not None:
                nursery.start_soon(self._ask_mount, problems)
            status = await probe.status()
        known_up = peers_up(status) if status is not None else None
        for name, peer in zip(names[1:], peers, strict=True):
            if problems[name] is None and known_up is not None and peer.id not in known_up:
                problems[name] = "not up, says the router"
        ports = {ROUTER: self.record.port}
        for index, port in enumerate(self.record.peer_ports):
            ports[peer_name(index)] = port
        names = [*ports, MOUNT] if self.record.mount is not None else [*ports]
        stopped = {peer_name(index) for index in self.record.stopped_peers}
        return [
            ProcessStatus(name, None, ports[name], STOPPED, None)
            if name in stopped
            else _described(name, self.running.get(name), ports.get(name), problems[name])
            for name in names
        ]

    async def _ask_mount(self, problems: dict[str, str | None]) -> None:
        assert self.record.mount is not None
        path = Path(self.record.mount.mountpoint)
        problems[MOUNT] = None if await mountpoint.is_answering(path) else "does not answer"


def _described(
    name: str, process: ProcessIdentity | None, port: int | None, problem: str | None
) -> ProcessStatus:
    if process is None:
        return ProcessStatus(name, None, port, "not running", None)
    return ProcessStatus(name, process.pid, port, problem or HEALTHY, started_at_s(process))
