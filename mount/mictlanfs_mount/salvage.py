"""What this mount could not commit, brought to a recovery file instead of being lost.

Three things bring something here: the session was replaced (all that its leases covered and that is
not committed), the router refused an operation that was applied here already (that operation, and
the bytes of files that were never made), and an unmount whose time is over (everything).

From the loss of a session on nothing of it may be committed: others may have changed the same
since. So the bytes are taken out of write-back in the very step in which the session is replaced;
the operations come one by one as their batch is answered, in their order. When the log has nothing
left of the lost session one file is written with all of it.

A router that was only started again replaces no session: the leases are claimed, the batches are
sent again, and nothing comes here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from mictlanfs import wire
from mictlanfs.client.session import Session
from mictlanfs.clock import Clock
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, Buffer, FileKind, InodeNumber
from mictlanfs.recoveries import (
    FILES_MAX,
    OPS_MAX,
    SIZE_BYTES_MAX,
    KnownPath,
    LostFile,
    LostOperation,
    Recovery,
    Touched,
    new_recovery_id,
    write_recovery,
)
from mictlanfs_mount.inodes import Inode, InodeTable
from mictlanfs_mount.kernelcache import NotifiedKernel
from mictlanfs_mount.leases import LeaseTable
from mictlanfs_mount.pieces import Pieces
from mictlanfs_mount.settings import MountSettings
from mictlanfs_mount.writeback import FileWriter, WriteBack

log = logging.getLogger(__name__)

# How long more of the same is waited for before a file is written.
GATHER_S_MAX = 5.0
# What one refused operation drags along comes soon.
GATHER_S_MIN = 0.5
DEPTH_MAX = wire.RESOLVE_DEPTH_MAX
SESSION_LOST = "the session with the space was lost, and its leases with it"
UNMOUNTED = "it could not be stored before the unmount"


@dataclass(eq=False)
class _Gathered:
    """What goes into one recovery file.

    Attributes:
        bodies: of each file its bytes, in the order of its ranges.
    """

    reason: str
    ops: list[LostOperation] = field(default_factory=list)
    files: list[LostFile] = field(default_factory=list)
    bodies: list[list[Buffer]] = field(default_factory=list)
    size: int = 0
    dropped_ops: int = 0
    dropped_bytes: int = 0


class _Paths:
    """The names that leases keep, read backwards at one moment."""

    def __init__(self, table: LeaseTable | None) -> None:
        self._above: dict[InodeNumber, tuple[InodeNumber, bytes]] = {}
        for lease in table or ():
            for name, inode in lease.names.items():
                if inode is not None and _is_wanted(inode):
                    self._above[inode.ino] = (lease.key, name)

    def path(self, ino: InodeNumber) -> KnownPath:
        """Where an inode lies, from the highest directory that is known."""
        names: list[bytes] = []
        while ino != ROOT_INODE and ino in self._above and len(names) < DEPTH_MAX:
            ino, name = self._above[ino]
            names.append(name)
        return KnownPath(tuple(reversed(names)), ino)

    def file(self, ino: InodeNumber) -> KnownPath | None:
        """The path of a file; None when it has no name that is known."""
        return self.path(ino) if ino in self._above else None


def _is_wanted(inode: Inode) -> bool:
    return inode.is_dirty or inode.attributes.kind is FileKind.DIRECTORY


class Salvager:
    """Gathers what is lost of one mount and writes it to recovery files.

    Attributes:
        table: the leases, whose names tell where things lie; None without leases.
        kernel: which has cached what was written here; None when nothing is mounted.
        written: every recovery file that was written.
    """

    table: LeaseTable | None = None
    kernel: NotifiedKernel | None = None

    def __init__(
        self,
        nursery: trio.Nursery,
        session: Session,
        writeback: WriteBack,
        inodes: InodeTable,
        clock: Clock,
        settings: MountSettings,
    ) -> None:
        self._nursery = nursery
        self._session = session
        self._writeback = writeback
        self._inodes = inodes
        self._clock = clock
        self._settings = settings
        self._paths: _Paths | None = None
        self._gathered: _Gathered | None = None
        # Inodes that were made here and not in the space.
        self._unmade: set[InodeNumber] = set()
        self.written: list[Path] = []
        writeback.on_given_up = self.take_unmade

    # --- gathering: no await ---------------------------------------------------------------------

    def note_paths(self) -> None:
        """The names kept by leases are about to be forgotten."""
        self._paths = _Paths(self.table)

    def take_dirty(self, reason: str = SESSION_LOST) -> bool:
        """Take all that is dirty: it must not be committed any more.

        Returns whether nobody has one of the files open, who could be told.
        """
        dirty = [writer for writer in self._writeback if not writer.is_clean]
        for writer in dirty:
            self._take_file(writer, reason)
        if dirty and self.kernel is not None:
            self._nursery.start_soon(self._let_kernel_forget, [writer.ino for writer in dirty])
        if self._gathered is None and not self._session.unanswered_count:
            # Nothing was lost, and names change.
            self._paths = None
        return any(writer.error is None for writer in dirty)

    def take_operation(
        self, op: wire.Operation, error: MictlanError, inodes: Sequence[Inode]
    ) -> None:
        """An operation that was applied here was not applied in the space."""
        if isinstance(op, wire.MakeNode):
            self._unmade.add(op.ino)
        reason = SESSION_LOST if error.kind is Kind.FENCED else f"the router refused it: {error}"
        gathered = self._begin(reason)
        if len(gathered.ops) >= OPS_MAX:
            if not gathered.dropped_ops:
                log.error("more than %d operations: the others are lost", OPS_MAX)
            gathered.dropped_ops += 1
            return
        touched = tuple(
            Touched(inode.ino, inode.attributes.version, inode.attributes.content_version)
            for inode in inodes
        )
        parent, new_parent = _directories_of(op)
        gathered.ops.append(
            LostOperation(op, self._path(parent), self._path(new_parent), touched, str(error))
        )

    def take_unmade(self, writer: FileWriter) -> bool:
        """The space does not know a file: take its bytes if it should; whether it was done."""
        if writer.ino not in self._unmade:
            return False
        self._take_file(writer, "the file could not be made in the space")
        return True

    def _path(self, ino: InodeNumber | None) -> KnownPath | None:
        assert self._paths is not None
        return None if ino is None else self._paths.path(ino)

    def _begin(self, reason: str) -> _Gathered:
        if self._paths is None:
            self.note_paths()
        if self._gathered is None:
            self._gathered = _Gathered(reason)
            self._nursery.start_soon(self._write_when_complete)
        return self._gathered

    def _take_file(self, writer: FileWriter, reason: str) -> None:
        gathered = self._begin(reason)
        size, mtime_ns = writer.end, writer.mtime_ns
        inode = self._inodes.get(writer.ino)
        detail = "what was written is not in the space: see 'mictlanfs recover'"
        is_open = inode is not None and inode.open_count > 0
        error = MictlanError(Kind.STALE, "write back", str(writer.ino), detail)
        merged = Pieces()
        for pieces in writer.take(error if is_open else None):
            for start, data in pieces.located():
                merged.write(start, data)
        if gathered.size + merged.size > SIZE_BYTES_MAX or len(gathered.files) >= FILES_MAX:
            log.error("%d bytes of inode %d do not fit and are lost", merged.size, writer.ino)
            gathered.dropped_bytes += merged.size
            return
        if inode is not None:
            size = max(size, inode.attributes.size)
            inode.kernel_content_version = inode.told_content_version = -1
        assert self._paths is not None
        gathered.size += merged.size
        gathered.bodies.append(merged.buffers())
        gathered.files.append(
            LostFile(
                writer.ino,
                self._paths.file(writer.ino),
                -1 if inode is None else inode.attributes.content_version,
                size,
                mtime_ns,
                0o600 if inode is None else inode.attributes.mode,
                0 if inode is None else inode.attributes.uid,
                0 if inode is None else inode.attributes.gid,
                tuple((start, end - start) for start, end in merged.runs()),
                b"",
            )
        )

    async def _let_kernel_forget(self, inodes: Iterable[InodeNumber]) -> None:
        if self.kernel is not None:
            await self.kernel.forget((), list(inodes))
            await self.kernel.forget_pages(list(inodes))

    # --- writing ---------------------------------------------------------------------------------

    async def _write_when_complete(self) -> None:
        await trio.sleep(GATHER_S_MIN)
        with trio.move_on_after(GATHER_S_MAX):
            await self._session.flush()
        await self.write()

    async def write(self) -> Path | None:
        """Write what was gathered; None when there is nothing, or it could not be written.

        Cancellation: it goes on, since it is the only copy.
        """
        gathered, self._gathered = self._gathered, None
        self._paths = None
        if gathered is None or not (gathered.ops or gathered.files or gathered.dropped_bytes):
            return None
        time_ns = self._clock.wall_ns()
        recovery = Recovery(
            new_recovery_id(time_ns),
            self._session.grant.space_id,
            self._settings.uri,
            str(self._settings.mountpoint),
            time_ns,
            gathered.reason,
            tuple(gathered.ops),
            tuple(gathered.files),
            gathered.dropped_ops,
            gathered.dropped_bytes,
        )
        try:
            with trio.CancelScope(shield=True):
                path = await trio.to_thread.run_sync(write_recovery, recovery, gathered.bodies)
        except MictlanError as error:
            log.critical("%s, and is lost: %s", _amount(recovery), error)
            return None
        self.written.append(path)
        log.warning(
            "%s is kept in %s (%s): see 'mictlanfs recover show %s'",
            _amount(recovery),
            path,
            recovery.reason,
            recovery.id,
        )
        return path

    async def take_all(self) -> Path | None:
        """At the end of the mount: take all that is not committed, and write it."""
        is_clean = all(writer.is_clean for writer in self._writeback)
        if is_clean and self._gathered is None and not self._session.unanswered_count:
            return None
        self.note_paths()
        error = MictlanError(Kind.TIMED_OUT, "unmount", "", UNMOUNTED)
        if self._gathered is None:
            self._gathered = _Gathered(UNMOUNTED)
        self._session.give_up(error)
        self.take_dirty(UNMOUNTED)
        return await self.write()


def _amount(recovery: Recovery) -> str:
    return (
        f"what the space did not take ({len(recovery.ops)} operations, "
        f"{recovery.lost_bytes} bytes of {len(recovery.files)} files)"
    )


def _directories_of(op: wire.Operation) -> tuple[InodeNumber | None, InodeNumber | None]:
    """The directories whose names an operation changes."""
    if isinstance(op, wire.Rename):
        return op.parent, op.new_parent
    if isinstance(op, wire.MakeNode | wire.Unlink | wire.RemoveDirectory | wire.Link):
        return op.parent, None
    return None, None
