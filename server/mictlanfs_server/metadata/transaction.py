"""One batch of operations in the making: inode rows kept in memory until its end.

A batch that creates a thousand files in a directory changes that directory a thousand times; here
it becomes one row written. Owns the undo of a failed operation: its inode changes are put back from
copies, its other rows by a savepoint. Never checks a rule; `names`, `attributes` and `content` do.

Invariant: inside a batch the inode table is read and written only through this object.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from mictlanfs.model import ROOT_INODE, BucketPolicy, InodeNumber, PeerNumber, SessionId
from mictlanfs_server.metadata.rows import CountChange, InodeRecord

if TYPE_CHECKING:
    from mictlanfs_server.metadata.rows import Rows

# Deeper trees cannot be made through a path, whose length is bounded; this only ends a walk in a
# damaged database.
DEPTH_MAX = 1_000_000


class Transaction:
    """The rows of one batch and the inodes it has touched.

    Attributes:
        rows: for everything that is not an inode.
        session: on whose behalf; empty for the router itself.
        now_ns: the router's clock, the time of tombstones.
        counts: what the batch adds to the counters of the space.
        uses: what the batch adds to the bytes used by each bucket.
    """

    def __init__(self, rows: Rows, session: SessionId, now_ns: int) -> None:
        self.rows = rows
        self.session = session
        self.now_ns = now_ns
        self.counts = CountChange()
        self.uses: dict[InodeNumber, int] = {}
        self._inodes: dict[InodeNumber, InodeRecord | None] = {}
        self._is_stored: dict[InodeNumber, bool] = {}
        self._touched: set[InodeNumber] = set()
        # State before the operation under way, to undo it.
        self._before: dict[InodeNumber, InodeRecord | None] = {}
        self._counts_before = CountChange()
        self._uses_before: dict[InodeNumber, int] = {}
        self._is_stored_before: dict[InodeNumber, bool] | None = None
        self._next_ino: int | None = None
        self._peers: frozenset[PeerNumber] | None = None
        self._retired: frozenset[PeerNumber] | None = None
        self._has_records: bool | None = None
        self._has_trash: bool | None = None
        self._keeps_trash: bool | None = None
        self._trash_days: dict[InodeNumber, int] = {}
        self._paths: dict[InodeNumber, bytes] = {}

    # --- operations ---

    def begin(self) -> None:
        """Begin an operation."""
        self._before.clear()
        self._counts_before = copy.copy(self.counts)
        self._uses_before = dict(self.uses)
        self._is_stored_before = None
        self.rows.savepoint()

    def undo(self) -> None:
        """End the operation without a trace."""
        self.rows.rollback()
        self._inodes.update(self._before)
        self.counts = self._counts_before
        self.uses = self._uses_before
        if self._is_stored_before is not None:
            self._is_stored = {**self._is_stored, **self._is_stored_before}
        self._next_ino = None
        self.forget_places()

    def keep(self) -> None:
        """End the operation; its effect is part of the batch."""
        self.rows.release()

    def flush(self) -> None:
        """Write the inodes and counters. Nothing may follow but the end of the transaction."""
        self._write_inodes()
        if self.counts != CountChange():
            self.rows.add_counts(self.counts)
        for bucket, difference in self.uses.items():
            if difference:
                self.rows.add_bucket_use(bucket, difference)

    def write_early(self) -> None:
        """Write the inodes, within an operation, for a statement that reads many of them."""
        if self._is_stored_before is None:
            self._is_stored_before = dict(self._is_stored)
        self._write_inodes()
        for ino in self._touched:
            self._is_stored[ino] = self._inodes[ino] is not None

    def _write_inodes(self) -> None:
        inserts, updates, deletes = [], [], []
        for ino in self._touched:
            record = self._inodes[ino]
            if record is None:
                if self._is_stored[ino]:
                    deletes.append(ino)
            elif self._is_stored[ino]:
                updates.append(record)
            else:
                inserts.append(record)
        if deletes:
            self.rows.delete_inodes(deletes)
        if updates:
            self.rows.update_inodes(updates)
        if inserts:
            # In order of their numbers, new rows go to the end of the table.
            self.rows.insert_inodes(sorted(inserts, key=lambda record: record.ino))

    # --- inodes ---

    def inode(self, ino: InodeNumber) -> InodeRecord | None:
        """An inode to look at. Never change what this returns: use `change`."""
        try:
            return self._inodes[ino]
        except KeyError:
            record = self.rows.inode(ino)
            self._inodes[ino] = record
            self._is_stored[ino] = record is not None
            return record

    def change(self, record: InodeRecord) -> InodeRecord:
        """`record`, which came from `inode`, to change in place."""
        ino = record.ino
        if ino not in self._before:
            self._before[ino] = copy.copy(record)
            self._touched.add(ino)
        return record

    def insert(self, record: InodeRecord) -> None:
        """Add an inode whose number is free."""
        ino = record.ino
        assert self.inode(ino) is None
        self._before.setdefault(ino, None)
        self._touched.add(ino)
        self._inodes[ino] = record
        self.counts.inodes += 1

    def delete(self, record: InodeRecord) -> None:
        """Remove an inode."""
        self.change(record)
        self._inodes[record.ino] = None
        self.counts.inodes -= 1

    def is_handed_out(self, ino: InodeNumber) -> bool:
        """Whether the router ever gave this number to a session."""
        if self._next_ino is None:
            self._next_ino = self.rows.counter("next_ino")
        return ROOT_INODE < ino < self._next_ino

    def new_number(self) -> InodeNumber:
        """An inode number that nobody ever had, for the router itself."""
        ino = self.rows.counter("next_ino")
        self.rows.set_counter("next_ino", ino + 1)
        self._next_ino = None
        return InodeNumber(ino)

    # --- what lies around an inode ---

    def is_below(self, record: InodeRecord, ancestor: InodeNumber) -> bool:
        """Whether directory `record` is `ancestor` or lies in it, at any depth."""
        here: InodeRecord | None = record
        for _ in range(DEPTH_MAX):
            if here is None or here.ino == ROOT_INODE:
                return ancestor == ROOT_INODE
            if here.ino == ancestor:
                return True
            here = self.inode(here.parent)
        raise AssertionError("the directories form a loop")

    def bucket_of(self, record: InodeRecord) -> InodeNumber | None:
        """The bucket that `record` is or lies in, also a removed one; None: in none."""
        here: InodeRecord | None = record
        for _ in range(DEPTH_MAX):
            if here is None or here.ino == ROOT_INODE:
                return None
            if here.parent == ROOT_INODE:
                return here.ino
            here = self.inode(here.parent)
        raise AssertionError("the directories form a loop")

    def policy_of(self, record: InodeRecord) -> BucketPolicy:
        """The policy of the bucket that `record` lies in; the default one once that is removed."""
        bucket = self.bucket_of(record)
        return (bucket and self.rows.policy(bucket)) or BucketPolicy()

    def has_grown(self, bucket: InodeNumber) -> bool:
        """Whether a bucket uses more than before the operation under way."""
        return self.uses.get(bucket, 0) > self._uses_before.get(bucket, 0)

    def may_have_record(self) -> bool:
        """Whether any inode may have a record: in most spaces none has, and none is looked for."""
        if self._has_records is None:
            self._has_records = self.rows.records.has_any()
        return self._has_records

    def note_record(self) -> None:
        """Say that an inode has got a record."""
        self._has_records = True

    # --- trash ---

    def keeps_trash(self) -> bool:
        """Whether any bucket keeps what it loses: in most spaces none does."""
        if self._keeps_trash is None:
            self._keeps_trash = self.rows.trash.is_wanted()
        return self._keeps_trash

    def may_have_trash(self) -> bool:
        """Whether an inode without a name may have an item of the trash waiting for it."""
        if self._has_trash is None:
            # What this batch adds is sustained, and never let go without being looked for.
            self._has_trash = self.rows.trash.has_any() or self.keeps_trash()
        return self._has_trash

    def trash_days(self, bucket: InodeNumber) -> int:
        """For how many days a bucket keeps what it loses."""
        days = self._trash_days.get(bucket)
        if days is None:
            policy = self.rows.policy(bucket)
            days = self._trash_days[bucket] = policy.trash_days if policy else 0
        return days

    def path_of(self, directory: InodeNumber) -> bytes:
        """The path of a directory with a name, from the root, with that of its bucket."""
        way: list[tuple[InodeNumber, bytes]] = []
        here = directory
        while here != ROOT_INODE and here not in self._paths:
            record = self.inode(here)
            assert record is not None, "a directory is in none"
            name = self.rows.name_in(record.parent, here)
            assert name is not None, "a directory has no name"
            way.append((here, name))
            here = record.parent
        path = self._paths.get(here, b"")
        for passed, name in reversed(way):
            path = path + b"/" + name if path else name
            self._paths[passed] = path
        return path

    def forget_places(self) -> None:
        """Directories may have other names, or buckets other policies, than a moment ago."""
        self._keeps_trash = self._has_trash = None
        self._trash_days.clear()
        self._paths.clear()

    def is_peer(self, number: PeerNumber) -> bool:
        """Whether the peer map has a peer with this number."""
        if self._peers is None:
            self._peers = self.rows.peer_numbers()
        return number in self._peers

    def is_retired(self, number: PeerNumber) -> bool:
        """Whether a peer had this number, and never comes back."""
        if self._retired is None:
            self._retired = self.rows.retired_numbers()
        return number in self._retired
