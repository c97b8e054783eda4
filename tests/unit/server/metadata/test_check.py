"""The checker finds each kind of damage; that it finds none elsewhere, every other test shows."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from mictlanfs import wire
from mictlanfs.model import BucketPolicy, FileKind, InodeNumber
from mictlanfs_server.metadata import sqlite_snapshots
from mictlanfs_server.metadata.base import SnapshotPlan
from mictlanfs_server.metadata.check import INVARIANTS, SHOWN_MAX, find_damage
from tests.unit.server.metadata.space import Space, SpaceMaker, new_chunk

# A statement that does damage -> words of the rule it breaks. The space: bucket 2 with directory 3,
# file 4 (two extents), symlink 5, file 6 linked twice; 7 was unlinked and is sustained; 8 is a part
# of 2.
DAMAGES = {
    "UPDATE meta SET value = 99 WHERE name = 'inode_count'": "counters",
    "UPDATE meta SET value = 99 WHERE name = 'chunk_count'": "counters",
    "UPDATE meta SET value = 99 WHERE name = 'tombstone_count'": "counters",
    "UPDATE meta SET value = 99 WHERE name = 'bytes_logical'": "counters",
    "UPDATE bucket SET used = 99": "what a bucket uses",
    "UPDATE meta SET value = 5 WHERE name = 'next_ino'": "handed out",
    "UPDATE inode SET parent = 2 WHERE ino = 1": "the root is a directory",
    "INSERT INTO dentry VALUES (2, x'61', 1)": "the root is a directory",
    "INSERT INTO dentry VALUES (4, x'61', 6)": "has not been removed",
    "INSERT INTO dentry VALUES (99, x'61', 6)": "has not been removed",
    "INSERT INTO dentry VALUES (2, x'61', 99)": "stands for an inode",
    "INSERT INTO dentry VALUES (2, x'2e2e', 6)": "1 to 255 bytes",
    "INSERT INTO dentry VALUES (2, x'612f', 6)": "1 to 255 bytes",
    "INSERT INTO dentry VALUES (2, x'6100', 6)": "1 to 255 bytes",
    "INSERT INTO dentry VALUES (2, x'', 6)": "1 to 255 bytes",
    "INSERT INTO dentry VALUES (1, x'61', 4)": "directories only",
    "DELETE FROM bucket": "directories only",
    "INSERT INTO bucket VALUES (3, x'', 0, 0)": "directories only",
    "UPDATE inode SET size = 9 WHERE ino = 2": "number of its entries",
    "UPDATE inode SET nlink = 9 WHERE ino = 2": "a directory has 2 links",
    "DELETE FROM dentry WHERE ino = 3": "a directory has 2 links",
    "INSERT INTO dentry VALUES (2, x'61', 3)": "a directory has one name",
    "UPDATE inode SET parent = 1 WHERE ino = 3": "a directory has one name",
    "UPDATE inode SET nlink = 3 WHERE ino = 6": "are its names",
    "UPDATE inode SET parent = 1 WHERE ino = 6": "holds a name of it",
    "UPDATE dentry SET parent = 3 WHERE ino = 3": "reached from the root",
    "DELETE FROM sustained": "without a name is sustained",
    "INSERT INTO sustained VALUES ('first', 99)": "what is sustained",
    "INSERT INTO sustained VALUES ('unknown', 7)": "what is sustained",
    "INSERT INTO doomed VALUES (4)": "doomed inode is not",
    "UPDATE inode SET target = x'61' WHERE ino = 4": "symlink",
    "UPDATE inode SET size = 1 WHERE ino = 5": "symlink",
    "UPDATE inode SET has_xattrs = 1 WHERE ino = 4": "extended attributes",
    "DELETE FROM xattr": "extended attributes",
    "INSERT INTO xattr VALUES (99, x'61', x'')": "extended attributes",
    "UPDATE extent SET ino = 99 WHERE offset = 0": "belongs to a file",
    "UPDATE inode SET size = 5 WHERE ino = 4": "lies within its file",
    "UPDATE extent SET chunk_offset = 1": "lies within its file",
    "UPDATE extent SET chunk = x'00'": "lies within its file",
    "UPDATE extent SET offset = 5 WHERE offset = 10": "do not overlap",
    "UPDATE extent SET chunk_offset = 0, length = 5, chunk = (SELECT chunk FROM extent LIMIT 1)"
    " WHERE offset = 10; UPDATE extent SET length = 10; UPDATE chunk SET length = 99;"
    " UPDATE extent SET chunk_offset = 10 WHERE offset = 10": "joined",
    "UPDATE inode SET allocated = 1 WHERE ino = 4": "what is allocated",
    "UPDATE chunk SET refs = 2 WHERE refs = 1": "references of a chunk",
    "UPDATE chunk SET dead_since_ns = 1 WHERE refs = 1": "dead exactly",
    "UPDATE chunk SET dead_since_ns = NULL": "dead exactly",
    "DELETE FROM replica": "has a replica",
    "DELETE FROM inline": "has a replica",
    "INSERT INTO replica SELECT chunk, 0, 1 FROM inline": "has a replica",
    "UPDATE inline SET data = x'00'": "bytes that are here",
    "INSERT INTO inline SELECT id, x'00000000000000000000' FROM chunk WHERE refs = 0": "bytes that",
    "INSERT INTO inline VALUES (x'00', x'')": "bytes that are here",
    "INSERT INTO replica VALUES (x'00', 0, 1)": "a replica is of a chunk",
    "UPDATE replica SET peer = 77 WHERE rank = 1": "a replica is of a chunk",
    "UPDATE replica SET peer = 1": "a replica is of a chunk",
    "INSERT INTO given_up SELECT chunk, peer, 0 FROM replica": "was given up",
    "INSERT INTO given_up VALUES (x'00', 77, 0)": "was given up",
    "INSERT INTO retired_peer VALUES (1, 'peer-1', '', 0)": "was retired",
    "UPDATE chunk SET needed = 0": "a coded chunk wants",
    "UPDATE chunk SET needed = 2": "a coded chunk wants",
    "UPDATE chunk SET digests = x'00'": "a coded chunk wants",
    "UPDATE chunk SET needed = 2, digests = zeroblob(32 * wanted)": "a coded chunk wants",
    "UPDATE chunk SET needed = 2, wanted = 3, digests = zeroblob(96);"
    " UPDATE replica SET rank = 3 WHERE rank = 1": "one of its fragments",
    "INSERT INTO record VALUES (99, 0, 0, 1, x'')": "a record is of a file",
    "INSERT INTO record VALUES (3, 0, 0, 1, x'')": "a record is of a file",
    "UPDATE record SET position = 1": "a record is of a file",
    "INSERT INTO record VALUES (8, 2, 0, 1, x'')": "a record is of a file",
    "INSERT INTO record VALUES (8, 1, 0, 2, x'')": "a record is of a file",
    "UPDATE record SET content_version = 0": "a record is of a file",
    "UPDATE record SET content_version = 3": "a record is of a file",
    "UPDATE record SET size = 9": "make up the file",
    "INSERT INTO record VALUES (8, 1, 1, 1, x''), (8, 2, -1, 1, x'')": "make up the file",
    "DELETE FROM record": "a part has a record",
    "UPDATE part SET part_count = 0": "a part has a record",
    "UPDATE part SET position = 2": "a part has a record",
    "UPDATE part SET position = -1": "a part has a record",
    "INSERT INTO batch VALUES ('unknown', 1, 1, 2, x'')": "a batch is of",
}

# The same of what is kept. The space: bucket 2 with file 3, which has two names, and a snapshot of
# it (number 1); another one of which only the row is there (number 2); file 4 in the trash, and
# file 5, which will be there when it is closed.
OFFSET = f"{2**62} + {2**40}"
DAMAGES_OF_WHAT_IS_KEPT = {
    "UPDATE meta SET value = 99 WHERE name = 'trash_count'": "counters",
    "UPDATE meta SET value = 99 WHERE name = 'trash_bytes'": "counters",
    "UPDATE meta SET value = 4 WHERE name = 'next_ino'": "handed out",
    "UPDATE trash SET size = 5 WHERE ino = 4": "lies within its file",
    "UPDATE trash SET kind = 4 WHERE ino = 4": "belongs to a file, to an item",
    "UPDATE trash SET allocated = 1 WHERE ino = 5": "what is allocated",
    "DELETE FROM extent WHERE ino = 4": "what is allocated",
    "UPDATE trash SET has_xattrs = 0": "extended attributes",
    "UPDATE trash SET content_version = 0": "a record is of a file",
    "UPDATE trash SET ino = 3 WHERE ino = 4": "what is in the trash",
    "INSERT INTO doomed VALUES (4)": "what is in the trash",
    f"DELETE FROM extent WHERE ino = {OFFSET} + 3": "what is allocated",
    f"DELETE FROM xattr WHERE ino = {OFFSET} + 3": "extended attributes",
    f"UPDATE inode SET nlink = 1 WHERE ino = {OFFSET} + 3": "are its names",
    f"UPDATE inode SET size = 3 WHERE ino = {OFFSET} + 2": "number of its entries",
    f"UPDATE inode SET ino = ino + 2 * {2**40} WHERE ino = {OFFSET} + 3": "belongs to a snapshot",
    f"UPDATE dentry SET parent = parent + 2 * {2**40} WHERE name = x'66696c65' AND"
    f" parent = {OFFSET} + 2": "far behind",
    "UPDATE meta SET value = 2 WHERE name = 'next_snapshot'": "belongs to a snapshot",
    f"DELETE FROM dentry WHERE parent = {2**61} + 2": "a complete snapshot",
    f"UPDATE dentry SET ino = {OFFSET} + 3 WHERE parent = {2**61} + 2": "a complete snapshot",
    f"INSERT INTO dentry VALUES ({2**61} + 2, x'61', {OFFSET} + 2)": "a complete snapshot",
    "UPDATE snapshot SET is_ready = 1": "a complete snapshot",
    "UPDATE snapshot SET is_ready = 0": "a complete snapshot",
    "UPDATE snapshot SET bucket = 3": "is of a bucket",
}


@pytest.fixture
def kept(space_maker: SpaceMaker) -> Iterator[sqlite3.Connection]:
    path = space_maker.new_database()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        space = Space(connection)
        bucket = space.bucket()
        file = space.make(bucket, b"file")
        space.link(file, bucket, b"again")
        space.do(wire.SetBucketPolicy(bucket, BucketPolicy(trash_days=1), 1))
        for name in (b"removed", b"open"):
            space.make(bucket, name)
        for ino in range(3, 6):
            space.write(ino, 0, new_chunk(10))
            space.do(wire.SetXattr(InodeNumber(ino), b"user.a", b"1", 1))
        space.do(wire.SetRecord(InodeNumber(4), 0, (wire.RecordPiece(10, b""),)))
        space.unlink(bucket, b"removed")
        space.unlink(bucket, b"open", sustain=True)
        space.snapshot(bucket, b"monday")
        unfinished = SnapshotPlan(bucket, bucket, b"tuesday", b"bucket")
        sqlite_snapshots.begin(space.rows, unfinished, 1)
        assert space.damage() == []
        yield connection


@pytest.mark.parametrize("statement", DAMAGES_OF_WHAT_IS_KEPT)
def test_damage_of_what_is_kept_is_found(kept: sqlite3.Connection, statement: str) -> None:
    kept.executescript(statement)
    damage = find_damage(kept)
    assert any(DAMAGES_OF_WHAT_IS_KEPT[statement] in line for line in damage), damage


@pytest.fixture
def connection(space_maker: SpaceMaker) -> Iterator[sqlite3.Connection]:
    path = space_maker.new_database()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        space = Space(connection)
        bucket = space.bucket()
        assert bucket == 2
        space.mkdir(bucket, b"directory")
        file = space.make(bucket, b"file")
        space.write(file, 0, new_chunk(10))
        space.write(file, 0, new_chunk(10))
        space.write(file, 10, new_chunk(10))
        space.write_inline(file, 20, b"in the metadata")
        space.make(bucket, b"symlink", FileKind.SYMLINK, b"target")
        linked = space.make(bucket, b"linked")
        space.link(linked, bucket, b"again")
        space.do(wire.SetXattr(linked, b"user.a", b"1", 1))
        space.make(bucket, b"open")
        space.unlink(bucket, b"open", sustain=True)
        part = space.make(bucket, b"ball_0")
        ball = space.new_inode()
        space.do(wire.PutPart(part, bucket, b"ball_0", b"ball", ball, 0, 2, b"body", 1))
        assert space.damage() == []
        yield connection


@pytest.mark.parametrize("statement", DAMAGES)
def test_damage_is_found_and_named(connection: sqlite3.Connection, statement: str) -> None:
    connection.executescript(statement)
    damage = find_damage(connection)
    assert any(DAMAGES[statement] in line for line in damage), damage


def test_every_invariant_has_damage_that_breaks_it() -> None:
    untested = [
        invariant.rule
        for invariant in INVARIANTS
        if not any(
            words in invariant.rule
            for words in (*DAMAGES.values(), *DAMAGES_OF_WHAT_IS_KEPT.values())
        )
    ]
    assert untested == []


def test_report_of_much_damage_stays_short(connection: sqlite3.Connection) -> None:
    connection.executemany(
        "INSERT INTO dentry VALUES (2, ?, 999)", ((b"%d" % n,) for n in range(100))
    )
    (line,) = [line for line in find_damage(connection) if "stands for an inode" in line]
    assert line.count("999") == SHOWN_MAX
