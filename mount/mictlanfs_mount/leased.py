"""A file system that changes things under leases for writing and tells the router afterwards.

A change that a lease covers is checked and applied here, exactly as the router will do it, put into
the log of the session, and its verb returns. Nobody else can see or change what it touched before
the lease is given up, which waits for the log. What happens when:

- *here at once*: nodes made, names of files removed, files renamed, empty directories removed,
  modes, owners and times changed, bytes written;
- *at the router, with the leases it needs, before the verb returns*: everything else (the root,
  hard links, directories renamed, exchanges, other sizes, extended attributes and what depends on
  them). It waits for the log, so it comes after what was done before.

What is written has its place behind what was changed before it, and before what is changed after:
a change of attributes of a file with dirty bytes waits for them (`FileWriter.post_after`), unseen.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import trio

from mictlanfs import acl, wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, Attributes, BucketPolicy, FileKind, InodeNumber, Node
from mictlanfs.wire import LeaseMode
from mictlanfs_mount.filesystem import Caller, inherited, nearest_time
from mictlanfs_mount.gone import removed, stale_when_gone
from mictlanfs_mount.handles import HandleNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.leasedlog import ALWAYS_WANTED, ATTEMPTS_MAX, LeasedLog
from mictlanfs_mount.leases import Lease
from mictlanfs_mount.writeback import FileWriter

log = logging.getLogger(__name__)

_SPECIAL = (FileKind.BLOCK_DEVICE, FileKind.CHARACTER_DEVICE)
# How often a recall looks whether the session, and with it the lease, has ended.
STORE_LOOK_S = 0.5


class LeasedFileSystem(LeasedLog):
    """All verbs under leases."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Writes that wait for a lease, by file: the kernel holds the pages that they write.
        self._waiting_writes: Counter[InodeNumber] = Counter()

    # --- making ----------------------------------------------------------------------------------

    async def make(
        self,
        parent: InodeNumber,
        name: bytes,
        kind: FileKind,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        """Create a node; the errors are those of `wire.MakeNode`."""
        if self.keeper is None:
            return await super().make(parent, name, kind, mode, caller, rdev=rdev, target=target)
        await self._wait_for_room()
        # First, so that nothing is awaited between the look at the lease and the log. A number
        # that is not used is not missed.
        ino = await self._session.new_inode()
        await self._know_bucket(parent)
        lease, directory = await self._own_name(parent, name)
        if lease.names.get(name) is not None:
            raise MictlanError(Kind.EXISTS, "make", os.fsdecode(name))
        known = directory.attributes
        _check_named(known, name, "make")
        gid, mode = inherited(known, kind, caller.gid, mode)
        umask = 0 if kind is FileKind.SYMLINK else caller.umask & 0o777
        op = wire.MakeNode(
            parent,
            name,
            ino,
            kind,
            mode & 0o7777 & ~umask,
            caller.uid,
            gid,
            self._clock.wall_ns(),
            rdev if kind in _SPECIAL else 0,
            target,
            masked=mode & umask,
        )
        if parent == ROOT_INODE or known.has_xattrs:
            # Inheriting an access control list, and the rules of the root, are the router's.
            return await self._make_at_router(op, directory)
        inode = self._made(op, lease, directory)
        await self._after_change()
        return inode

    async def _know_bucket(self, parent: InodeNumber) -> None:
        """Know in which bucket a directory lies, if that counts what is written there."""
        directory = self.inodes.get(parent)
        if directory is not None and directory.policy.quota and not directory.bucket:
            await self._content.quotas.find_bucket(directory)

    def _made(self, op: wire.MakeNode, lease: Lease, directory: Inode) -> Inode:
        assert self.keeper is not None
        is_directory = op.kind is FileKind.DIRECTORY
        attributes = Attributes(
            op.ino,
            op.kind,
            op.mode,
            op.uid,
            op.gid,
            len(op.target),
            op.time_ns,
            op.time_ns,
            op.time_ns,
            2 if is_directory else 1,
            op.rdev,
            version=1,
            content_version=1,
        )
        inode = self.remembered(Node(attributes, op.target, policy=directory.policy), 0.0)
        inode.bucket = directory.bucket
        inode.lease = self.keeper.table.made(op.ino, lease) if is_directory else lease
        inode.extents.reset(1)
        inode.extents.learn(0, None, (), ())
        self.keeper.table.set_name(lease, op.name, inode)
        _change_entries(directory, op.time_ns, entries=1, directories=int(is_directory))
        self._post(op, inode, directory)
        return inode

    async def _make_at_router(self, op: wire.MakeNode, directory: Inode) -> Inode:
        assert self.keeper is not None
        touched = await self._synchronously(op, (), (wire.Place(op.parent, op.name),))
        policy = BucketPolicy() if op.parent == ROOT_INODE else directory.policy
        inode = self.remembered(Node(touched[0], op.target, policy=policy), 0.0)
        inode.extents.reset(touched[0].content_version)
        inode.extents.learn(0, None, (), ())
        lease = self.keeper.table.held(op.parent)
        if lease is not None:
            self.keeper.table.set_name(lease, op.name, inode)
            if op.kind is not FileKind.DIRECTORY:
                inode.lease = lease
        await self._after_change()
        return inode

    async def link(self, ino: InodeNumber, parent: InodeNumber, name: bytes) -> Inode:
        """Give an inode another name; the errors are those of `wire.Link`."""
        if self.keeper is None:
            return await super().link(ino, parent, name)
        await self._content.flush(ino)
        op = wire.Link(ino, parent, name, self._clock.wall_ns())
        try:
            touched = await self._synchronously(op, (ino,), (wire.Place(parent, name),))
        except MictlanError as error:
            if error.kind is Kind.STALE:
                # Unless it is the directory that is gone, the path of the file is walked anew.
                _check_named((await self.getattr(parent)).attributes, name, "link")
            raise
        inode = self.inodes.learn(touched[0], 0.0)
        self._now_covered_otherwise(inode)
        self._set_name_if_leased(parent, name, inode)
        await self._after_change()
        return inode

    def _now_covered_otherwise(self, inode: Inode) -> None:
        """The names of an inode changed, and with them the key that covers it.

        What the kernel was told under the other lease would outlive it.
        """
        lease, inode.lease = inode.lease, None
        if self.kernel is not None:
            self.kernel.attributes_changed(inode.ino)
        if lease is not None and inode.open_count == 0:
            # Pages of an open file go when the other lease ends.
            lease.told_inodes.discard(inode.ino)

    def _set_name_if_leased(self, parent: InodeNumber, name: bytes, inode: Inode | None) -> None:
        """What a name stands for after a change at the router. No await since its answer.

        A lease that is being given up may end as one for reading, so it is told, too.
        """
        assert self.keeper is not None
        lease = self.keeper.table.held(parent)
        if lease is not None:
            self.keeper.table.set_name(lease, name, inode)
            if inode is None:
                # The kernel has dropped the name by itself.
                lease.told_names.discard(name)

    # --- removing --------------------------------------------------------------------------------

    async def unlink(self, parent: InodeNumber, name: bytes) -> None:
        """Remove a name of what is not a directory."""
        if self.keeper is None:
            return await super().unlink(parent, name)
        await self._wait_for_room()
        lease, directory, inode = await self._own_entry(parent, name, "unlink")
        if inode.attributes.kind is FileKind.DIRECTORY:
            raise MictlanError(Kind.IS_DIRECTORY, "unlink", os.fsdecode(name))
        if self._has_bytes_to_keep(inode):
            await self._store_what_is_kept(inode)
            lease, directory, inode = await self._own_entry(parent, name, "unlink")
        sustain = inode.open_count > 0
        op = wire.Unlink(parent, name, self._clock.wall_ns(), sustain)
        if inode.attributes.nlink != 1 or parent == ROOT_INODE:
            await self._content.flush(inode.ino)
            await self._remove_at_router(op, inode)
            return None
        self._remove_entry(lease, directory, name, op.time_ns)
        self._lose_last_name(inode, op.time_ns)
        self._post(op, inode, directory)
        if not sustain:
            self._content.discard(inode.ino)
        await self._after_change()
        return None

    async def _remove_at_router(self, op: wire.Unlink | wire.RemoveDirectory, inode: Inode) -> None:
        touched = await self._synchronously(op, (), (wire.Place(op.parent, op.name),))
        self._set_name_if_leased(op.parent, op.name, None)
        self._now_covered_otherwise(inode)
        await self._let_go(touched[0], sustain=op.sustain)
        await self._after_change()

    async def _own_entry(
        self, parent: InodeNumber, name: bytes, operation: str
    ) -> tuple[Lease, Inode, Inode]:
        """Lease a directory for writing and know what is under a name of it. No await afterwards.

        Returns:
            The lease, the directory, and what the name stands for, covered.
        """
        assert self.keeper is not None
        for _ in range(ATTEMPTS_MAX):
            lease, directory = await self._own_name(parent, name)
            inode = lease.names.get(name)
            if inode is None:
                raise MictlanError(Kind.NOT_FOUND, operation, os.fsdecode(name))
            if self.keeper.table.covers(inode):
                return lease, directory, inode
            # Not a look at the inode alone: while others wait for it no lease comes with that.
            await self._acquire_names(wire.Place(parent, name))
        raise MictlanError(Kind.BUSY, "lease", str(parent), ALWAYS_WANTED)

    def _remove_entry(
        self, lease: Lease, directory: Inode, name: bytes, time_ns: int, *, directories: int = 0
    ) -> None:
        assert self.keeper is not None
        self.keeper.table.set_name(lease, name, None)
        # The kernel has dropped the name by itself.
        lease.told_names.discard(name)
        _change_entries(directory, time_ns, entries=-1, directories=-directories)

    def _lose_last_name(self, inode: Inode, time_ns: int) -> None:
        if inode.lease is not None and inode.open_count == 0:
            inode.lease.told_inodes.discard(inode.ino)
        inode.attributes = msgspec.structs.replace(inode.attributes, nlink=0, ctime_ns=time_ns)

    async def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        """Remove an empty directory; in the root, an empty bucket."""
        if self.keeper is None:
            return await super().rmdir(parent, name)
        await self._wait_for_room()
        lease, directory, inode = await self._own_entry(parent, name, "rmdir")
        if inode.attributes.kind is not FileKind.DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY, "rmdir", os.fsdecode(name))
        own = self.keeper.table.writable(inode.ino)
        sustain = inode.open_count > 0
        op = wire.RemoveDirectory(parent, name, self._clock.wall_ns(), sustain)
        if own is None or own is not inode.lease or parent == ROOT_INODE:
            await self._remove_at_router(op, inode)
            self.keeper.forget(inode.ino)
            return None
        if inode.attributes.size:
            raise MictlanError(Kind.NOT_EMPTY, "rmdir", os.fsdecode(name))
        self._remove_entry(lease, directory, name, op.time_ns, directories=1)
        self._lose_last_name(inode, op.time_ns)
        self._post(op, inode, directory)
        await self._after_change()
        return None

    async def _let_go(self, attributes: Attributes, *, sustain: bool) -> None:
        if self.keeper is None:
            return await super()._let_go(attributes, sustain=sustain)
        inode = self.inodes.get(attributes.ino)
        if attributes.nlink == 0 and (inode is None or inode.open_count == 0):
            # A file of several names had a lease of its own.
            self.keeper.forget(attributes.ino)
            self._content.discard(attributes.ino)
            if sustain:
                await self._release(attributes.ino)
        return None

    async def _release(self, ino: InodeNumber) -> None:
        if self.keeper is None:
            return await super()._release(ino)
        self._sustained.pop(ino, None)
        self._post(wire.Release(ino))
        return None

    # --- renaming --------------------------------------------------------------------------------

    async def rename(
        self,
        parent: InodeNumber,
        name: bytes,
        new_parent: InodeNumber,
        new_name: bytes,
        mode: int,
    ) -> None:
        """Move a name; `mode` is one of `wire.RenameMode`."""
        if self.keeper is None or mode not in _MOVES:
            return await super().rename(parent, name, new_parent, new_name, mode)
        await self._wait_for_room()
        kept: Inode | None = None
        places = wire.Place(parent, name), wire.Place(new_parent, new_name)
        for _ in range(ATTEMPTS_MAX):
            old, new = await self._own_names(*places)
            source, target = old[0].names.get(name), new[0].names.get(new_name)
            if source is None:
                raise MictlanError(Kind.NOT_FOUND, "rename", os.fsdecode(name))
            known = [node for node in (source, target) if node is not None]
            if not all(self.keeper.table.covers(node) for node in known):
                await self._acquire_names(*places)
            elif target is not None and target is not kept and self._has_bytes_to_keep(target):
                await self._store_what_is_kept(target)
                kept = target
            elif target is None or self._content.is_clean(source.ino):
                break
            else:
                # Who saves a file so must not find an empty one after a crash: the bytes first.
                await self._content.flush(source.ino)
        else:
            raise MictlanError(Kind.BUSY, "lease", str(parent), ALWAYS_WANTED)
        _check_named(new[1].attributes, new_name, "rename")
        if mode == wire.RenameMode.NO_REPLACE and target is not None:
            raise MictlanError(Kind.EXISTS, "rename", os.fsdecode(new_name))
        sustain = target is not None and target.open_count > 0
        op = wire.Rename(parent, name, new_parent, new_name, self._clock.wall_ns(), mode, sustain)
        is_plain = (
            mode != wire.RenameMode.EXCHANGE
            and ROOT_INODE not in {parent, new_parent}
            and old[1].policy == new[1].policy
            # Another bucket may have the same policy, and no room.
            and (parent == new_parent or not new[1].policy.quota)
            and all(_is_plain_file(node) for node in (source, target) if node is not None)
        )
        if source is target:
            return None
        if not is_plain:
            return await self._rename_at_router(op, source, target)
        self._move(op, old, new, source, target)
        await self._after_change()
        return None

    def _move(
        self,
        op: wire.Rename,
        old: tuple[Lease, Inode],
        new: tuple[Lease, Inode],
        source: Inode,
        target: Inode | None,
    ) -> None:
        assert self.keeper is not None
        (lease, directory), (new_lease, new_directory) = old, new
        self._remove_entry(lease, directory, op.name, op.time_ns)
        self.keeper.table.set_name(new_lease, op.new_name, source)
        _change_entries(new_directory, op.time_ns, entries=int(target is None), directories=0)
        source.attributes = msgspec.structs.replace(source.attributes, ctime_ns=op.time_ns)
        if source.lease is not None and source.ino in source.lease.told_inodes:
            source.lease.told_inodes.discard(source.ino)
            new_lease.told_inodes.add(source.ino)
        source.lease = new_lease
        source.bucket = new_directory.bucket
        if target is not None:
            self._lose_last_name(target, op.time_ns)
        # The one that moves first, the one that is replaced last.
        self._post(op, source, *{directory, new_directory}, *([target] if target else []))
        if target is not None and not op.sustain:
            self._content.discard(target.ino)

    async def _rename_at_router(self, op: wire.Rename, source: Inode, target: Inode | None) -> None:
        assert self.keeper is not None
        for node in (source, target):
            if node is not None:
                await self._content.flush(node.ino)
        places = (wire.Place(op.parent, op.name), wire.Place(op.new_parent, op.new_name))
        touched = await self._synchronously(op, (), places)
        moved = self.inodes.learn(touched[0], 0.0)
        replaced = self.inodes.learn(touched[3], 0.0) if len(touched) > 3 else None
        is_exchange = op.mode == wire.RenameMode.EXCHANGE
        self._set_name_if_leased(op.parent, op.name, replaced if is_exchange else None)
        self._set_name_if_leased(op.new_parent, op.new_name, moved)
        for node in (moved, replaced):
            if node is None:
                continue
            self._now_covered_otherwise(node)
            node.bucket = InodeNumber(0)
            own = self.keeper.table.held(node.ino)
            if own is not None:
                own.parent = op.new_parent if node is moved else op.parent
        self._note_policies_moved(op)
        for attributes in touched[3:]:
            await self._let_go(attributes, sustain=op.sustain)
        await self._after_change()

    def _note_policies_moved(self, op: wire.Rename) -> None:
        """What lies below a directory that went to another bucket is kept otherwise from now on."""
        old, new = self.inodes.get(op.parent), self.inodes.get(op.new_parent)
        if old is not None and new is not None and old.policy == new.policy:
            return
        assert self.keeper is not None
        for inode in self.inodes:
            # What is dirty goes where it was written to, and its lease has to wait for it.
            if not (inode.is_dirty or inode.pending_count):
                inode.lease = None
                inode.bucket = InodeNumber(0)

    # --- attributes ------------------------------------------------------------------------------

    async def setattr(
        self,
        ino: InodeNumber,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Inode:
        """Change attributes; None leaves one as it is."""
        changes: dict[str, Any] = {
            "mode": None if mode is None else stat.S_IMODE(mode),
            "uid": uid,
            "gid": gid,
            "size": size,
            "atime_ns": nearest_time(atime_ns),
            "mtime_ns": nearest_time(mtime_ns),
        }
        if self.keeper is None:
            return await super().setattr(ino, **changes)
        await self._wait_for_room()
        kept = {field: value for field, value in changes.items() if value is not None}
        try:
            _, inode = await self._own_inode(ino)
        except MictlanError as error:
            inode = removed(self.inodes.get(ino), error)
            inode.attributes = msgspec.structs.replace(inode.attributes, **kept)
            return inode
        op = wire.SetAttributes(ino, self._clock.wall_ns(), **changes)
        if size == 0:
            self._content.drop_refused(ino)
        if size is not None or (mode is not None and inode.attributes.has_xattrs):
            return await self._setattr_at_router(op)
        inode.attributes = msgspec.structs.replace(inode.attributes, ctime_ns=op.time_ns, **kept)
        inode.pending_count += 1
        inode.is_mtime_set |= op.mtime_ns is not None
        inode.is_changed = True
        writer = self._content.writeback.get(ino)
        if writer is None or writer.is_clean:
            self._post_counted(op, inode)
        else:
            if op.mtime_ns is not None:
                writer.mtime_ns = op.mtime_ns
            # From when this is known to the router, what was written is, too.
            inode.attributes = msgspec.structs.replace(inode.attributes, mtime_ns=writer.mtime_ns)
            writer.post_after(lambda: self._post_counted(op, inode))
            if self.writes_through:
                writer.seal_all()
        await self._after_change()
        return inode

    def _post_counted(self, op: wire.SetAttributes, inode: Inode) -> None:
        """Post a change whose inode counts as pending already, unless the file is gone."""
        if inode.attributes.nlink == 0 and inode.open_count == 0:
            inode.note_answered()
            return
        if inode.lease is None or inode.lease.mode != LeaseMode.WRITE:
            # The session ended while the bytes before it could not be stored.
            inode.note_answered()
            detail = "the session was fenced before this was applied"
            self._note_refused(op, MictlanError(Kind.FENCED, "setattr", "", detail), (inode,))
            return

        def on_result(op: wire.Operation, result: wire.OpResult) -> None:
            self._settle(op, result, (inode,))

        # Names may have been changed while it waited.
        time_ns = max(op.time_ns, inode.attributes.ctime_ns)
        self._session.post(msgspec.structs.replace(op, time_ns=time_ns), on_result)

    async def _setattr_at_router(self, op: wire.SetAttributes) -> Inode:
        # What was written before must not be applied after: it would undo the size or the time.
        await self._content.flush(op.ino)
        with stale_when_gone("setattr", op.ino):
            (attributes,) = await self._synchronously(op, (op.ino,))
        inode = await self._known(op.ino)
        if op.size is not None:
            inode.note_own_change(attributes)
            inode.extents.truncate(op.size, attributes.content_version)
            self.short_reads.on_cut(inode, op.size)
        await self._after_change()
        return inode

    async def _apply(self, op: wire.Operation) -> tuple[Attributes, ...]:
        if self.keeper is None or not isinstance(op, (wire.SetXattr, wire.RemoveXattr)):
            return await super()._apply(op)
        known = (await self.getattr(op.ino)).attributes
        if not known.has_xattrs and isinstance(op, wire.SetXattr):
            mode = _mode_that_says_all(op, known)
            if mode is not None:
                # As `cp -a` does to every file.
                return ((await self.setattr(op.ino, mode=mode)).attributes,)
        await self._content.flush(op.ino)
        touched = await self._synchronously(op, (op.ino,))
        await self._after_change()
        return touched

    # --- files -----------------------------------------------------------------------------------

    async def write(self, number: HandleNumber, offset: int, data: bytes) -> int:
        """Write to an open file; returns the number of bytes taken, always all."""
        if self.keeper is None:
            return await super().write(number, offset, data)
        handle = self.handles.file(number)
        inode, ino = handle.inode, handle.inode.ino
        self._content.raise_loss(ino)
        # Asked before anything is awaited: the kernel may be told another size meanwhile.
        is_at_end = handle.is_append and self.short_reads.ends.may_be_end(inode, offset)
        while True:
            if not self.is_owned(ino):
                await self._content.wait_for_room()
                self._waiting_writes[ino] += 1
                try:
                    await self._own_inode(ino)
                finally:
                    self._waiting_writes[ino] -= 1
                    if not self._waiting_writes[ino]:
                        del self._waiting_writes[ino]
            place = max(offset, self._content.end_of(inode)) if is_at_end else offset
            try:
                await self._content.admit(handle, place, len(data))
            except MictlanError as error:
                if error.kind is not Kind.QUOTA_EXCEEDED or not self._session.unanswered_count:
                    raise
                # What was removed here makes room when the router knows of it.
                await self._catch_up()
                await self._content.admit(handle, place, len(data))
            # It may have had to wait, and the lease be gone again, and so the end be elsewhere.
            if self.is_owned(ino) and not (is_at_end and self._content.end_of(inode) > place):
                break
        self._content.take(handle, place, data)
        if place != offset:
            self._note_misplaced(inode, offset)
        self.short_reads.on_written(inode, offset + len(data))
        return len(data)

    def _note_misplaced(self, inode: Inode, offset: int) -> None:
        """What was appended went behind what other mounts wrote, which the kernel did not know of.

        It believes that the bytes are where it sent them, and that the file ends with them.
        """
        self.short_reads.ends.note(inode.ino, offset)
        if self.kernel is not None and self.keeper is not None:
            self.kernel.attributes_changed(inode.ino)
            # The pages are held until this write is answered.
            self.keeper.start_soon(self._forget_pages_of, [inode.ino])

    @property
    def wants_flush(self) -> bool:
        """Whether closing a file means anything here; for good, once the kernel was told.

        What was written under a lease is seen by everybody as soon as it is written, and is on its
        way whatever happens to the handle: closing changes nothing.
        """
        return self.keeper is None or self._sync_on_close or self.writes_through

    async def flush(self, number: HandleNumber) -> None:
        """close(2) was called on a descriptor of the handle: report what went wrong so far."""
        inode = self.handles.file(number).inode
        if self._sync_on_close or self.writes_through or not self.is_owned(inode.ino):
            return await super().flush(number)
        writer = self._content.writeback.get(inode.ino)
        if writer is not None:
            writer.raise_error()
        return None

    async def fsync(self, number: HandleNumber) -> None:
        """Make the file, its name and every change before durable."""
        try:
            await super().fsync(number)
        except MictlanError as error:
            if error.kind is Kind.STALE:
                # One report is enough for what was lost together.
                with suppress(MictlanError):
                    await self._session.flush_within_deadline()
                self._refusal = None
            raise
        self._raise_refusal()

    async def fsyncdir(self, number: HandleNumber) -> None:
        """Make every change of names made here durable."""
        await super().fsyncdir(number)
        self._raise_refusal()

    # --- giving leases up ------------------------------------------------------------------------

    async def store_changes(self, leases: Sequence[Lease]) -> None:
        """Commit everything that was changed under these leases; ends when it is, or they have."""
        ended = set(leases)
        writers = [
            writer
            for writer in self._content.writeback
            if (inode := self.inodes.get(writer.ino)) is not None and inode.lease in ended
        ]

        async def store_all(done: trio.Event) -> None:
            async with trio.open_nursery() as nursery:
                for writer in writers:
                    nursery.start_soon(writer.store)
            await self._session.flush()
            done.set()

        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store_all, done)
            nursery.start_soon(self._say_at_work, writers)
            while not done.is_set() and any(lease.mode for lease in leases):
                with trio.move_on_after(STORE_LOOK_S):
                    await done.wait()
            nursery.cancel_scope.cancel()

    async def _say_at_work(self, writers: Sequence[FileWriter]) -> None:
        """Tell the router, until cancelled, that these are being stored while no peer fails them.

        Peers may take their time; the router must not think that this mount does.
        """
        assert self.keeper is not None
        while True:
            await trio.sleep(STORE_LOOK_S)
            if not any(writer.failure for writer in writers):
                await self.keeper.say_at_work()

    async def let_kernel_forget(self, leases: Sequence[Lease], *, is_awaited: bool = True) -> None:
        """Nothing that these leases, which have just ended, covered may be used any more."""
        names = [(lease.key, name) for lease in leases for name in lease.told_names]
        told = sorted({ino for lease in leases for ino in lease.told_inodes})
        if self.kernel is not None:
            if (unsettled_s := self.short_reads.unsettled_s(told)) > 0:
                await trio.sleep(unsettled_s)
            for ino in told:
                if (inode := self.inodes.get(ino)) is not None:
                    self.short_reads.on_forgotten(inode)
            locked = [lease for lease in leases if self._locked[lease.key]]
            for lease in locked:
                self._contested.add(lease.key)
            is_locked = any(lease.told_names for lease in locked)
            await self.kernel.forget(names, told, is_awaited=is_awaited, is_locked=is_locked)
            # The pages of all others are dropped when they are opened, if they are stale.
            opened = [ino for ino in told if self._is_open_with_pages(ino)]
            # A write that waits for this very lease holds its pages until it has it: those go as
            # soon as it is done, and nobody waits for that.
            held = [ino for ino in opened if self._waiting_writes[ino]]
            if held and self.keeper is not None:
                self.keeper.start_soon(self._forget_pages_of, held)
            await self._forget_pages_of([ino for ino in opened if ino not in held])
        for lease in leases:
            # Names may be long gone of what is kept for being covered: of a directory, or of a file
            # with several.
            own = self.inodes.get(lease.key)
            for inode in lease.former if own is None else (*lease.former, own):
                self.inodes.drop_unused(inode)
            lease.former = []
            # Inodes that the kernel remembers refer to it for long.
            lease.told_inodes.clear()
            lease.told_names.clear()

    async def _forget_pages_of(self, inodes: list[InodeNumber]) -> None:
        if self.kernel is not None:
            with self.short_reads.forgetting_pages(inodes):
                await self.kernel.forget_pages(inodes)

    def _is_open_with_pages(self, ino: InodeNumber) -> bool:
        inode = self.inodes.get(ino)
        return inode is not None and inode.open_count > 0 and inode.kernel_content_version >= 0


