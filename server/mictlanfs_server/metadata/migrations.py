"""The versions of the metadata schema, and how a database gets from one to the next.

Each migration has a name, runs once, in a transaction of its own together with the record that it
ran, and sets `PRAGMA user_version` to its place in the order. A database that a newer program has
migrated is refused unchanged. Before the first migration of one that holds a space, all of it is
copied into a file beside it, which stays: `metadata.db.v5-20261130T140509Z`, by the version and the
time (UTC).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing
from importlib import resources
from typing import TYPE_CHECKING

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from mictlanfs.durable import sync_folder
from mictlanfs.errors import UsageError
from mictlanfs.identifiers import new_token
from mictlanfs.model import ROOT_INODE, FileKind
from mictlanfs_server.metadata.rows import InodeRecord
from mictlanfs_server.metadata.sqlite_rows import SqliteRows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

MIGRATIONS = Migrations("mictlanfs-metadata")
# "MICT": tells our files from any other SQLite database.
APPLICATION_ID = 0x4D494354
SCHEMA_VERSION = 9
# STRICT tables came with 3.37, RETURNING and MATERIALIZED before.
SQLITE_VERSION_MIN = (3, 37, 0)


def migrate(path: Path, now_ns: int, *, keeps_copy: bool = True) -> None:
    """Create the database at `path`, or bring it to the present version.

    Args:
        path: of the database.
        now_ns: becomes the times of the root directory of a new space; part of the name of a copy.
        keeps_copy: whether a space of an older version is copied before; see above.

    Raises:
        UsageError: it is of a newer version, or not ours, or cannot be opened or copied; nothing
            was changed then.
    """
    if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
        raise UsageError(
            f"SQLite {sqlite3.sqlite_version} is too old: install a Python with 3.37 or newer"
        )
    try:
        with closing(sqlite3.connect(path)) as connection:
            _refuse_foreign(connection, path)
            if keeps_copy:
                _keep_copy(connection, path, now_ns)
            # The file keeps the mode from now on.
            connection.execute("PRAGMA journal_mode=WAL")
            MIGRATIONS.apply(Database(connection, execute_plugins=False))
            _make_space(connection, now_ns)
    except sqlite3.Error as error:
        raise UsageError(f"{path} cannot be used as metadata: {error}") from error


def make_empty(path: Path, version: int) -> None:
    """Make a new database of an earlier version, or this one, without a space in it. Not synced.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=OFF")
            database = Database(connection, execute_plugins=False)
            later = [migration.name for migration in MIGRATIONS.pending(database)][version:]
            MIGRATIONS.apply(database, stop_before=later)
    except sqlite3.Error as error:
        raise UsageError(f"{path} cannot be made: {error}") from error


