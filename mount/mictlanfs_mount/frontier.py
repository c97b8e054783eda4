"""Which directories a walk over a tree comes to next, as far as what is kept tells. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from operator import itemgetter

from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_mount.inodes import Inode, InodeTable
from mictlanfs_mount.leases import Lease, LeaseTable
from mictlanfs_mount.treewalk import Siblings

# Names of a directory that are looked up one by one before it is listed.
MISSES_MAX = 1
# Up to so many are listed at once when names were looked up in the directory just before it.
LISTED_AT_ONCE_MAX = 1024
# Directories looked at before the search is given up: all that is listed ahead of a walk, and more.
LOOKED_AT_MAX = 4096
# How far up it goes on.
ANCESTORS_MAX = 64


def subdirectories_of(lease: Lease) -> Siblings[Inode]:
    """The directories in a directory. Some may have come or gone since that was first asked."""
    if lease.subdirectories is None:
        found = [
            (name, inode)
            for name, inode in lease.names.items()
            if inode is not None and inode.attributes.kind is FileKind.DIRECTORY
        ]
        found.sort(key=itemgetter(0))
        lease.subdirectories = Siblings([inode for _, inode in found])
    return lease.subdirectories


def listed_parent(table: LeaseTable, lease: Lease) -> Lease | None:
    """The directory that a directory is in, if its names are known; None for the root."""
    parent = table.get(lease.parent)
    return None if parent is None or not parent.is_complete or parent is lease else parent


def is_to_be_listed(table: LeaseTable, inodes: InodeTable, lease: Lease) -> bool:
    """Whether a look-up of a name that is not known should bring all names of a directory."""
    if lease.is_large:
        return False
    if lease.misses >= MISSES_MAX:
        return True
    directory = inodes.get(lease.key)
    if directory is None or directory.attributes.size > LISTED_AT_ONCE_MAX:
        return False
    return _is_come_to(table, lease)


def _is_come_to(table: LeaseTable, lease: Lease) -> bool:
    """Whether names were looked up, or listed, in a directory just before this one, beside it."""
    parent = listed_parent(table, lease)
    if parent is None:
        return False
    beside = [table.get(inode.ino) for inode in subdirectories_of(parent).before(lease.key)]
    return any(
        known is not None and (known.misses or (known.is_complete and not known.is_ahead))
        for known in beside
    )


def unlisted_behind(
    table: LeaseTable, lease: Lease, count_max: int, excluded: Collection[InodeNumber] = ()
) -> list[InodeNumber]:
    """The first directories behind one that are not listed, in the order of a walk."""
    found: list[InodeNumber] = []
    for inode in islice(_coming(table, lease), LOOKED_AT_MAX):
        known = table.get(inode.ino)
        is_known = known is not None and (known.is_complete or known.is_large)
        if not is_known and inode.ino not in excluded:
            found.append(inode.ino)
            if len(found) >= count_max:
                break
    return found


def _coming(table: LeaseTable, lease: Lease) -> Iterator[Inode]:
    """Depth first: what is below, then what follows beside it and beside what it is in."""
    yield from _below(table, lease)
    here = lease
    for _ in range(ANCESTORS_MAX):
        parent = listed_parent(table, here)
        if parent is None:
            return
        for sibling in subdirectories_of(parent).behind(here.key):
            yield sibling
            beside = table.get(sibling.ino)
            if beside is not None:
                yield from _below(table, beside)
        here = parent


def _below(table: LeaseTable, lease: Lease) -> Iterator[Inode]:
    coming = _reversed_subdirectories(lease)
    while coming:
        inode = coming.pop()
        yield inode
        known = table.get(inode.ino)
        if known is not None:
            coming += _reversed_subdirectories(known)


def _reversed_subdirectories(lease: Lease) -> list[Inode]:
    return list(reversed(subdirectories_of(lease).behind(None))) if lease.is_complete else []
