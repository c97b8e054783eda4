"""A file system that keeps what it was told for as long as a lease covers it: the reading verbs.

What is known and covered is answered without a suspension. What is not is asked for, with a wish
for leases; an answer is kept when leases came with it, and is good for its caller alone otherwise.
The kernel is told to keep what is covered until the leases are not trusted any more, and is told to
forget it before a lease is given up (`KernelCache`).

Names. When names of one directory are looked up that are not known, the whole directory is listed.
When a walk over a tree comes to it (`treewalk`), the directories that the walk comes to next are
listed with it, and more of them in the background before they are wanted.

Without a keeper of leases (`-o noleases`) every verb is that of `FileSystem`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Protocol

import trio

from mictlanfs import acl, wire
from mictlanfs.client.inline import INLINE_WITH_NODE_SIZE_BYTES
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, Buffer, FileKind, InodeNumber, Node
from mictlanfs_mount.contentpages import (
    COUNT_FIRST,
    COUNT_FIRST_READING,
    ContentPages,
    Page,
)
from mictlanfs_mount.contested import ContestedDirectories
from mictlanfs_mount.filesystem import LABEL_XATTR, REOPEN_WITHIN_S, FileSystem, Opened
from mictlanfs_mount.frontier import (
    is_to_be_listed,
    listed_parent,
    subdirectories_of,
    unlisted_behind,
)
from mictlanfs_mount.gone import removed, stale_when_gone
from mictlanfs_mount.handles import DirectoryHandle, HandleNumber
from mictlanfs_mount.inodes import Inode
from mictlanfs_mount.leasekeeper import LeaseKeeper
from mictlanfs_mount.leases import Lease
from mictlanfs_mount.neighbours import AHEAD_FIRST, Neighbours
from mictlanfs_mount.setids import IsMember, after_open_truncating, in_every_group
from mictlanfs_mount.treewalk import TreeWalk

log = logging.getLogger(__name__)

# While the kernel keeps more names of a directory, it is told of no more that do not exist.
ABSENT_NAMES_MAX = 8192
# Extents that come with each file of a listing: small files, which are most, have one.
LISTED_EXTENTS_MAX = 4
# How often an answer that was overtaken is asked for again before it is used for its caller alone.
ATTEMPTS_MAX = 3
# Files up to this size are pushed into the kernel's cache when they are opened.
PUSHED_SIZE_BYTES_MAX = 128 * KIB
# While files are opened at least this often, listings bring the bytes of small files.
READING_S = 1.0
# How long another size is not told, for the sake of reads under way.
READS_WAIT_S_MAX = 0.25
# Extended attributes that the kernel and programs ask of each file.
ASKED_XATTRS = frozenset({b"security.capability", LABEL_XATTR})
# Of all names that may be kept, those that are listed ahead of a walk at once.
AHEAD_SHARE = 8


class KernelCache(Protocol):
    """What the kernel keeps of this mount."""

    @property
    def keeps_names(self) -> bool:
        """Whether names may be told to be kept: whether they can be made forgotten at any time."""
        ...

    def attributes_changed(self, ino: InodeNumber) -> None:
        """The kernel must ask for the attributes of an inode again; never waits."""
        ...

    def store(self, ino: InodeNumber, body: Buffer) -> bool:
        """The kernel keeps the content of a file of which it has nothing; whether it does."""
        ...

    async def forget(
        self,
        names: Sequence[tuple[InodeNumber, bytes]],
        inodes: Sequence[InodeNumber],
        *,
        is_awaited: bool = True,
        is_locked: bool = False,
    ) -> None:
        """Nothing of these is used any more when this returns; later when nobody waits for it.

        `is_locked`: the lock of a directory is held by a request that is not answered.
        """
        ...

    async def drop(self, names: Sequence[tuple[InodeNumber, bytes]]) -> None:
        """Names that nobody uses are kept no more: their inodes take memory, here too."""
        ...

    async def forget_pages(self, inodes: Sequence[InodeNumber]) -> None:
        """Cached content of these is not used any more, but for reads under way."""
        ...


class LeasedReads(FileSystem):
    """The reading verbs under leases.

    Attributes:
        keeper: of the leases; None: there are none.
        kernel: what the kernel keeps.
    """

    keeper: LeaseKeeper | None = None
    kernel: KernelCache | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Directories that are being listed, each until it is known.
        self._listings: dict[InodeNumber, trio.Event] = {}
        # Whether the router can list trees: an older one cannot.
        self._lists_trees = True
        # When a file was opened last: who reads the files of one directory will read those of the
        # next, so their bytes come along.
        self._opened_s = float("-inf")
        # Whether another one was, shortly before.
        self._is_reading = False
        self._contested = ContestedDirectories(self._clock)
        # Until when (monotonic) a look-up may be the kernel's second attempt to open a file.
        self._reopening_until_s = float("-inf")

    # --- what is known ---------------------------------------------------------------------------

    def _covers(self, inode: Inode) -> bool:
        """Whether what is known of an inode is true now."""
        return self.keeper is not None and self.keeper.table.covers(inode)

    def _valid_from_now(self) -> float:
        # What no lease covers may be used once.
        return super()._valid_from_now() if self.keeper is None else 0.0

    def validity_s(self, inode: Inode) -> float:
        """For how many seconds more the kernel may use the inode's attributes."""
        if self.keeper is None:
            return super().validity_s(inode)
        lease = inode.lease
        if lease is None or self.kernel is None or not self.keeper.table.covers(inode):
            return 0.0
        lease.told_inodes.add(inode.ino)
        return self.keeper.table.trust_s

    def name_validity_s(self, parent: InodeNumber, name: bytes, inode: Inode | None) -> float:
        """For how many seconds more the kernel may use a name, or believe that there is none."""
        if self.keeper is None:
            return super().name_validity_s(parent, name, inode)
        lease = self.keeper.table.get(parent)
        if lease is None or self.kernel is None or not self.kernel.keeps_names:
            return 0.0
        if self._contested.has(parent):
            return 0.0
        if not lease.knows(name) or lease.names.get(name) is not inode:
            return 0.0
        if inode is None and len(lease.told_names) > ABSENT_NAMES_MAX:
            # Names that do not exist are without end.
            return 0.0
        lease.told_names.add(name)
        return self.keeper.table.trust_s

    def _learned(self, node: Node, grants: wire.Grants) -> Inode:
        """The inode of a node that came with an answer, covered by what came along."""
        assert self.keeper is not None
        inode = self.remembered(node, 0.0)
        self._cover(inode, self.keeper.covering(node.key, grants), node)
        return inode

    def _cover(self, inode: Inode, lease: Lease | None, node: Node) -> None:
        if inode.pending_count:
            # What is known is ahead of the answer, and covered by what allowed the change.
            return
        if lease is not None and inode.attributes.version == node.attributes.version:
            inode.lease = lease
        if inode.attributes.kind is FileKind.FILE and (
            node.extents or node.has_all_extents or not node.attributes.allocated
        ):
            if node.inline:
                self._content.keep_inline(node)
            self._learn_extents(inode, node)

    async def _catch_up(self, ino: InodeNumber | None = None) -> None:
        """See that the router knows what was done here, before it is asked about it.

        With an inode, that all of its bytes are committed, too.
        """
        if self.keeper is None:
            return
        if ino is not None:
            await self._content.flush(ino)
        if self._session.unanswered_count:
            await self._session.flush_within_deadline()

    def _is_doubtful(self, lease: Lease | None) -> bool:
        """Whether what was changed here is known, but not to be relied on just now."""
        assert self.keeper is not None
        return not self.keeper.table.trust_s or (lease is not None and lease.is_doubted)

    # --- names -----------------------------------------------------------------------------------

    async def lookup(self, parent: InodeNumber, name: bytes) -> Inode:
        """Resolve a name. Raises NOT_FOUND, NOT_DIRECTORY."""
        if self.keeper is None or name in {b".", b".."}:
            await self._catch_up()
            return await super().lookup(parent, name)
        lease = self.keeper.table.get(parent)
        if lease is not None:
            if not lease.knows(name) and is_to_be_listed(self.keeper.table, self.inodes, lease):
                await self._list(parent)
                lease = self.keeper.table.get(parent)
            if lease is not None and lease.knows(name):
                if lease.is_ahead:
                    self._note_read(lease)
                inode = lease.names.get(name)
                if inode is None:
                    raise MictlanError(Kind.NOT_FOUND, "lookup", os.fsdecode(name))
                if self.keeper.table.covers(inode):
                    return inode
        return await self._look_up(parent, name)

    async def _look_up(self, parent: InodeNumber, name: bytes) -> Inode:
        """Ask for a name; what is found, or that nothing is, is kept if a lease comes with it."""
        assert self.keeper is not None
        if self._is_doubtful(self.keeper.table.held(parent)):
            await self._catch_up()
        request = wire.Lookup(parent, name, LISTED_EXTENTS_MAX, INLINE_WITH_NODE_SIZE_BYTES)
        answer, grants = await self.keeper.ask(wire.Path.LOOKUP, request, Node)
        missing = MictlanError(Kind.NOT_FOUND, "lookup", os.fsdecode(name))
        inode: Inode | None = None
        if not isinstance(answer, MictlanError):
            inode = self._learned(answer, grants)
        elif answer.kind is not Kind.NOT_FOUND:
            raise answer
        lease = self.keeper.covering(parent, grants)
        if lease is not None:
            lease.misses += 1
            if lease.knows(name):
                # It was made, moved or removed here since the answer was made.
                inode = lease.names.get(name)
            else:
                self.keeper.table.set_name(lease, name, inode)
                if self.keeper.table.excess > 0:
                    await self._make_room()
        if inode is None:
            raise missing
        return inode

    async def getattr(self, ino: InodeNumber) -> Inode:
        """The inode with attributes that may be shown now."""
        if self.keeper is None:
            return await super().getattr(ino)
        inode = self.inodes.get(ino)
        if inode is not None and self.keeper.table.covers(inode):
            return inode
        former = None if inode is None else inode.lease
        try:
            inode = await self._asked(ino)
        except MictlanError as error:
            return removed(self.inodes.get(ino), error)
        if former is not None:
            await self.keeper.until_forgotten(former.key)
        if inode.attributes.size != inode.kernel_size:
            with trio.move_on_after(READS_WAIT_S_MAX):
                await self.short_reads.until_read(ino)
        return inode

    async def _asked(self, ino: InodeNumber, extents_max: int = 0) -> Inode:
        if self.keeper is None:
            return await super()._asked(ino, extents_max)
        known = self.inodes.get(ino)
        if known is not None and (known.pending_count or self._is_doubtful(known.lease)):
            await self._catch_up()
        wanted = extents_max or LISTED_EXTENTS_MAX
        request = wire.GetNode(ino, wanted, INLINE_WITH_NODE_SIZE_BYTES)
        with stale_when_gone("ask for", ino):
            node, grants = await self.keeper.read(wire.Path.NODE, request, Node)
        return self._learned(node, grants)

    async def _known(self, ino: InodeNumber) -> Inode:
        return await (super()._known(ino) if self.keeper is None else self.getattr(ino))

    def lacks_xattr(self, ino: InodeNumber, name: bytes) -> bool:
        """Whether `getxattr` is known to raise NO_DATA, as it does most often, without asking."""
        inode = self.inodes.get(ino)
        if inode is None or inode.attributes.has_xattrs or not self._covers(inode):
            return False
        # Others may be computed, or refused.
        return name in ASKED_XATTRS or (self.has_acls and name in acl.NAMES)

    async def readlink(self, ino: InodeNumber) -> bytes:
        """The target of a symlink."""
        inode = self.inodes.get(ino)
        if inode is not None and inode.target:
            # It never changes while the inode lives.
            return inode.target
        return await super().readlink(ino)

    # --- directories -----------------------------------------------------------------------------

    async def readdir(self, number: HandleNumber, index: int) -> DirectoryHandle:
        """The directory handle with the entry at `index` read, unless the directory ends before."""
        if self.keeper is None:
            return await super().readdir(number, index)
        handle = self.handles.directory(number)
        if handle.snapshot is None and not handle.entries:
            lease = await self._list(handle.inode.ino)
            if lease is not None:
                self._fetch_first_files(lease)
                found = [(name, inode) for name, inode in lease.names.items() if inode is not None]
                found.sort(key=itemgetter(0))
                handle.snapshot = found
                handle.parent = lease.parent
                handle.is_complete = True
        if handle.snapshot is None:
            if index >= handle.count and not handle.is_complete:
                await self._catch_up()
            return await super().readdir(number, index)
        return handle

    def listed(self, handle: DirectoryHandle, index: int) -> tuple[bytes, Inode, float]:
        """An entry that `readdir` has read: name, inode, and for how long the name may be used."""
        if handle.snapshot is None:
            return super().listed(handle, index)
        name, inode = handle.snapshot[index]
        return name, inode, self.name_validity_s(handle.inode.ino, name, inode)

    async def _list(self, ino: InodeNumber) -> Lease | None:
        """Know all names of a directory. None: they cannot be kept; nothing is known then."""
        assert self.keeper is not None
        table = self.keeper.table
        for _ in range(ATTEMPTS_MAX):
            lease = table.get(ino)
            if lease is not None and lease.is_complete:
                if lease.is_ahead:
                    self._note_read(lease)
                return lease
            if lease is not None and lease.is_large:
                return None
            listing = self._listings.get(ino)
            if listing is not None:
                await listing.wait()
                continue
            listing = self._listings[ino] = trio.Event()
            try:
                if self._is_doubtful(table.held(ino)):
                    await self._catch_up()
                walk = None if lease is None else self._walk_to(lease)
                if not await self._list_pages(ino, walk):
                    return None
            finally:
                del self._listings[ino]
                listing.set()
        return None

    @property
    def _inline_wanted(self) -> int:
        """Bytes of inline chunks that are to come with each file of a listing."""
        is_reading = self._clock.monotonic_s() < self._opened_s + READING_S
        return INLINE_WITH_NODE_SIZE_BYTES if is_reading else 0

    @property
    def _extents_wanted(self) -> int:
        """Extents that are to come with each file of a listing: none, unless files are read."""
        return LISTED_EXTENTS_MAX if self._inline_wanted else 0

    async def _list_pages(self, ino: InodeNumber, walk: TreeWalk | None) -> bool:
        """Ask for all pages of a directory. False: it is too large to be kept, or not leased."""
        assert self.keeper is not None
        table = self.keeper.table
        lease: Lease | None = None
        names: dict[bytes, Inode | None] = {}
        after = b""
        while True:
            (first, *ahead), grants = await self._ask_page(ino, after, None if after else walk)
            page = first.page
            granted = frozenset(grants.keys)
            covering = self.keeper.held_since(ino, grants.stamp) if ino in granted else None
            if covering is None or (lease is not None and covering is not lease):
                return False
            if lease is None:
                names = covering.names
            lease = covering
            if lease.names is not names:
                # What the pages before told was forgotten.
                return False
            if not table.can_keep(page.directory.size):
                lease.is_large = True
                return False
            self._learn_page(lease, page, grants.stamp, granted)
            if walk is not None and not after:
                self._learn_ahead(walk, ahead, grants.stamp, granted)
            if page.is_last or not page.entries:
                break
            after = page.entries[-1].name
        self._complete(lease, page)
        if table.excess > 0:
            await self._make_room(lease)
        return True

    async def _ask_page(
        self, ino: InodeNumber, after: bytes, walk: TreeWalk | None
    ) -> tuple[tuple[wire.Listing, ...], wire.Grants]:
        """A page of a directory and, with a walk, directories that it comes to next.

        Raises NOT_FOUND when the directory is gone: so are its entries.
        """
        assert self.keeper is not None
        if walk is not None and self._lists_trees:
            lease = self.keeper.table.held(ino)
            behind = [] if lease is None else self._unlisted_behind(lease)
            tree, grants = await self._ask_tree(walk, [ino, *behind], is_ahead=False)
            if tree:
                return tree, grants
        request = wire.ListDirectory(
            ino, after, extents_max=self._extents_wanted, inline_max=self._inline_wanted
        )
        page, grants = await self.keeper.read(wire.Path.LIST, request, wire.ListPage)
        return (wire.Listing(ino, page),), grants

    def _learn_page(
        self,
        lease: Lease,
        page: wire.ListPage,
        stamp: int,
        granted: frozenset[InodeNumber],
    ) -> None:
        assert self.keeper is not None
        table = self.keeper.table
        for entry in page.entries:
            if entry.name in lease.names:
                # It was changed here since, or is known; what the page says may be older.
                known = lease.names[entry.name]
                is_same = known is not None and known.ino == entry.node.attributes.ino
                if not is_same or known is None or table.covers(known):
                    continue
            node = entry.node
            inode = self.remembered(node, 0.0)
            if node.key in granted:
                covering = self.keeper.held_since(node.key, stamp)
                self._cover(inode, covering, node)
                if covering is not None and covering is not lease and not covering.is_complete:
                    # A directory, or what has several names, of which nobody asks for a parent.
                    covering.parent = lease.key
            table.set_name(lease, entry.name, inode)

    def _complete(self, lease: Lease, page: wire.ListPage) -> None:
        """All names of a directory are known, with its last page."""
        lease.parent = page.parent
        lease.is_complete = True
        directory = self.inodes.get(lease.key)
        if directory is not None:
            node = Node(page.directory, policy=directory.policy, key=lease.key)
            self._cover(self.remembered(node, 0.0), lease, node)

    # --- ahead of a walk -------------------------------------------------------------------------

    def _walk_to(self, lease: Lease) -> TreeWalk | None:
        """The walk that comes to a directory, which is being read, if there is one."""
        assert self.keeper is not None
        table = self.keeper.table
        parent = listed_parent(table, lease)
        if parent is None:
            return None
        if not subdirectories_of(parent).knows(lease.key):
            # It may have come since.
            parent.subdirectories = None
        if not subdirectories_of(parent).on_read(lease.key):
            return None
        if parent.walk is None:
            parent.walk = TreeWalk(table.names_max // AHEAD_SHARE)
        lease.walk = parent.walk
        return parent.walk

    def _note_read(self, lease: Lease) -> None:
        """A directory that was listed ahead is looked at: time to list what follows, perhaps."""
        assert self.keeper is not None
        walk = lease.walk
        lease.is_ahead = False
        self._walk_to(lease)
        if walk is not None and walk.on_read(1 + len(lease.names)):
            walk.is_fetching = True
            self.keeper.start_soon(self._list_ahead, (walk, lease))

    def _unlisted_behind(self, lease: Lease) -> list[InodeNumber]:
        assert self.keeper is not None
        return unlisted_behind(self.keeper.table, lease, wire.TREE_ROOTS_MAX, self._listings)

    async def _list_ahead(self, walked: tuple[TreeWalk, Lease]) -> None:
        """List the directories that a walk comes to next, which has come to that of the lease."""
        assert self.keeper is not None
        table = self.keeper.table
        walk, lease = walked
        roots = self._unlisted_behind(lease) if table.trust_s else []
        if not roots:
            walk.on_fetched(0)
            walk.is_fetching = False
            return
        # Nobody is waited for, so others may wait for these.
        listing = trio.Event()
        self._listings.update(dict.fromkeys(roots, listing))
        try:
            tree, grants = await self._ask_tree(walk, roots, is_ahead=True)
            self._learn_ahead(walk, tree, grants.stamp, frozenset(grants.keys))
        except MictlanError as error:
            log.debug("not listed ahead: %s", error)
        finally:
            for ino in roots:
                del self._listings[ino]
            listing.set()
        if table.excess > 0:
            await self._make_room()

    async def _ask_tree(
        self, walk: TreeWalk, roots: Sequence[InodeNumber], *, is_ahead: bool
    ) -> tuple[tuple[wire.Listing, ...], wire.Grants]:
        """Directories from the router; none from one that does not know how."""
        assert self.keeper is not None
        request = wire.ListTree(
            tuple(roots[: wire.TREE_ROOTS_MAX]),
            walk.next_entries(is_ahead=is_ahead),
            self._extents_wanted,
            self._inline_wanted,
            is_ahead,
        )
        walk.is_fetching = True
        try:
            tree, grants = await self.keeper.read(wire.Path.LIST_TREE, request, wire.TreePage)
            return tree.listings, grants
        except MictlanError as error:
            walk.on_fetched(0)
            if error.kind is not Kind.PROTOCOL:
                raise
            self._lists_trees = False
            return (), wire.Grants((), 0)
        finally:
            walk.is_fetching = False

    def _learn_ahead(
        self,
        walk: TreeWalk,
        listings: Sequence[wire.Listing],
        stamp: int,
        granted: frozenset[InodeNumber],
    ) -> None:
        """Keep directories listed ahead, each behind the one it is in."""
        assert self.keeper is not None
        table = self.keeper.table
        count = 0
        for listing in listings:
            ino, page = listing.ino, listing.page
            inode = self.inodes.get(ino)
            if ino not in granted or inode is None or not inode.name_count:
                # Also when it was removed or moved here since.
                continue
            lease = self.keeper.held_since(ino, stamp)
            if lease is None or lease.is_complete or lease.is_recalled:
                continue
            if not page.is_last or not table.can_keep(page.directory.size):
                continue
            self._learn_page(lease, page, stamp, granted)
            self._complete(lease, page)
            lease.walk = walk
            lease.is_ahead = True
            count += 1 + len(page.entries)
        walk.on_fetched(count)

    async def _make_room(self, kept: Lease | None = None) -> None:
        """Give up names that were used longest ago, all but those of `kept`."""
        assert self.keeper is not None
        table = self.keeper.table
        given_up: list[Lease] = []
        excess = table.excess + table.names_max // 4
        for lease in table.least_used():
            if excess <= 0:
                break
            if lease is not kept:
                given_up.append(lease)
                excess -= 1 + len(lease.names)
        dropped = [place for lease in given_up for place in _names_not_in_use(lease)]
        await self.keeper.give_up(given_up)
        if dropped and self.kernel is not None:
            self.keeper.start_soon(self.kernel.drop, dropped)

    # --- files -----------------------------------------------------------------------------------

    async def open(
        self,
        ino: InodeNumber,
        flags: int,
        thread: int | None = 0,
        *,
        is_root: bool = False,
        is_member: IsMember = in_every_group,
    ) -> Opened:
        """Open a file, with what was closed elsewhere before. Raises STALE when it is gone."""
        self._is_reading = self._inline_wanted > 0
        self._opened_s = self._clock.monotonic_s()
        inode = self.inodes.get(ino)
        if self.keeper is None or inode is None or not self.keeper.table.covers(inode):
            return await self._open_uncovered(
                ino, flags, thread, is_root=is_root, is_member=is_member
            )
        if inode.attributes.kind is FileKind.DIRECTORY:
            raise MictlanError(Kind.IS_DIRECTORY, "open", str(ino))
        if inode.attributes.nlink == 0 and inode.open_count == 0:
            self._note_refused_open()
            raise MictlanError(Kind.STALE, "open", str(ino), "it was removed")
        number = self._add_file_handle(inode, flags)
        try:
            if flags & os.O_TRUNC:
                known = inode.attributes
                mode = after_open_truncating(known, is_root=is_root, is_member=is_member)
                await self.setattr(ino, size=0, mode=mode)
            elif flags & os.O_ACCMODE == os.O_RDONLY and await self._push_content(inode):
                return Opened(number, keep_cache=True)
        except BaseException:
            await self._close(number)
            raise
        version = inode.attributes.content_version
        keep_cache = inode.kernel_content_version == version
        inode.kernel_content_version = version
        return Opened(number, keep_cache)

    def _note_refused_open(self) -> None:
        if self.keeper is not None:
            self._reopening_until_s = self._clock.monotonic_s() + REOPEN_WITHIN_S

    async def _open_uncovered(
        self,
        ino: InodeNumber,
        flags: int,
        thread: int | None,
        *,
        is_root: bool,
        is_member: IsMember,
    ) -> Opened:
        """Open what no lease covers; see `open`."""
        return await super().open(ino, flags, thread, is_root=is_root, is_member=is_member)

    async def _push_content(self, inode: Inode) -> bool:
        """Put a small file that is being opened into the kernel's cache, so that no read follows.

        Only for the first handle, and while the kernel has nothing of the file: a read under way
        would hold pages that the kernel then waits for, and with it this loop. Whether it is there.
        """
        size = inode.attributes.size
        if not 0 < size <= PUSHED_SIZE_BYTES_MAX or inode.kernel_content_version != -1:
            return False
        body = self._content.at_hand(inode, size)
        await self._know_content(inode, is_known=body is not None)
        size, version = inode.attributes.size, inode.attributes.content_version
        if body is None:
            body = self._content.at_hand(inode, size)
        if neighbours := self._neighbours_of(inode):
            self._content.prefetch(neighbours, PUSHED_SIZE_BYTES_MAX)
        if body is None or self.kernel is None or inode.open_count != 1:
            return False
        if not self._covers(inode):
            # It was given up while the router was asked.
            return False
        if not self.kernel.store(inode.ino, body):
            return False
        self.short_reads.on_told(inode, size)
        inode.kernel_content_version = version
        return True

    async def _know_content(self, inode: Inode, *, is_known: bool) -> None:
        """Learn extents and small bytes of a file of a listed directory, and of those behind it.

        What is missing is waited for; what will be wanted next comes in the background.
        """
        lease = inode.lease
        if lease is None or not lease.is_complete or inode.ino == lease.key:
            return
        size = inode.attributes.size
        while not is_known and self._content.is_untold(inode, size):
            if lease.page_fetch is None:
                await self._fetch_page(lease, self._pages_of(lease, inode).on_missing(inode.ino))
                return
            await lease.page_fetch.wait()
        if lease.pages is not None and lease.page_fetch is None and lease.is_complete:
            page = lease.pages.on_found(inode.ino)
            if page is not None and self.keeper is not None:
                self.keeper.start_soon(self._fetch_ahead, (lease, page))

    def _pages_of(self, lease: Lease, inode: Inode) -> ContentPages[Inode]:
        pages = lease.pages
        if pages is None or not pages.knows(inode.ino):
            count = COUNT_FIRST_READING if self._is_reading else COUNT_FIRST
            files = [(name, file) for name, file in sorted(lease.names.items()) if file is not None]
            pages = lease.pages = ContentPages(files, count)
        return pages

    async def _fetch_ahead(self, wanted: tuple[Lease, Page]) -> None:
        lease, page = wanted
        if lease.page_fetch is None:
            await self._fetch_page(lease, page)

    async def _fetch_page(self, lease: Lease, page: Page) -> None:
        """Ask for the content of files of a listed directory; a failure is that of who reads."""
        assert self.keeper is not None
        fetch = lease.page_fetch = trio.Event()
        request = wire.ListDirectory(
            lease.key, page.after, page.entries_max, LISTED_EXTENTS_MAX, INLINE_WITH_NODE_SIZE_BYTES
        )
        try:
            found, _ = await self.keeper.read(wire.Path.LIST, request, wire.ListPage)
        except MictlanError as error:
            log.debug("content of a directory not told: %s", error)
            return
        finally:
            lease.page_fetch = None
            fetch.set()
        for entry in found.entries:
            known = lease.names.get(entry.name)
            if known is not None and known.lease is lease and self._covers(known):
                self._learn_content(known, entry.node)

    def _learn_content(self, inode: Inode, node: Node) -> None:
        """Keep what an answer tells of the content of a file, unless the file is another by now."""
        known, told = inode.attributes, node.attributes
        if inode.pending_count or known.ino != told.ino or known.version != told.version:
            return
        if node.inline:
            self._content.keep_inline(node)
        self._learn_extents(inode, node)

    def _neighbours_of(self, inode: Inode) -> Sequence[Inode]:
        """Files of the same directory that are likely to be opened next."""
        lease = inode.lease
        if lease is None or not lease.is_complete:
            return ()
        neighbours = lease.neighbours
        if neighbours is None or not neighbours.knows(inode):
            neighbours = lease.neighbours = _neighbours_in(lease)
        following = neighbours.on_open(inode)
        if lease.walk is not None:
            lease.walk.files_ahead = neighbours.ahead
        return following

    def _fetch_first_files(self, lease: Lease) -> None:
        """A walk came to a directory: if it reads files, fetch the first ones of this one."""
        if lease.walk is None or not self._inline_wanted or lease.neighbours is not None:
            return
        lease.neighbours = _neighbours_in(lease)
        self._content.prefetch(lease.neighbours.on_listed(), PUSHED_SIZE_BYTES_MAX)

    def read_now(self, number: HandleNumber, offset: int, length: int) -> Buffer | None:
        """What `read` would return, if that is at hand. Never suspends."""
        handle = self.handles.file(number)
        if self.keeper is None or not self.keeper.table.covers(handle.inode):
            return None
        return self._content.read_now(handle, offset, length)

    async def read(self, number: HandleNumber, offset: int, length: int) -> Buffer:
        """Bytes of an open file; fewer than `length` only at its end."""
        if self.keeper is not None:
            inode = self.handles.file(number).inode
            if not self.keeper.table.covers(inode):
                with self.short_reads.reading(inode.ino):
                    await self._asked(inode.ino)
                    return await super().read(number, offset, length)
        return await super().read(number, offset, length)


def _names_not_in_use(lease: Lease) -> list[tuple[InodeNumber, bytes]]:
    """Names that the kernel may drop: those of directories lead to others, and may be in use."""
    return [
        (lease.key, name)
        for name, inode in lease.names.items()
        if inode is not None
        and inode.lookup_count
        and inode.open_count == 0
        and inode.attributes.kind is not FileKind.DIRECTORY
    ]


def _neighbours_in(lease: Lease) -> Neighbours[Inode]:
    names = sorted(lease.names.items())
    files = [file for _, file in names if file is not None and _has_bytes(file)]
    return Neighbours(files, AHEAD_FIRST if lease.walk is None else lease.walk.files_ahead)


def _has_bytes(inode: Inode) -> bool:
    return inode.attributes.kind is FileKind.FILE and inode.attributes.size > 0
