"""Open files whose names other mounts take away: they stay what they are until they are closed.

While a lease covers an open file nobody else can remove it. So the router is told to *sustain* it
when that lease is given up, in the same request, before whoever waits for the lease gets it. What
is opened without a lease is sustained first, and then asked for once more.

Invariant: an open file is covered by a lease, or sustained for the session, or the router is being
told of it; or the session was fenced. What is sustained is released with the last close, or when
the router has been told of what was closed meanwhile.

Opens that are refused. A name may be given to other files all the time. Between the answer to a
look-up and the open that follows, the lease may be given up and the file removed: the open is
STALE, and the kernel looks the path up anew, but only once. So what is looked up soon after such a
refusal is kept open here for a moment, until the open has come.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_mount.filesystem import REOPEN_WITHIN_S, Caller, Opened
from mictlanfs_mount.handles import HandleNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.leasedreads import LeasedReads
from mictlanfs_mount.leases import Lease
from mictlanfs_mount.setids import IsMember

# How often a name is looked up anew whose file is gone before it can be kept.
ATTEMPTS_MAX = 10
# How long a look-up may wait for others to give up leases.
LEASES_WAIT_S_MAX = 30.0
# Files that are kept open for the sake of an open that may come.
EXPECTED_COUNT_MAX = 64


class LeasedOpens(LeasedReads):
    """A file system whose open files survive their names."""

    # Looking the path up anew may have to wait for leases. Nothing is lost when it is another open:
    # what it appends finds the end of the file (`fileends`).
    reopen_within_s = LEASES_WAIT_S_MAX

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Open files that the router keeps without a name, and for the session of which epoch.
        self._sustained: dict[InodeNumber, int] = {}
        self._expected_count = 0

    # --- opening ---------------------------------------------------------------------------------

    async def _open_uncovered(
        self,
        ino: InodeNumber,
        flags: int,
        thread: int | None,
        *,
        is_root: bool,
        is_member: IsMember,
    ) -> Opened:
        try:
            opened = await super()._open_uncovered(
                ino, flags, thread, is_root=is_root, is_member=is_member
            )
            await self._see_sustained(opened.handle)
        except MictlanError as error:
            if error.kind is Kind.STALE:
                self._note_refused_open()
            raise
        return opened

    async def create(
        self, parent: InodeNumber, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Opened, Inode]:
        """Create a file and open it; without O_EXCL, open the one another mount just made."""
        opened, inode = await super().create(parent, name, mode, flags, caller)
        if not self._covers(inode):
            # It was made at the router, and may have been removed elsewhere by now.
            await self._see_sustained(opened.handle)
        return opened, inode

    def lookup(self, parent: InodeNumber, name: bytes) -> Coroutine[Any, Any, Inode]:
        """Resolve a name. Raises NOT_FOUND, NOT_DIRECTORY."""
        # No layer of its own around what is asked for most.
        if self._clock.monotonic_s() < self._reopening_until_s:
            return self._look_up_to_open(parent, name)
        return super().lookup(parent, name)

    async def _look_up_to_open(self, parent: InodeNumber, name: bytes) -> Inode:
        """As `lookup`; what is found can be opened for a moment, whatever becomes of the name."""
        for _ in range(ATTEMPTS_MAX):
            inode = await super().lookup(parent, name)
            is_full = self._expected_count >= EXPECTED_COUNT_MAX
            if self.keeper is None or is_full or inode.attributes.kind is not FileKind.FILE:
                return inode
            number = self._add_file_handle(inode, 0)
            try:
                await self._see_sustained(number)
            except MictlanError as error:
                if error.kind is not Kind.STALE:
                    raise
            else:
                self._expected_count += 1
                self.keeper.start_soon(self._close_in_a_while, number)
                return inode
        return await super().lookup(parent, name)

    async def _close_in_a_while(self, number: HandleNumber) -> None:
        await trio.sleep(REOPEN_WITHIN_S)
        self._expected_count -= 1
        await self._close(number)

    # --- being kept ------------------------------------------------------------------------------

    def _is_sustained(self, ino: InodeNumber) -> bool:
        assert self.keeper is not None
        return self._sustained.get(ino) == self.keeper.ref.epoch

    async def _see_sustained(self, number: HandleNumber) -> None:
        """See that an open file can be read whatever becomes of its name.

        Raises STALE when it is gone already; then, and when it fails, the handle is closed.
        """
        inode = self.handles.file(number).inode
        if self.keeper is None or self.keeper.table.covers(inode) or self._is_sustained(inode.ino):
            return
        try:
            await self.keeper.sustain((inode.ino,))
            await self._asked(inode.ino)
        except BaseException:
            await self._close(number)
            raise

    def opened_under(self, leases: Sequence[Lease]) -> list[InodeNumber]:
        """Files that are open, and may be removed elsewhere now that these leases have ended."""
        ended = set(leases)
        found = {file.ino for file in self.handles.opened_files() if file.lease in ended}
        return [ino for ino in found if not self._is_sustained(ino)]

    async def note_sustained(self, inodes: Sequence[InodeNumber], epoch: int) -> None:
        """The router keeps these for the session of this epoch, whatever becomes of their names."""
        assert self.keeper is not None
        for ino in inodes:
            inode = self.inodes.get(ino)
            if inode is not None and inode.open_count:
                self._sustained[ino] = epoch
            elif epoch == self.keeper.ref.epoch:
                # It was closed while the router was told.
                await self._release(ino)

    async def _close(self, number: HandleNumber) -> None:
        handle = self.handles.get(number)
        await super()._close(number)
        if self._sustained and handle is not None and handle.inode.open_count == 0:
            await self._end_sustaining(handle.inode.ino)

    async def _end_sustaining(self, ino: InodeNumber) -> None:
        """Let go of a file that is not open any more. It may have lost its name elsewhere."""
        assert self.keeper is not None
        if self._sustained.pop(ino, None) == self.keeper.ref.epoch:
            await self._release(ino)