_MOVES = {wire.RenameMode.REPLACE, wire.RenameMode.NO_REPLACE, wire.RenameMode.EXCHANGE}


def _mode_that_says_all(op: wire.SetXattr, known: Attributes) -> int | None:
    """The mode that setting an access control list comes to; None when it is more than a mode."""
    if op.name != acl.ACCESS_NAME or op.flags or known.kind is FileKind.SYMLINK:
        return None
    wanted = acl.decode(op.value)
    if wanted is None or not wanted.is_mode_only:
        return None
    kept = known.mode & ~0o777
    return wanted.mode | (kept & ~stat.S_ISGID if op.clear_set_gid else kept)


def _check_named(directory: Attributes, name: bytes, operation: str) -> None:
    """Raises NOT_FOUND for a name that is to be given in a directory that was removed."""
    if directory.nlink == 0:
        detail = "its directory was removed"
        raise MictlanError(Kind.NOT_FOUND, operation, os.fsdecode(name), detail)


def _is_plain_file(inode: Inode) -> bool:
    return inode.attributes.kind is not FileKind.DIRECTORY and inode.attributes.nlink == 1


def _change_entries(directory: Inode, time_ns: int, *, entries: int, directories: int) -> None:
    known = directory.attributes
    directory.attributes = msgspec.structs.replace(
        known,
        size=known.size + entries,
        nlink=known.nlink + directories,
        mtime_ns=time_ns,
        ctime_ns=time_ns,
    )
