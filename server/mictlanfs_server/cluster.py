"""A whole space on one machine: router, peers and, for `up`, the mount, from start to end.

::

    claim DIR -> end what the last run left -> plan -> check ports and mountpoint -> record
      -> router -> peers -> mount -> "ready" ... signal ... -> mount -> peers -> router -> record

Owns what the children are and what is recorded of them; `supervisor.py` runs them. Never touches
data. Invariants: nothing is started before everything that can be checked was; what is recorded
is enough for the next run to clean up after this one, whenever it is killed.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio
from msgspec.structs import replace

from mictlanfs import paths
from mictlanfs.config import parse_mount_options
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.logfiles import LogFileHandler
from mictlanfs.logformats import TEXT, formatter_of
from mictlanfs.logsetup import chosen_form
from mictlanfs.mounts.ability import check_ability
from mictlanfs.mounts.table import is_mounted
from mictlanfs.mounts.unmounting import unmount, unmount_if_dead
from mictlanfs.mounts.users import names_of, users_of
from mictlanfs.processes import ProcessIdentity, current_process, send_signal, wait_ended
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs.uri import ServerAddress
from mictlanfs_server import channel
from mictlanfs_server.child import ChildSpec, command_line, guarded_command_line
from mictlanfs_server.elastic import START_TIMEOUT_S, PeerPool
from mictlanfs_server.forking import ForkedProcess, ForkServer, open_fork_server
from mictlanfs_server.lifeline import lifeline
from mictlanfs_server.mountpoint import check_free, wait_until_answering
from mictlanfs_server.peer.sharers import write_sharers
from mictlanfs_server.plan import (
    ROUTER_ID,
    ServerOptions,
    check_ports,
    is_wildcard,
    peer_address,
    peer_id,
    peer_name,
    planned,
    reachable,
)
from mictlanfs_server.probe import Probe, open_probe
from mictlanfs_server.space import (
    Claim,
    MountRecord,
    SpaceDirectory,
    SpaceRecord,
    claimed,
    make_directories,
    remove_directories,
)
from mictlanfs_server.supervisor import Stage, Supervisor

log = logging.getLogger(__name__)

SUPERVISOR, ROUTER, MOUNT = "supervisor", "router", "mount"

SERVER_STOP_GRACE_S = 8.0
# How long programs that still use the mount hold up its end.
MOUNT_USERS_GRACE_S = 10.0
# For the mount to store what was written to it: its whole budget, on a slow disk.
MOUNT_STOP_GRACE_S = 75.0
MOUNT_INSIST_GRACE_S = 5.0
# Who is in a hurry wants it unmounted at once, and what was written stored all the same.
MOUNT_HURRIED_GRACE_S = 15.0
USERS_CHECK_INTERVAL_S = 0.25
# What a killed supervisor leaves ends by its lifeline, or by these.
LEFTOVER_GRACE_S = 3.0
LEFTOVER_TERM_GRACE_S = 12.0
LEFTOVER_KILL_GRACE_S = 5.0
PORT_PATIENCE_S = 10.0
CLAIM_CHECK_INTERVAL_S = 2.0
# Databases and logs of a router and a peer before anything is stored, and a little to store.
NEW_SPACE_SIZE_BYTES_MIN = 16 << 20
# Of the stages: 0 is the router, 2 the mount.
PEERS_STAGE = 1


@dataclass(frozen=True, slots=True)
class MountRequest:
    """A mount that belongs to the space.

    Attributes:
        path: absolute, without symlinks.
        options: as for `mount -o`; may be empty.
    """

    path: Path
    options: str = ""


def serve_space(
    options: ServerOptions,
    mount: MountRequest | None,
    on_ready: Callable[[SpaceRecord], None],
) -> None:
    """Start a space, call `on_ready` once it works, and stop it at a signal.

    SIGTERM, SIGINT and SIGHUP stop it in order; a second one hurries. Nothing that was started is
    left when this returns or raises.

    Raises:
        MictlanError: it could not be started; says why in one line.
    """
    directory = SpaceDirectory(options.data)
    if mount is not None:
        _check_ability(mount.options)
        _check_apart(mount.path, directory.path)
    with claimed(directory) as claim, _logged(directory):
        previous = directory.read_record()
        was_killed = previous is not None and bool(previous.processes)
        if previous is None:
            _check_room(directory.path)
        else:
            previous = _tidied(claim, previous)
        record = planned(options, previous, directory.peer_count())
        if mount is not None:
            _check_mountpoint(mount.path)
        check_ports(record, PORT_PATIENCE_S if was_killed else 0.0)
        with _mountpoint_made(mount) as mounted, lifeline() as lifeline_fd:
            record = replace(record, supervisor=current_process(), mount=mounted)
            _write(claim, record)
            space = _Space(claim, record, mount, lifeline_fd, options.lease_ttl_s)
            try:
                trio.run(space.serve, on_ready)
            finally:
                with suppress(OSError):
                    # As it is by now: peers may have been added or stopped.
                    claim.write_record(idle(space.record))


def end_leftovers(record: SpaceRecord) -> None:
    """End what a supervisor that was killed has left: processes, a mount, a made mountpoint.

    Only for who holds the lock of the space. Blocks for half a minute at most.
    """
    left = wait_ended(record.children.values(), LEFTOVER_GRACE_S)
    for number, grace_s in (
        (signal.SIGTERM, LEFTOVER_TERM_GRACE_S),
        (signal.SIGKILL, LEFTOVER_KILL_GRACE_S),
    ):
        for process in left:
            log.warning("pid %d is left of the last run: %s", process.pid, number.name)
            send_signal(process, number)
        left = wait_ended(left, grace_s)
    if record.mount is not None:
        path = Path(record.mount.mountpoint)
        # One that is alive is somebody else's by now: ours has just lost its process.
        try:
            unmount_if_dead(path)
        except MictlanError as error:
            log.warning("%s", error)
        if record.mount.is_made and not is_mounted(path):
            remove_directories([path])


def idle(record: SpaceRecord) -> SpaceRecord:
    """`record` of a space that nobody serves."""
    return replace(record, supervisor=None, children={}, mount=None)


def _tidied(claim: Claim, record: SpaceRecord) -> SpaceRecord:
    """`record` after what it tells of the last run is no more true."""
    if not record.processes and record.mount is None:
        return record
    end_leftovers(record)
    _write(claim, idle(record))
    return idle(record)


def _check_room(path: Path) -> None:
    """Refuse to make a space where there is no room for one; what exists may start and be emptied.

    Raises:
        MictlanError: NO_SPACE.
    """
    room = os.statvfs(path)
    free_bytes = room.f_bavail * room.f_frsize
    if free_bytes < NEW_SPACE_SIZE_BYTES_MIN:
        detail = (
            f"{free_bytes >> 10} KiB are free, a space needs {NEW_SPACE_SIZE_BYTES_MIN >> 20} MiB "
            "to begin with: make room, or choose another --data"
        )
        raise MictlanError(Kind.NO_SPACE, "start in", str(path), detail)


def _check_ability(options: str) -> None:
    try:
        check_ability(allow_other=parse_mount_options(options).allow_other)
    except UsageError:
        raise
    except MictlanError as error:
        detail = f"{error.detail}; `mictlanfs server start` needs no mount"
        raise MictlanError(error.kind, detail=detail) from error


def _check_mountpoint(path: Path) -> None:
    if unmount_if_dead(path):
        log.warning("%s was mounted and nobody served it: unmounted it", path)
    check_free(path)


def _check_apart(mount_path: Path, data_path: Path) -> None:
    if mount_path.is_relative_to(data_path) or data_path.is_relative_to(mount_path):
        raise UsageError(
            f"the data in {data_path} and the mountpoint {mount_path} lie in each other: "
            "choose another --data or another mountpoint"
        )


@contextmanager
def _logged(directory: SpaceDirectory) -> Iterator[None]:
    """Log what happens to the file of the supervisor too."""
    path = directory.log_of(SUPERVISOR)
    try:
        handler = LogFileHandler(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    handler.setFormatter(formatter_of(chosen_form(TEXT), SUPERVISOR))
    package = logging.getLogger(__package__)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


@contextmanager
def _mountpoint_made(mount: MountRequest | None) -> Iterator[MountRecord | None]:
    """Make the mountpoint if it is missing, and remove what was made afterwards."""
    if mount is None:
        yield None
        return
    try:
        made = make_directories(mount.path)
    except OSError as error:
        raise UsageError(f"cannot make {mount.path} to mount at: {error.strerror}") from error
    try:
        yield MountRecord(str(mount.path), is_made=bool(made))
    finally:
        remove_directories(made)


def _write(claim: Claim, record: SpaceRecord) -> None:
    try:
        claim.write_record(record)
    except OSError as error:
        path = claim.directory.record_path
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


class _Space:
    """One run of a space."""

    def __init__(
        self,
        claim: Claim,
        record: SpaceRecord,
        mount: MountRequest | None,
        lifeline_fd: int,
        lease_ttl_s: float | None = None,
    ) -> None:
        self._claim = claim
        self._lease_ttl_s = lease_ttl_s
        self._record = record
        self._mount = mount
        self._lifeline_fd = lifeline_fd
        self._is_record_behind = False
        self._forks: ForkServer | None = None
        self._router = ServerAddress(ROUTER_ID, reachable(record.host), record.port)

    @property
    def record(self) -> SpaceRecord:
        """What is recorded of the space now."""
        return self._record

    def change(
        self, *, peer_ports: Sequence[int] | None = None, stopped: Sequence[int] | None = None
    ) -> None:
        """Record other peers, durably. Raises UsageError: it cannot be, and nothing changed."""
        record = self._record
        record = replace(
            record,
            peer_ports=record.peer_ports if peer_ports is None else tuple(peer_ports),
            stopped_peers=record.stopped_peers if stopped is None else tuple(stopped),
        )
        _write(self._claim, record)
        self._record = record
        self._tell_sharers()

    def _tell_sharers(self) -> None:
        """Tell the peers how many of them share the disk."""
        path = self._claim.directory.sharers_path
        try:
            write_sharers(path, len(self._record.running_peers))
        except OSError as error:
            log.warning("peers announce a wrong part of the disk: %s: %s", path, error)

    async def serve(self, on_ready: Callable[[SpaceRecord], None]) -> None:
        """Run everything until a signal."""
        self._tell_sharers()
        with raising_single_errors():
            log_path = self._claim.directory.log_of(SUPERVISOR)
            async with open_fork_server(self._lifeline_fd, log_path) as self._forks:
                await self._serve(on_ready)

    async def _serve(self, on_ready: Callable[[SpaceRecord], None]) -> None:
        with channel.listening(self._claim.directory) as requests:
            async with open_probe(self._router) as probe, trio.open_nursery() as nursery:
                supervisor = Supervisor(self._stages(probe), self._record_children)
                pool = PeerPool(self, supervisor, probe, PEERS_STAGE)

                def ready() -> None:
                    if requests is not None:
                        nursery.start_soon(channel.serve, requests, pool.handle)
                    self._remember()
                    on_ready(self._record)
                    # Paths were shown as seen from where the user is. From now on that directory
                    # is free, and may even be the mountpoint.
                    os.chdir("/")

                await nursery.start(supervisor.obey_signals)
                nursery.start_soon(self._watch_claim, supervisor)
                await supervisor.run(ready)
                nursery.cancel_scope.cancel()

    async def _watch_claim(self, supervisor: Supervisor) -> None:
        """Stop when the data is gone: nobody could find this process any more to stop it."""
        while self._claim.is_valid():  # noqa: ASYNC110 - anybody may remove it.
            await trio.sleep(CLAIM_CHECK_INTERVAL_S)
        log.error("%s was removed or replaced: stopping", self._claim.directory.path)
        supervisor.request_stop()

    def _remember(self) -> None:
        try:
            paths.record_last_space(self._record.uri, self._claim.directory.path)
        except MictlanError as error:
            log.warning("commands will need --uri: %s", error)

    def _record_children(self, children: Mapping[str, ProcessIdentity]) -> None:
        self._record = replace(self._record, children=dict(children))
        try:
            self._claim.write_record(self._record)
        except OSError as error:
            # Once, not for each of the processes that end and start while the disk is full.
            if not self._is_record_behind:
                log.warning("cannot write %s: %s", self._claim.directory.record_path, error)
            self._is_record_behind = True
        else:
            self._is_record_behind = False

    def _stages(self, probe: Probe) -> list[Stage]:
        record, running = self._record, self._record.running_peers

        async def peers_ready() -> None:
            await probe.wait_for_peers([peer_address(record, index) for index in running])
            # From now on somebody may store data.
            self._claim.keep = True

        count = len(running)
        stages = [
            Stage("the router", [self._router_spec()], probe.wait_for_router, START_TIMEOUT_S),
            # `PEERS_STAGE` is its index.
            Stage(
                f"{count} peers" if count > 1 else "the peer",
                [self.peer_spec(index) for index in running],
                peers_ready,
                START_TIMEOUT_S,
            ),
        ]
        if self._mount is not None:
            stages.append(self._mount_stage(self._mount))
        return stages

    def _router_spec(self) -> ChildSpec:
        directory = self._claim.directory
        ttl_s = self._lease_ttl_s
        return self._server_spec(
            ROUTER,
            *(() if ttl_s is None else ("--lease-ttl", str(ttl_s))),
            *("--data", str(directory.router), "--port", str(self._record.port)),
            *("--id", ROUTER_ID),
        )

    def peer_spec(self, index: int) -> ChildSpec:
        """How a peer is run."""
        directory, record = self._claim.directory, self._record
        capacity = () if record.capacity is None else ("--capacity", str(record.capacity))
        url = peer_address(record, index).base_url
        advertise = ("--advertise", url) if is_wildcard(record.host) else ()
        return self._server_spec(
            peer_name(index),
            *("--data", str(directory.peer(index)), "--port", str(record.peer_ports[index])),
            *("--id", peer_id(index), "--router", record.uri),
            *("--sharers", str(len(record.running_peers))),
            *("--sharers-file", str(directory.sharers_path)),
            *capacity,
            *advertise,
        )

    def _server_spec(self, name: str, *arguments: str) -> ChildSpec:
        kind = name.partition("-")[0]
        insecure = ("--insecure",) if self._record.insecure else ()
        common = ("--host", self._record.host, "--lifeline-fd", str(self._lifeline_fd))
        words = ("server", kind, *arguments, *common, *insecure)

        async def fork(output: int) -> ForkedProcess | None:
            return None if self._forks is None else await self._forks.start(words, output)

        return ChildSpec(
            name=name,
            command=command_line(*words),
            log_path=self._claim.directory.log_of(name),
            fork=fork,
            lifeline_fd=self._lifeline_fd,
            stop_grace_s=SERVER_STOP_GRACE_S,
        )

    def _mount_stage(self, mount: MountRequest) -> Stage:
        async def clear() -> None:
            await trio.to_thread.run_sync(_unmount_lazily, mount.path)

        async def wait_unused() -> None:
            await _wait_unused(mount.path)

        async def ready() -> None:
            await wait_until_answering(mount.path)

        options = ("-o", mount.options) if mount.options else ()
        arguments = ("mount", self._record.uri, str(mount.path), "-f", *options)
        child = ChildSpec(
            name=MOUNT,
            command=guarded_command_line(self._lifeline_fd, *arguments),
            log_path=self._claim.directory.log_of(MOUNT),
            lifeline_fd=self._lifeline_fd,
            may_end=True,
            before_start=clear,
            before_stop=wait_unused,
            stop_grace_s=MOUNT_STOP_GRACE_S,
            insist=clear,
            insist_grace_s=MOUNT_INSIST_GRACE_S,
            hurried_grace_s=MOUNT_HURRIED_GRACE_S,
        )
        return Stage(f"the mount at {mount.path}", [child], ready, START_TIMEOUT_S)


def _unmount_lazily(path: Path) -> None:
    """Take the space at `path`, if there is one, out of the tree: who uses it may go on."""
    if not is_mounted(path):
        return
    try:
        unmount(path, lazy=True)
    except MictlanError as error:
        # It may have been unmounted by somebody else just before.
        if is_mounted(path):
            log.warning("%s", error)


async def _wait_unused(path: Path) -> None:
    """Give programs that use the mount some time to end, and say which they are."""
    said: str | None = None
    with trio.move_on_after(MOUNT_USERS_GRACE_S):
        while users := users_of(path):
            if said is None:
                said = names_of(users)
                log.warning(
                    "%s is in use by %s: waiting up to %g s (stop again to unmount at once)",
                    *(path, said, MOUNT_USERS_GRACE_S),
                )
            await trio.sleep(USERS_CHECK_INTERVAL_S)
        return
    log.warning("%s is still in use: unmounting it all the same", path)
