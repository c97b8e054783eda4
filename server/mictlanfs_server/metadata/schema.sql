-- The metadata of a space, first version: every table, column by column, with its invariants.
--
-- Later versions change it by migrations (migrations.py) and never edit this file. `check.py`
-- verifies the invariants below. No foreign keys: the writer keeps them, and a check on every row
-- would be paid on every operation.

-- Single values: the identity of the space and its counters.
--   space_id            text, made at the first start, never changed
--   next_ino            the next inode number to hand out; numbers below it were, and never again
--   next_epoch          the next fencing token of a session
--   peer_map_version    of the last peer map made public
--   flush_count         written to make earlier commits durable; its value means nothing
--   inode_count         rows of `inode`
--   chunk_count         rows of `chunk` with refs > 0
--   tombstone_count     rows of `chunk` with refs = 0
--   bytes_logical       the sum of `inode.allocated`
CREATE TABLE meta (
    name TEXT NOT NULL PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Every inode: those with a name, and those without one that a session sustains.
CREATE TABLE inode (
    ino INTEGER NOT NULL PRIMARY KEY,   -- 1 is the root; never reused
    kind INTEGER NOT NULL,              -- model.FileKind
    mode INTEGER NOT NULL,              -- permission bits, 0 to 0o7777
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    size INTEGER NOT NULL,              -- file: bytes; directory: its entries; symlink: of target
    atime_ns INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    nlink INTEGER NOT NULL,             -- dentries that name it; directory: 2 + its directories,
                                        -- 0 once removed
    rdev INTEGER NOT NULL,              -- of a device node, else 0
    allocated INTEGER NOT NULL,         -- the sum of the lengths of its extents
    version INTEGER NOT NULL,           -- grows with every change
    content_version INTEGER NOT NULL,   -- grows with every change of bytes, size or entries
    has_xattrs INTEGER NOT NULL,        -- 1 exactly when `xattr` has a row for it
    -- Directory: the directory that holds it (the root: itself). Else: one of the directories that
    -- hold a name of it, or that held the last one. The way up from here ends in a bucket, whose
    -- policy is the inode's; so moving a tree to another bucket changes one row.
    parent INTEGER NOT NULL,
    target BLOB NOT NULL                -- of a symlink, else empty
) STRICT;

-- (directory, name) -> inode. Each directory but the root is named exactly once.
CREATE TABLE dentry (
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,                 -- 1 to 255 bytes, without '/' and NUL, not '.' or '..'
    ino INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;

-- Finds another name of an inode when the one in `inode.parent` goes.
CREATE INDEX dentry_ino ON dentry (ino);

CREATE TABLE xattr (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,                 -- 1 to 255 bytes
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;

-- Exactly the directories in the root.
CREATE TABLE bucket (
    ino INTEGER NOT NULL PRIMARY KEY,
    policy BLOB NOT NULL                -- msgpack of model.BucketPolicy
) STRICT;

-- Bytes [offset, offset + length) of a file are those of a chunk from `chunk_offset` on.
-- Extents of a file do not overlap and end within its size; two that touch and continue each
-- other in the same chunk are one row.
CREATE TABLE extent (
    ino INTEGER NOT NULL,               -- in `inode` or in `doomed`
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,            -- at least 1
    chunk BLOB NOT NULL,
    chunk_offset INTEGER NOT NULL,      -- chunk_offset + length <= chunk.length
    PRIMARY KEY (ino, offset)
) STRICT, WITHOUT ROWID;

-- A chunk that peers hold or may hold. Once refs has been 0 it stays 0: never resurrected.
CREATE TABLE chunk (
    id BLOB NOT NULL PRIMARY KEY,       -- 16 bytes
    length INTEGER NOT NULL,            -- bytes, at least 1
    digest BLOB NOT NULL,               -- BLAKE3, 32 bytes
    refs INTEGER NOT NULL,              -- extents that name it
    wanted INTEGER NOT NULL,            -- copies its bucket wanted when it was committed
    dead_since_ns INTEGER               -- the router's clock when refs became 0; else null
) STRICT, WITHOUT ROWID;

CREATE INDEX chunk_dead ON chunk (dead_since_ns, id) WHERE dead_since_ns IS NOT NULL;

-- Which peers hold a chunk. A row goes only after the peer has confirmed the deletion.
CREATE TABLE replica (
    chunk BLOB NOT NULL,                -- in `chunk`
    rank INTEGER NOT NULL,              -- place in the order the writer used, from 0
    peer INTEGER NOT NULL,              -- in `peer`; at most one row for a chunk and a peer
    PRIMARY KEY (chunk, rank)
) STRICT, WITHOUT ROWID;

CREATE TABLE session (
    id TEXT NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL,             -- fencing token, unique in the space
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    label TEXT NOT NULL,
    seen_ns INTEGER NOT NULL,           -- the router's clock, some seconds late
    -- 1 when it is closed or expired and inodes it sustained are still to be let go.
    is_ended INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The last batch of each session that applied one, so that it can be answered again.
CREATE TABLE batch (
    session TEXT NOT NULL PRIMARY KEY,
    first_number INTEGER NOT NULL,
    op_count INTEGER NOT NULL,          -- operations asked for
    next_number INTEGER NOT NULL,       -- the number the next batch must begin with
    answer BLOB NOT NULL                -- msgpack of wire.CommitAnswer
) STRICT;

-- Inodes that lost their last name but that a session has open.
CREATE TABLE sustained (
    session TEXT NOT NULL,
    ino INTEGER NOT NULL,               -- in `inode`
    PRIMARY KEY (session, ino)
) STRICT, WITHOUT ROWID;

CREATE INDEX sustained_ino ON sustained (ino);

-- Removed inodes whose extents are still being let go, in slices. They are not in `inode`.
CREATE TABLE doomed (
    ino INTEGER NOT NULL PRIMARY KEY
) STRICT;

CREATE TABLE peer (
    number INTEGER NOT NULL PRIMARY KEY,  -- never reused
    id TEXT NOT NULL UNIQUE,
    url TEXT NOT NULL,
    zone TEXT NOT NULL,
    capacity INTEGER NOT NULL,            -- bytes
    used INTEGER NOT NULL,                -- bytes
    state INTEGER NOT NULL,               -- model.PeerState
    is_full INTEGER NOT NULL,
    boot_id TEXT NOT NULL
) STRICT;
