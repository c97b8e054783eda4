"""Leases for writing, and the log of what was changed under them and is not answered yet.

Owns how leases are got before something is changed, how a change that was applied here enters the
log, and what happens when the router answers that it did something else. Which changes there are is
the business of `leased`.

Invariant: from the look at the leases to the entry in the log there is no await.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, InodeNumber
from mictlanfs_mount.gone import stale_when_gone
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.leasedopens import LeasedOpens
from mictlanfs_mount.leases import Lease
from mictlanfs_mount.salvage import Salvager

log = logging.getLogger(__name__)

# How often leases that were recalled before they could be used are asked for again.
ATTEMPTS_MAX = 100
ALWAYS_WANTED = "other mounts want it all the time"
# After these errors a change may have been applied, or be applied later.
_UNDECIDED = {Kind.TIMED_OUT, Kind.UNAVAILABLE, Kind.FENCED}


class LeasedLog(LeasedOpens):
    """A file system that can put changes into the log.

    Attributes:
        writes_through: whether every change is on the router before its verb returns.
        salvager: takes what the router does not; None: it is lost.
    """

    writes_through = False
    salvager: Salvager | None = None
    # What the router refused of what was applied here, and nobody was told of.
    _refusal: MictlanError | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Requests that wait for leases on directories: the kernel holds the lock of each meanwhile.
        self._locked: Counter[InodeNumber] = Counter()
        self._content.own = self._own_if_leased

    # --- leases for writing ----------------------------------------------------------------------

    async def _own_name(self, parent: InodeNumber, name: bytes) -> tuple[Lease, Inode]:
        """Lease a directory for writing, know what a name in it stands for, and the directory.

        No await since the look at the lease when this returns.
        """
        (owned,) = await self._own_names(wire.Place(parent, name))
        return owned

    async def _own_names(self, *places: wire.Place) -> list[tuple[Lease, Inode]]:
        """As `_own_name`, for several names at once."""
        for _ in range(ATTEMPTS_MAX):
            owned = [found for place in places if (found := self._owned_now(place)) is not None]
            if len(owned) == len(places):
                return owned
            await self._acquire_names(*places)
        raise MictlanError(Kind.BUSY, "lease", str(places[0].parent), ALWAYS_WANTED)

    async def _acquire_names(self, *places: wire.Place) -> None:
        """Get leases on directories, and on what names in them stand for, all at once."""
        parents = [place.parent for place in places]
        self._locked.update(parents)
        try:
            await self._acquire((), places)
        finally:
            self._locked -= Counter(parents)

    def _owned_now(self, place: wire.Place) -> tuple[Lease, Inode] | None:
        assert self.keeper is not None
        table = self.keeper.table
        lease = table.writable(place.parent)
        directory = self.inodes.get(place.parent)
        if lease is None or directory is None or not lease.knows(place.name):
            return None
        return (lease, directory) if table.covers(directory) else None

    async def _acquire(
        self, inodes: tuple[InodeNumber, ...], places: tuple[wire.Place, ...]
    ) -> tuple[InodeNumber, ...]:
        """Get leases for writing and learn what comes with them; returns the keys."""
        assert self.keeper is not None
        for ino in (*inodes, *(place.parent for place in places)):
            inode = self.inodes.get(ino)
            if inode is not None and inode.pending_count:
                # The router may not know it at all yet.
                await self._catch_up()
            lease = None if inode is None else inode.lease
            await self.keeper.until_given_up(ino if lease is None else lease.key)
        if inodes:
            with stale_when_gone("lease", inodes[0]):
                got = await self.keeper.acquire(inodes, places)
        else:
            # When a directory is gone, so is what is named in it, and nothing can be made there.
            got = await self.keeper.acquire((), places)
        grants = wire.Grants(got.keys, got.stamp)
        for node in got.nodes:
            self._learned(node, grants)
        for place, found in zip(places, got.found, strict=True):
            inode = None if found is None else self._learned(found, grants)
            lease = self.keeper.covering(place.parent, grants)
            if lease is not None and not lease.knows(place.name):
                self.keeper.table.set_name(lease, place.name, inode)
        return got.keys

    async def _own_inode(self, ino: InodeNumber) -> tuple[Lease, Inode]:
        """Lease what covers an inode for writing, and know the inode. No await afterwards."""
        assert self.keeper is not None
        table = self.keeper.table
        for _ in range(ATTEMPTS_MAX):
            inode = self.inodes.get(ino)
            if inode is not None and inode.lease is not None and table.covers(inode):
                lease = table.writable(inode.lease.key)
                if lease is inode.lease:
                    return lease, inode
            await self._acquire((ino,), ())
        raise MictlanError(Kind.BUSY, "lease", str(ino), ALWAYS_WANTED)

    async def _own_if_leased(self, ino: InodeNumber) -> None:
        if self.keeper is not None:
            await self._own_inode(ino)

    def is_owned(self, ino: InodeNumber) -> bool:
        """Whether what covers an inode is leased for writing now."""
        inode = self.inodes.get(ino)
        if self.keeper is None or inode is None or inode.lease is None:
            return False
        return self.keeper.table.writable(inode.lease.key) is inode.lease

    async def _wait_for_room(self) -> None:
        """Wait while the log is too long, and see that not too many names are kept."""
        assert self.keeper is not None
        await self._session.wait_for_room()
        if self.keeper.table.excess > 0:
            await self._make_room()

    # --- the log ---------------------------------------------------------------------------------

    def _post(self, op: wire.Operation, *inodes: Inode) -> None:
        """Put a change that is applied here into the log. No await since the look at the lease."""
        for inode in inodes:
            inode.pending_count += 1
            inode.is_changed = True

        def on_result(op: wire.Operation, result: wire.OpResult) -> None:
            self._settle(op, result, inodes)

        self._session.post(op, on_result)

    def _settle(self, op: wire.Operation, result: wire.OpResult, inodes: Sequence[Inode]) -> None:
        """The router answered to a change that was applied here before."""
        for inode in inodes:
            inode.note_answered()
        if result.error is not None and not isinstance(op, wire.Release):
            self._note_refused(op, result.error.to_error(), inodes)
        for attributes in result.touched:
            known = self.inodes.get(attributes.ino)
            if known is None or known.pending_count:
                continue
            if attributes.version >= known.attributes.version:
                if attributes.nlink or known.open_count:
                    # Else nobody sees it again, and what waited for its bytes went with them.
                    self._check_foretold(op, known, attributes)
                known.attributes = attributes
        for inode in inodes:
            self.inodes.drop_unused(inode)
        if result.error is None and self.keeper is not None:
            self._forget_leases_of_removed(op, result.touched)

    def _forget_leases_of_removed(self, op: wire.Operation, touched: Sequence[Attributes]) -> None:
        assert self.keeper is not None
        for attributes in touched:
            known = self.inodes.get(attributes.ino)
            # A file that had several names has a lease of its own. Who has it open goes on with it.
            is_file_open = known is not None and known.open_count > 0
            if attributes.nlink == 0 and (isinstance(op, wire.RemoveDirectory) or not is_file_open):
                self.keeper.forget(attributes.ino)

    def _note_refused(
        self, op: wire.Operation, failure: MictlanError, inodes: Sequence[Inode]
    ) -> None:
        """A change that was applied here was not applied there: what is known is not true."""
        assert self.keeper is not None
        log.error("%s was refused by the router: %s", type(op).__name__, failure)
        self._refusal = failure
        if self.salvager is not None:
            self.salvager.take_operation(op, failure, inodes)
        table = self.keeper.table
        held = (lease for inode in inodes for lease in (inode.lease, table.held(inode.ino)))
        self.keeper.doubt([lease for lease in held if lease is not None])

    def _check_foretold(self, op: wire.Operation, inode: Inode, attributes: Attributes) -> None:
        """Say when the router did something else than was foretold: a defect of ours."""
        if _seen(inode.attributes) != _seen(attributes):
            log.warning(
                "%s was foretold wrongly: %s, not %s",
                type(op).__name__,
                inode.attributes,
                attributes,
            )
            if self.kernel is not None:
                self.kernel.attributes_changed(inode.ino)

    async def _after_change(self) -> None:
        """A change is in the log: wait as long as the options of the mount say."""
        if self.writes_through:
            await self._session.flush_within_deadline()
            self._raise_refusal()

    def note_loss(self) -> None:
        """Bytes of files that nobody has open went with the session."""
        detail = "what was written is not in the space: see 'mictlanfs recover'"
        self._refusal = MictlanError(Kind.FENCED, "write back", "", detail)

    def _raise_refusal(self) -> None:
        """Report, once, that the router refused what was applied here."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal

    async def _synchronously(
        self,
        op: wire.Operation,
        inodes: tuple[InodeNumber, ...],
        places: tuple[wire.Place, ...] = (),
    ) -> tuple[Attributes, ...]:
        """Apply a change at the router under leases on all it touches.

        The caller takes note of what became of names, and waits with `_after_change`.
        """
        assert self.keeper is not None
        table = self.keeper.table
        for _ in range(ATTEMPTS_MAX):
            keys = await self._acquire(inodes, places)
            if all(table.writable(key) is not None for key in keys):
                break
        else:
            raise MictlanError(Kind.BUSY, "lease", str(inodes), ALWAYS_WANTED)
        try:
            touched = await self._session.apply(op, is_covered=True)
        except BaseException as error:
            if not isinstance(error, MictlanError) or error.kind in _UNDECIDED:
                self.keeper.doubt([lease for key in keys if (lease := table.held(key))])
            raise
        for attributes in touched:
            inode = self.inodes.get(attributes.ino)
            if inode is not None:
                inode.learn(attributes, 0.0)
                inode.is_changed = True
        return touched


def _seen(attributes: Attributes) -> Attributes:
    """What programs see, without the counters."""
    return msgspec.structs.replace(attributes, version=0, content_version=0, allocated=0)
