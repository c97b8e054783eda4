"""The values every part speaks of: inodes, extents, chunks, buckets, peers. Frozen, no behaviour.

All structures are `array_like` on the wire: a field is known by its position, so a new field goes
at the end with a default and an old reader ignores it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NewType, TypeAlias

import msgspec

Buffer: TypeAlias = bytes | bytearray | memoryview

InodeNumber = NewType("InodeNumber", int)
ChunkId = NewType("ChunkId", bytes)
SessionId = NewType("SessionId", str)
PeerNumber = NewType("PeerNumber", int)

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

ROOT_INODE = InodeNumber(1)
NAME_SIZE_BYTES_MAX = 255
# PATH_MAX less the terminating NUL: symlink(2).
SYMLINK_SIZE_BYTES_MAX = 4095
XATTR_NAME_SIZE_BYTES_MAX = 255
# XATTR_SIZE_MAX and XATTR_LIST_MAX of Linux.
XATTR_VALUE_SIZE_BYTES_MAX = 64 * KIB
XATTR_LIST_SIZE_BYTES_MAX = 64 * KIB
LINK_COUNT_MAX = 65_000
# The largest offset a 64-bit off_t can name.
FILE_SIZE_BYTES_MAX = 2**63 - 1
TIME_NS_MIN, TIME_NS_MAX = -(2**63), 2**63 - 1

CHUNK_ID_SIZE_BYTES = 16
# BLAKE3.
DIGEST_SIZE_BYTES = 32
CHUNK_SIZE_BYTES_DEFAULT = 4 * MIB
CHUNK_SIZE_BYTES_MIN = 64 * KIB
CHUNK_SIZE_BYTES_MAX = 16 * MIB
# Chunks below this travel many in one framed request, and a peer stores them together.
SMALL_CHUNK_SIZE_BYTES = 64 * KIB
REPLICAS_DEFAULT = 2
REPLICAS_MAX = 5
# Of a code: fragments that hold the bytes, and those that are computed from them. A chunk that is
# not coded survives as many losses with copies, so there are no more of these than further copies.
DATA_FRAGMENTS_MIN = 2
DATA_FRAGMENTS_MAX = 16
PARITY_FRAGMENTS_MAX = REPLICAS_MAX - 1
TRASH_DAYS_MAX = 36_500


class Struct(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all values on the wire."""


class FileKind(IntEnum):
    """What an inode is. The numbers are those of the file type bits of `st_mode`, shifted."""

    FIFO = stat.S_IFIFO >> 12
    CHARACTER_DEVICE = stat.S_IFCHR >> 12
    DIRECTORY = stat.S_IFDIR >> 12
    BLOCK_DEVICE = stat.S_IFBLK >> 12
    FILE = stat.S_IFREG >> 12
    SYMLINK = stat.S_IFLNK >> 12
    SOCKET = stat.S_IFSOCK >> 12


class Attributes(Struct, frozen=True, gc=False):
    """What `stat` shows of an inode, and the two counters that tell whether it changed.

    Attributes:
        mode: permission bits only, 0 to 0o7777; the file type is `kind`.
        size: bytes; for a directory the number of entries, for a symlink the target's length.
        nlink: names of the inode; a directory counts 2 and one for each directory in it.
        rdev: device number of a device node, else 0.
        allocated: bytes covered by extents; what `st_blocks` is made from.
        version: counts every change of the inode.
        content_version: counts changes of content (bytes or size of a file, names of a directory).
        has_xattrs: whether any extended attribute exists, so that its absence costs no request.
    """

    ino: InodeNumber
    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    nlink: int
    rdev: int = 0
    allocated: int = 0
    version: int = 0
    content_version: int = 0
    has_xattrs: bool = False

    @property
    def st_mode(self) -> int:
        """Permission bits and file type, as in `struct stat`."""
        return (self.kind << 12) | self.mode


class Extent(Struct, frozen=True):
    """Bytes `[offset, offset + length)` of a file are bytes of a chunk from `chunk_offset` on.

    Extents of one file never overlap; a range that no extent covers is a hole and reads as zeros.
    """

    offset: int
    length: int
    chunk_id: ChunkId
    chunk_offset: int

    @property
    def end(self) -> int:
        """The offset just behind the extent."""
        return self.offset + self.length


class Coding(Struct, frozen=True):
    """How the bytes of a chunk are spread over fragments, each on a peer of its own (ADR 0018).

    Any `data` of the fragments give the chunk back. The first `data` are its bytes, cut into equal
    parts, the last filled up with zeros; see `mictlanfs.fragments`. A peer stores a fragment under
    the id of the chunk.

    Attributes:
        data: fragments that hold the bytes, 2 to 16.
        digests: BLAKE3 of every fragment, 32 bytes each, in order.
        indices: which fragment each of the chunk's peers holds, in their order; each once.
    """

    data: int
    digests: bytes
    indices: tuple[int, ...]

    @property
    def count(self) -> int:
        """Fragments in all."""
        return len(self.digests) // DIGEST_SIZE_BYTES

    def digest(self, index: int) -> bytes:
        """The digest of a fragment."""
        return self.digests[index * DIGEST_SIZE_BYTES : (index + 1) * DIGEST_SIZE_BYTES]