def _keep_copy(connection: sqlite3.Connection, path: Path, now_ns: int) -> None:
    """Copy a space of an older version, durably, before anything of it is changed."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 0 < version < SCHEMA_VERSION:
        return
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ns // 10**9))
    copy = path.with_name(f"{path.name}.v{version}-{moment}")
    unfinished = copy.with_name(f"{copy.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        with closing(sqlite3.connect(unfinished)) as target:
            connection.backup(target)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(copy)
        sync_folder(path.parent)
    except (sqlite3.Error, OSError) as error:
        unfinished.unlink(missing_ok=True)
        raise UsageError(f"no copy of {path} could be kept before its update: {error}") from error
    log.info("the metadata of version %d is kept in %s", version, copy)


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    # A crash before the first migration leaves the table of migrations alone in the file.
    (foreign_count,) = connection.execute(
        "SELECT count(*) FROM sqlite_schema WHERE tbl_name <> '_sqlite_migrations'"
    ).fetchone()
    if application != APPLICATION_ID and (foreign_count or application):
        raise UsageError(f"{path} is a database of another program: choose another directory")
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version}, this program knows up to {SCHEMA_VERSION}: "
            "start it with the newer program that made it"
        )


def statements(script: str) -> Iterator[str]:
    """The statements of an SQL script, one by one.

    `executescript` would do, but it commits the transaction around it first.
    """
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@MIGRATIONS(name="0001-first-schema")
def _first_schema(database: Database) -> None:
    script = resources.files("mictlanfs_server.metadata").joinpath("schema.sql").read_text("utf-8")
    for statement in statements(script):
        database.execute(statement)
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute("PRAGMA user_version = 1")


@MIGRATIONS(name="0002-use-of-buckets")
def _use_of_buckets(database: Database) -> None:
    """Count the bytes of each bucket, from now on in the same transaction as they change.

    `bucket.used` is the sum of `inode.allocated` of the files with a name whose way up, from
    `inode.parent`, ends in the bucket. The view counts them anew; a bucket without has no row.
    """
    database.execute(
        """
        CREATE VIEW bucket_counted AS
        WITH RECURSIVE placed(ino, bucket) AS (
            SELECT ino, ino FROM bucket
            UNION SELECT dentry.ino, placed.bucket FROM placed
                JOIN dentry ON dentry.parent = placed.ino
                JOIN inode ON inode.ino = dentry.ino AND kind = 4
        )
        SELECT placed.bucket AS bucket, sum(allocated) AS counted
        FROM inode JOIN placed ON placed.ino = inode.parent
        WHERE kind = 8 AND nlink > 0 GROUP BY placed.bucket
        """
    )
    database.execute("ALTER TABLE bucket ADD COLUMN used INTEGER NOT NULL DEFAULT 0")
    database.execute(
        "UPDATE bucket SET used = coalesce("
        "(SELECT counted FROM bucket_counted WHERE bucket_counted.bucket = bucket.ino), 0)"
    )
    database.execute("PRAGMA user_version = 2")


@MIGRATIONS(name="0003-inline-chunks")
def _inline_chunks(database: Database) -> None:
    # The bytes of chunks that no peer holds. A live chunk has a row here or in `replica`, never in
    # both; a dead one has none here. With a rowid: without one a row this large would leave its
    # page after a quarter of it.
    database.execute(
        """
        CREATE TABLE inline (
            chunk BLOB NOT NULL PRIMARY KEY,    -- in `chunk`
            data BLOB NOT NULL                  -- chunk.length bytes
        ) STRICT
        """
    )
    database.execute("PRAGMA user_version = 3")


@MIGRATIONS(name="0004-sessions-with-leases")
def _sessions_with_leases(database: Database) -> None:
    # After a restart only those count that may hold leases.
    database.execute("ALTER TABLE session ADD COLUMN leases INTEGER NOT NULL DEFAULT 0")
    database.execute("PRAGMA user_version = 4")


@MIGRATIONS(name="0005-records")
def _records(database: Database) -> None:
    # What a door keeps with a file: pieces in order, whose sizes add up to that of the file while
    # it is of this content version. The rows go with the inode.
    database.execute(
        """
        CREATE TABLE record (
            ino INTEGER NOT NULL,               -- a file in `inode`
            position INTEGER NOT NULL,          -- of the piece, from 0 without gaps
            size INTEGER NOT NULL,              -- bytes, at least 0
            content_version INTEGER NOT NULL,   -- the same in all rows of a file
            body BLOB NOT NULL,                 -- opaque
            PRIMARY KEY (ino, position)
        ) STRICT, WITHOUT ROWID
        """
    )
    # Files that wait for others to become one with them. A row counts while its file has that name
    # and no other, and its record is not stale.
    database.execute(
        """
        CREATE TABLE part (
            ino INTEGER NOT NULL PRIMARY KEY,   -- in `record`
            parent INTEGER NOT NULL,            -- the directory where it has its name
            name BLOB NOT NULL,
            ball BLOB NOT NULL,                 -- the name, there, of what the parts become
            part_count INTEGER NOT NULL,        -- how many parts that has
            position INTEGER NOT NULL           -- which one this is, from 0
        ) STRICT
        """
    )
    database.execute("CREATE UNIQUE INDEX part_place ON part (parent, ball, part_count, position)")
    database.execute("PRAGMA user_version = 5")


@MIGRATIONS(name="0006-copies")
def _copies(database: Database) -> None:
    """What it takes to copy, move and give up copies, and to say good-bye to a peer."""
    database.execute("CREATE INDEX replica_peer ON replica (peer, chunk)")
    # Copies without a row in `replica` that a peer may still hold. Nobody names such a peer for
    # the chunk until the copy is deleted.
    database.execute(
        """
        CREATE TABLE given_up (
            chunk BLOB NOT NULL,                -- may be forgotten by now
            peer INTEGER NOT NULL,              -- in `peer`
            delete_at_ns INTEGER NOT NULL,      -- by the router's clock
            PRIMARY KEY (chunk, peer)
        ) STRICT, WITHOUT ROWID
        """
    )
    database.execute("CREATE INDEX given_up_due ON given_up (delete_at_ns, chunk, peer)")
    # Numbers of removed peers, and of stores that were replaced by others of the same id. They may
    # have rows in `replica` that are still to be removed, or are the last of a lost chunk.
    database.execute(
        """
        CREATE TABLE retired_peer (
            number INTEGER NOT NULL PRIMARY KEY,    -- not in `peer`
            id TEXT NOT NULL,                       -- that it had
            store TEXT NOT NULL,                    -- token of its store; empty: it told none
            is_removed INTEGER NOT NULL             -- 1: for ever; 0: the store may come back
        ) STRICT
        """
    )
    # The token of the store behind a number; a peer with another one has lost its data.
    database.execute(
        """
        CREATE TABLE peer_store (
            number INTEGER NOT NULL PRIMARY KEY,    -- in `peer`
            store TEXT NOT NULL
        ) STRICT
        """
    )
    # Moves that people ordered, until they have ended.
    database.execute(
        """
        CREATE TABLE move_order (
            name TEXT NOT NULL PRIMARY KEY,
            position BLOB NOT NULL              -- the last chunk dealt with
        ) STRICT
        """
    )
    database.execute("ALTER TABLE peer ADD COLUMN is_draining INTEGER NOT NULL DEFAULT 0")
    database.execute("PRAGMA user_version = 6")


@MIGRATIONS(name="0007-coded-chunks")
def _coded_chunks(database: Database) -> None:
    # How many replicas of different rank, on peers that answer, give the chunk: 1 of copies. Of a
    # coded chunk a replica is a fragment, its rank says which, and `wanted` is how many there are.
    database.execute("ALTER TABLE chunk ADD COLUMN needed INTEGER NOT NULL DEFAULT 1")
    # BLAKE3 of every fragment, 32 bytes each, in order of rank; null for copies.
    database.execute("ALTER TABLE chunk ADD COLUMN digests BLOB")
    database.execute("PRAGMA user_version = 7")


@MIGRATIONS(name="0008-trash-and-snapshots")
def _trash_and_snapshots(database: Database) -> None:
    # As `policy` has it, so that it is cheap to know that no bucket keeps what it loses.
    database.execute("ALTER TABLE bucket ADD COLUMN trash_days INTEGER NOT NULL DEFAULT 0")
    database.execute("CREATE INDEX bucket_trash ON bucket (ino) WHERE trash_days > 0")
    # What was removed or overwritten and is kept. Its extents, extended attributes and record stay,
    # by its number. The inode is there as long as a session sustains it, and gone then.
    database.execute(
        """
        CREATE TABLE trash (
            ino INTEGER NOT NULL PRIMARY KEY,
            path BLOB NOT NULL,                 -- that it had, from the root, without '/' before it
            removed_ns INTEGER NOT NULL,        -- the router's clock
            expires_ns INTEGER NOT NULL,        -- 0 when it was given up
            reason INTEGER NOT NULL,            -- wire.TrashReason
            kind INTEGER NOT NULL,              -- from here on as in `inode`
            mode INTEGER NOT NULL,
            uid INTEGER NOT NULL,
            gid INTEGER NOT NULL,
            size INTEGER NOT NULL,
            atime_ns INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL,
            rdev INTEGER NOT NULL,
            allocated INTEGER NOT NULL,         -- 0 while the inode is there
            content_version INTEGER NOT NULL,
            has_xattrs INTEGER NOT NULL,
            target BLOB NOT NULL
        ) STRICT
        """
    )
    database.execute("CREATE INDEX trash_path ON trash (path, removed_ns, ino)")
    database.execute("CREATE INDEX trash_expires ON trash (expires_ns)")
    # Inode I is I + 2^62 + number * 2^40 in a snapshot: `mictlanfs.snapshotnumbers`. All tables
    # hold its rows beside those of live inodes; the counters in `meta` do not count them.
    database.execute(
        """
        CREATE TABLE snapshot (
            number INTEGER NOT NULL PRIMARY KEY,  -- never reused
            bucket INTEGER NOT NULL,
            name BLOB,                          -- null: dropped, its rows are being let go
            root INTEGER NOT NULL,              -- the directory that it is of
            path BLOB NOT NULL,                 -- that it had, from the root, with the bucket
            created_ns INTEGER NOT NULL,        -- the router's clock
            is_ready INTEGER NOT NULL,          -- 1 when it is complete, and to be seen
            names INTEGER NOT NULL,             -- in it, and one for itself
            nbytes INTEGER NOT NULL             -- allocated to its files
        ) STRICT
        """
    )
    database.execute("CREATE UNIQUE INDEX snapshot_name ON snapshot (bucket, name)")
    #   trash_count, trash_bytes    rows of `trash`, the sum of `trash.allocated`
    #   next_snapshot               the next number of a snapshot
    #   snapshot_changes            how often one came or went
    database.execute(
        "INSERT INTO meta VALUES"
        " ('trash_count', 0), ('trash_bytes', 0), ('next_snapshot', 1), ('snapshot_changes', 0)"
    )
    database.execute("PRAGMA user_version = 8")


@MIGRATIONS(name="0009-truth-of-copies")
def _truth_of_copies(database: Database) -> None:
    # Peers that said of their copy of a chunk, the last one in `replica`, that it is not good. Of a
    # dead chunk a row means nothing.
    database.execute(
        """
        CREATE TABLE damaged (
            chunk BLOB NOT NULL,
            peer INTEGER NOT NULL,              -- in `peer`
            found_ns INTEGER NOT NULL,          -- the router's clock
            PRIMARY KEY (chunk, peer)
        ) STRICT, WITHOUT ROWID
        """
    )
    # Chunks that were removed as orphans: whoever commits one after all must store it again.
    database.execute(
        """
        CREATE TABLE collected (
            chunk BLOB NOT NULL PRIMARY KEY,
            found_ns INTEGER NOT NULL           -- the router's clock
        ) STRICT, WITHOUT ROWID
        """
    )
    database.execute("PRAGMA user_version = 9")


def _make_space(connection: sqlite3.Connection, now_ns: int) -> None:
    """Give a new database its identity and its root directory, in one transaction."""
    rows = SqliteRows(connection)
    if connection.execute("SELECT 1 FROM meta WHERE name = 'space_id'").fetchone():
        return
    root = InodeRecord(
        ino=ROOT_INODE,
        kind=FileKind.DIRECTORY,
        mode=0o755,
        # Whoever runs the first router owns the space; `chown` through a mount changes that.
        uid=os.getuid(),
        gid=os.getgid(),
        size=0,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        nlink=2,
        version=1,
        content_version=1,
        parent=ROOT_INODE,
    )
    with connection:
        rows.insert_inodes([root])
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            {
                "space_id": new_token(),
                "next_ino": ROOT_INODE + 1,
                "next_epoch": 1,
                "peer_map_version": 1,
                "flush_count": 0,
                "inode_count": 1,
                "chunk_count": 0,
                "tombstone_count": 0,
                "bytes_logical": 0,
            }.items(),
        )
