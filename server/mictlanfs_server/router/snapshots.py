"""Takes and removes snapshots, in slices, while the space is in use.

Taking one: the directory and all below it stand still, which has stored what mounts changed under
leases (`standstill`); its rows are copied slice by slice; it moves again; the copy gets its name.
Who changes something in the tree waits for the copy, everybody else for a slice at most. Nothing
is seen of a snapshot before it is complete, and one that was not completed is removed, by whoever
starts next if need be. ADR 0022 says why it is done so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs.snapshotnumbers import inode_base, is_unchangeable, snapshots_directory
from mictlanfs_server.metadata.base import CopyPlace, SnapshotPlan
from mictlanfs_server.metadata.checks import check_name, failure
from mictlanfs_server.router.standstill import having_alone, standing_still

if TYPE_CHECKING:
    from mictlanfs_server.metadata.base import SnapshotStore, SnapshotTree
    from mictlanfs_server.router.gate import LeaseGate

log = logging.getLogger(__name__)

# Names in one snapshot: who changes something in the tree waits for some seconds then.
NAMES_MAX: Final = 200_000
# Of one slice, some ten milliseconds of the one writer.
SLICE_NAMES: Final = 1000
SLICE_EXTENTS: Final = 2000


class Snapshotter:
    """Takes snapshots one at a time.

    Args:
        resolve: finds what a path names, with what others changed before.
    """

    def __init__(
        self,
        store: SnapshotStore,
        gate: LeaseGate,
        resolve: Callable[[wire.Resolve], Awaitable[wire.Resolved]],
    ) -> None:
        self._store = store
        self._gate = gate
        self._resolve = resolve
        self._lock = asyncio.Lock()

    async def list(self, request: wire.ListSnapshots) -> wire.Snapshots:
        """The snapshots of a bucket, or all. Raises NOT_FOUND."""
        return await self._store.snapshots(request)

    async def create(self, request: wire.CreateSnapshot) -> wire.SnapshotInfo:
        """Take a snapshot; see `wire.CreateSnapshot`.

        Cancellation: nothing of it stays.
        """
        check_name(request.name, "snapshot")
        plan = await self._plan(request)
        async with self._lock:
            number = await self._store.begin_snapshot(plan)
            try:
                tree = await self._copy(number, plan)
                async with having_alone(self._gate, [snapshots_directory(plan.bucket)]):
                    await self._store.publish_snapshot(number, plan, tree)
            except BaseException:
                # A router that stops leaves it to the next one.
                with suppress(MictlanError):
                    await asyncio.shield(self._store.drop_snapshot(number))
                raise
        log.info("snapshot %d taken of inode %d: %d names", number, plan.root, tree.names)
        found = await self._store.snapshots(wire.ListSnapshots(request.path[0]))
        for info in found.snapshots:
            if info.name == request.name:
                return info
        raise failure(Kind.NOT_FOUND, "snapshot", request.name, "it was removed at once")

    async def _plan(self, request: wire.CreateSnapshot) -> SnapshotPlan:
        if not request.path:
            detail = "a snapshot is of a bucket, or of a directory in one"
            raise MictlanError(Kind.INVALID, "snapshot", detail=detail)
        found = await self._resolve(wire.Resolve(request.path))
        if len(found.nodes) != len(request.path) + 1:
            raise failure(Kind.NOT_FOUND, "snapshot", b"/".join(request.path))
        attributes = found.nodes[-1].attributes
        if attributes.kind is not FileKind.DIRECTORY:
            raise failure(Kind.NOT_DIRECTORY, "snapshot", b"/".join(request.path))
        if is_unchangeable(attributes.ino):
            detail = "it is part of a snapshot already"
            raise failure(Kind.READ_ONLY, "snapshot", b"/".join(request.path), detail)
        bucket = found.nodes[1].attributes.ino
        return SnapshotPlan(bucket, attributes.ino, request.name, b"/".join(request.path))

    async def _copy(self, number: int, plan: SnapshotPlan) -> SnapshotTree:
        store = self._store

        def look() -> Awaitable[SnapshotTree]:
            return store.snapshot_tree(plan.root, NAMES_MAX)

        async with standing_still(self._gate, look, _keys_of) as tree:
            place: CopyPlace | None = CopyPlace()
            while place is not None:
                place = await store.copy_names(number, tree, place, SLICE_NAMES)
            after: tuple[InodeNumber, int] | None = (InodeNumber(0), -1)
            while after is not None:
                after = await store.copy_extents(number, after, SLICE_EXTENTS)
        return tree

    async def remove(self, request: wire.RemoveSnapshot) -> wire.Done:
        """Remove a snapshot: nobody finds it any more. Raises NOT_FOUND."""
        record = await self._store.snapshot(request.bucket, request.name)
        if record is None:
            raise failure(Kind.NOT_FOUND, "snapshot", request.name, "there is no such snapshot")
        # Mounts believe what they were told of it until the leases are recalled.
        root = InodeNumber(inode_base(record.number) + record.root)
        tree = await self._store.snapshot_tree(root, NAMES_MAX)
        keys = [snapshots_directory(record.bucket), *_keys_of(tree)]
        async with having_alone(self._gate, keys):
            await self._store.drop_snapshot(record.number)
        log.info("snapshot %d removed", record.number)
        return wire.Done()


def _keys_of(tree: SnapshotTree) -> Collection[InodeNumber]:
    """The keys of the leases that cover a tree; see `leasekeys`."""
    return (*tree.directories, *tree.linked)
