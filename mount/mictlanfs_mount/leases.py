"""The leases this mount holds, and what it may keep because of them. No I/O, no awaits.

A `Lease` is on a key (see `mictlanfs.wire`). It carries what is known of the names of a directory,
and every inode that a lease covers refers to it, so that one assignment makes all of it void::

    (none) --READ comes with an answer--> READ --acquired--> WRITE
      ^                                    |  ^                |
      +----recalled, released, fenced------+  +--downgraded----+
      +--------------recalled, after everything was committed--+

A lease that has ended is never used again; the next one on the same key is another object.

Trust. Whatever is held may be used only while the router would not yet give it to somebody else:
until `trusted_until_s`, which each answered request for events moves on. Afterwards the leases are
still there, and are good again when the router answers before it has fenced the session.

Races between answers and recalls are decided by stamps: an answer that was stamped before a recall
of its key is good for nothing but the call that waits for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mictlanfs.clock import Clock
from mictlanfs.model import ROOT_INODE, InodeNumber
from mictlanfs.wire import LeaseMode
from mictlanfs_mount.contentpages import ContentPages
from mictlanfs_mount.neighbours import Neighbours
from mictlanfs_mount.treewalk import Siblings, TreeWalk

if TYPE_CHECKING:
    import trio

    from mictlanfs_mount.inodes import Inode

# Recalls that are remembered key by key, before all that is older is void whatever its key.
RECALLS_REMEMBERED_MAX = 16_384


class Lease:
    """One lease, from its grant to its end.

    Attributes:
        mode: one of `LeaseMode`; NONE once it has ended.
        since: the stamp of the first grant; what was read before is not covered.
        stamp: the stamp of the last grant.
        is_recalled: it is being given up: nothing more may be changed under it.
        is_doubted: what is known may not be true, as a change was refused or is not answered.
        names: of a directory: what names stand for; None: known not to exist.
        is_complete: whether every name that exists is in `names`.
        neighbours: which of its files to fetch ahead; None until one is read.
        pages: by which the content of its files is asked for; None until one is read.
        page_fetch: the page that is being asked for; None: none is.
        subdirectories: those in it, and which were read; None until they are asked for.
        walk: over the tree it is in; None until there is one.
        is_ahead: it was listed ahead of the walk, and nobody has looked at it.
        is_large: whether there are too many names to keep them all.
        parent: of a directory that is complete: what `..` names; of another one only where it was
            seen last, if at all.
        misses: names looked up that were not known, since the last listing.
        told_inodes, told_names: what the kernel was told that it may keep.
        former: inodes that names stood for which are not kept any more.
    """

    __slots__ = (
        "former",
        "is_ahead",
        "is_complete",
        "is_doubted",
        "is_large",
        "is_recalled",
        "key",
        "misses",
        "mode",
        "names",
        "neighbours",
        "page_fetch",
        "pages",
        "parent",
        "since",
        "stamp",
        "subdirectories",
        "told_inodes",
        "told_names",
        "walk",
    )

    def __init__(self, key: InodeNumber, mode: int, stamp: int) -> None:
        self.key = key
        self.mode = mode
        self.since = stamp
        self.stamp = stamp
        self.is_recalled = False
        self.is_doubted = False
        self.is_complete = False
        self.is_large = False
        self.misses = 0
        self.names: dict[bytes, Inode | None] = {}
        self.former: list[Inode] = []
        self.neighbours: Neighbours[Inode] | None = None
        self.pages: ContentPages[Inode] | None = None
        self.page_fetch: trio.Event | None = None
        self.subdirectories: Siblings[Inode] | None = None
        self.walk: TreeWalk | None = None
        self.is_ahead = False
        self.parent = ROOT_INODE
        self.told_inodes: set[InodeNumber] = set()
        self.told_names: set[bytes] = set()

    def knows(self, name: bytes) -> bool:
        """Whether it is known what a name stands for, or that it does not exist."""
        return self.is_complete or name in self.names


class LeaseTable:
    """All leases of a mount by key.

    Args:
        names_max: how many names may be kept in all.

    Attributes:
        trusted_until_s: by the monotonic clock.
    """

    def __init__(self, clock: Clock, names_max: int) -> None:
        self._clock = clock
        self.names_max = names_max
        self.name_count = 0
        self._held: OrderedDict[InodeNumber, Lease] = OrderedDict()
        self._recalled: OrderedDict[InodeNumber, int] = OrderedDict()
        self._void_before = 0
        self.last_stamp = 0
        self.trusted_until_s = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._held.values())

    @property
    def trust_s(self) -> float:
        """For how many seconds more the leases may be used without hearing from the router."""
        return max(0.0, self.trusted_until_s - self._clock.monotonic_s())

    def get(self, key: InodeNumber) -> Lease | None:
        """The lease on a key, if it may be used now."""
        lease = self._held.get(key)
        if lease is None or lease.is_doubted or self._clock.monotonic_s() >= self.trusted_until_s:
            return None
        return lease

    def writable(self, key: InodeNumber) -> Lease | None:
        """The lease on a key, if things may be changed under it now."""
        lease = self._held.get(key)
        if (
            lease is None
            or lease.mode != LeaseMode.WRITE
            or lease.is_recalled
            or self._clock.monotonic_s() >= self.trusted_until_s
        ):
            return None
        self._held.move_to_end(key)
        return lease

    def covers(self, inode: Inode) -> bool:
        """Whether what is known of an inode is true now."""
        lease = inode.lease
        return (
            lease is not None
            and lease.mode != LeaseMode.NONE
            and not lease.is_doubted
            and self._clock.monotonic_s() < self.trusted_until_s
        )

    def held(self, key: InodeNumber) -> Lease | None:
        """The lease on a key, trusted or not."""
        return self._held.get(key)

    # --- beginnings ------------------------------------------------------------------------------

    def granted(self, key: InodeNumber, mode: int, stamp: int) -> Lease | None:
        """A grant arrived. Returns the lease that covers what came along; None: nothing does."""
        if stamp < self._void_before or stamp < self._recalled.get(key, 0):
            return None
        self.last_stamp = max(self.last_stamp, stamp)
        lease = self._held.get(key)
        if lease is None:
            lease = self._held[key] = Lease(key, mode, stamp)
            return lease
        if stamp < lease.since:
            return None
        lease.mode = max(lease.mode, mode)
        lease.stamp = max(lease.stamp, stamp)
        self._held.move_to_end(key)
        return lease

    def made(self, key: InodeNumber, parent: Lease) -> Lease:
        """A directory was made under a lease for writing, and is leased with it."""
        lease = self._held[key] = Lease(key, LeaseMode.WRITE, parent.stamp)
        lease.is_complete = True
        lease.parent = parent.key
        return lease

    # --- ends ------------------------------------------------------------------------------------

    def note_recall(self, keys: Iterable[InodeNumber], stamp: int) -> None:
        """A recall arrived: grants stamped before it are void."""
        self.last_stamp = max(self.last_stamp, stamp)
        for key in keys:
            self._recalled[key] = max(stamp, self._recalled.pop(key, 0))
        while len(self._recalled) > RECALLS_REMEMBERED_MAX:
            _, oldest = self._recalled.popitem(last=False)
            self.void_before(oldest)

    def void_before(self, stamp: int) -> None:
        """Grants stamped before are void whatever their key: the router has forgotten them."""
        self._void_before = max(self._void_before, stamp)

    def end(self, lease: Lease) -> None:
        """The lease is over, and with it everything that was kept because of it."""
        lease.mode = LeaseMode.NONE
        if self._held.get(lease.key) is lease:
            del self._held[lease.key]
        self.forget_names(lease)

    def end_all(self) -> list[Lease]:
        """Every lease is over: the session ended. Returns them."""
        ended = list(self._held.values())
        for lease in ended:
            self.end(lease)
        self._recalled.clear()
        self.trusted_until_s = 0.0
        return ended

    def forget_names(self, lease: Lease) -> None:
        """Nothing is known of the names of a directory any more; the lease stays."""
        self.name_count -= len(lease.names)
        kept = [inode for inode in lease.names.values() if inode is not None]
        for inode in kept:
            inode.name_count -= 1
        lease.former += kept
        lease.names = {}
        lease.neighbours = lease.pages = lease.subdirectories = lease.walk = None
        lease.is_complete = lease.is_ahead = False

    # --- names -----------------------------------------------------------------------------------

    def set_name(self, lease: Lease, name: bytes, inode: Inode | None) -> None:
        """What a name stands for, from now on; None: nothing. Of an ended lease nothing is kept."""
        if lease.mode == LeaseMode.NONE:
            return
        if name in lease.names:
            former = lease.names.pop(name)
            self.name_count -= 1
            if former is not None:
                former.name_count -= 1
        if inode is not None or not lease.is_complete:
            lease.names[name] = inode
            self.name_count += 1
        if inode is not None:
            inode.name_count += 1

    @property
    def excess(self) -> int:
        """How many more names are kept than there should be; a lease takes as much as a name."""
        return self.name_count + len(self._held) - self.names_max

    def can_keep(self, count: int) -> bool:
        """Whether a directory of so many names may be kept as a whole."""
        return count <= self.names_max // 2

    def least_used(self) -> Iterator[Lease]:
        """Leases that may be given up, the one granted or changed under longest ago first."""
        for lease in list(self._held.values()):
            if not lease.is_recalled:
                yield lease