class Chunk(Struct, frozen=True):
    """An immutable run of bytes and where it lies.

    Attributes:
        id: 128 bits, time-ordered, made by the writer.
        length: bytes, at least 1.
        digest: BLAKE3 of the stored bytes.
        peers: numbers of the peers that hold a replica or a fragment, in the order the writer used.
            None: the chunk is *inline*, its bytes stand in the router's metadata.
        coding: when the peers hold fragments; None: each holds all of the bytes.
    """

    id: ChunkId
    length: int
    digest: bytes
    peers: tuple[PeerNumber, ...]
    coding: Coding | None = None


def inline_bodies(
    chunks: Iterable[Chunk], bodies: Iterable[bytes]
) -> Iterator[tuple[Chunk, bytes]]:
    """The inline chunks among `chunks` whose bytes came along in `bodies`, with these."""
    inline = (chunk for chunk in chunks if not chunk.peers)
    # The shorter one ends it: a sender may leave out the last bodies.
    return ((chunk, body) for body, chunk in zip(bodies, inline, strict=False) if body)


class BucketPolicy(Struct, frozen=True, gc=False):
    """How the data of a bucket is kept.

    Attributes:
        replicas: copies wanted of each chunk, 1 to 5. With a code: of each chunk that is not coded,
            and one more than the code has parity fragments, so that any chunk survives as many
            losses.
        replicas_min: copies that must be stored before a write is good while peers are down. With
            a code as many fragments more than one less than `data`: the same losses again.
        chunk_size: bytes of a full chunk, 64 KiB to 16 MiB.
        quota: bytes of content that the files of the bucket may have together, 0: no limit.
        data: fragments that the bytes of a chunk of at least 64 KiB are cut into, 2 to 16; 0: they
            are kept as copies.
        trash_days: for how long what is removed or overwritten from now on is kept, 0 to 36500;
            0: not at all.
    """

    replicas: int = REPLICAS_DEFAULT
    replicas_min: int = 1
    chunk_size: int = CHUNK_SIZE_BYTES_DEFAULT
    quota: int = 0
    data: int = 0
    trash_days: int = 0

    @property
    def parity(self) -> int:
        """Fragments that are computed from those of `data`; 0 without a code."""
        return self.replicas - 1 if self.data else 0

    @property
    def fragments_min(self) -> int:
        """Fragments of a chunk that must be stored before a write is good."""
        return self.data + self.replicas_min - 1

    def is_coded(self, length: int) -> bool:
        """Whether a chunk of `length` bytes is to be coded."""
        return self.data > 0 and length >= SMALL_CHUNK_SIZE_BYTES


class Node(Struct, frozen=True):
    """An inode with all that is usually asked next, so that one round trip is enough.

    Attributes:
        target: of a symlink, else empty.
        extents: the first extents in order of offset.
        chunks: every chunk that `extents` names, each once.
        has_all_extents: whether `extents` is the whole of the file.
        policy: of the bucket the inode lies in; None for the root.
        key: of the lease that covers the inode; see `mictlanfs.wire`. 0: from an older router.
        inline: bytes of the inline chunks among `chunks`, in their order; empty for one that was
            left out, and shorter when all that follow were. See `inline_bodies`.
    """

    attributes: Attributes
    target: bytes = b""
    extents: tuple[Extent, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    has_all_extents: bool = False
    policy: BucketPolicy | None = None
    key: InodeNumber = InodeNumber(0)
    inline: tuple[bytes, ...] = ()


class PeerState(IntEnum):
    """What the router believes of a peer."""

    UP = 0
    SUSPECT = 1
    DOWN = 2


class PeerInfo(Struct, frozen=True):
    """A peer as the peer map shows it.

    Attributes:
        number: small integer that stands for the peer in chunk locations; never reused.
        id: the name it registered with, unique in the space.
        url: where it answers, e.g. `http://127.0.0.1:24000`.
        zone: failure zone; replicas prefer different zones.
        capacity: bytes it may hold.
        used: bytes it holds, as of its last heartbeat.
        is_full: it refuses new chunks.
        boot_id: of its machine's kernel, to recognise a peer on the same machine.
        is_draining: it is being emptied: it serves its chunks and gets no new ones.
    """

    number: PeerNumber
    id: str
    url: str
    zone: str
    capacity: int
    used: int
    state: PeerState
    is_full: bool = False
    boot_id: str = ""
    is_draining: bool = False


class PeerMap(Struct, frozen=True):
    """All peers of the space. `version` grows with every change that a writer should know."""

    version: int
    peers: tuple[PeerInfo, ...]
