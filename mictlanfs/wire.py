"""The protocol between the parts: paths, headers, messages and their coding. Used by both ends.

Control requests are `POST` with a msgpack body of the request structure and answer 200 with a
msgpack body of the answer structure. An error is any other status with a JSON body (`WireError`),
readable in a terminal. Chunk bytes travel as plain HTTP bodies; many small ones as a *frame*: four
bytes big-endian length of a msgpack header, the header, then the bodies one behind the other.

`docs/protocol.md` explains the exchanges; the fields are documented here only.
"""

from __future__ import annotations

from typing import Final

from mictlanfs.model import (
    Attributes,
    BucketPolicy,
    Chunk,
    ChunkId,
    Extent,
    FileKind,
    InodeNumber,
    Node,
    PeerMap,
    SessionId,
    Struct,
)
from mictlanfs.wirecoding import FRAME_HEADER_SIZE_BYTES_MAX as FRAME_HEADER_SIZE_BYTES_MAX
from mictlanfs.wirecoding import WireError as WireError
from mictlanfs.wirecoding import cut_bodies as cut_bodies
from mictlanfs.wirecoding import decode as decode
from mictlanfs.wirecoding import decode_error as decode_error
from mictlanfs.wirecoding import encode as encode
from mictlanfs.wirecoding import encode_error as encode_error
from mictlanfs.wirecoding import frame as frame
from mictlanfs.wirecoding import unframe as unframe
from mictlanfs.wirelists import LIST_ENTRIES_MAX as LIST_ENTRIES_MAX
from mictlanfs.wirelists import TREE_ROOTS_MAX as TREE_ROOTS_MAX
from mictlanfs.wirelists import Entry as Entry
from mictlanfs.wirelists import ListDirectory as ListDirectory
from mictlanfs.wirelists import Listing as Listing
from mictlanfs.wirelists import ListPage as ListPage
from mictlanfs.wirelists import ListTree as ListTree
from mictlanfs.wirelists import TreePage as TreePage
from mictlanfs.wirepeers import HOT_COUNT_MAX as HOT_COUNT_MAX
from mictlanfs.wirepeers import FrameAnswer as FrameAnswer
from mictlanfs.wirepeers import FrameChunk as FrameChunk
from mictlanfs.wirepeers import FrameDelete as FrameDelete
from mictlanfs.wirepeers import FrameGet as FrameGet
from mictlanfs.wirepeers import FramePut as FramePut
from mictlanfs.wirepeers import FrameResult as FrameResult
from mictlanfs.wirepeers import GetLeaveCost as GetLeaveCost
from mictlanfs.wirepeers import HotChunk as HotChunk
from mictlanfs.wirepeers import LeaveCost as LeaveCost
from mictlanfs.wirepeers import PeerAnnounce as PeerAnnounce
from mictlanfs.wirepeers import PeerLeave as PeerLeave
from mictlanfs.wirepeers import PeerWelcome as PeerWelcome
from mictlanfs.wirerecords import RECORD_BODY_SIZE_BYTES_MAX as RECORD_BODY_SIZE_BYTES_MAX
from mictlanfs.wirerecords import RECORD_PIECES_MAX as RECORD_PIECES_MAX
from mictlanfs.wirerecords import RECORD_SIZE_BYTES_MAX as RECORD_SIZE_BYTES_MAX
from mictlanfs.wirerecords import RECORDS_ANSWER_SIZE_BYTES_MAX as RECORDS_ANSWER_SIZE_BYTES_MAX
from mictlanfs.wirerecords import RECORDS_COUNT_MAX as RECORDS_COUNT_MAX
from mictlanfs.wirerecords import FileRecord as FileRecord
from mictlanfs.wirerecords import GetRecords as GetRecords
from mictlanfs.wirerecords import PutPart as PutPart
from mictlanfs.wirerecords import RecordPiece as RecordPiece
from mictlanfs.wirerecords import Records as Records
from mictlanfs.wirerecords import SetRecord as SetRecord
from mictlanfs.wirestatus import MetadataStatus as MetadataStatus
from mictlanfs.wirestatus import PeerStatus as PeerStatus
from mictlanfs.wirestatus import SessionStatus as SessionStatus
from mictlanfs.wirestatus import SpaceStatus as SpaceStatus
from mictlanfs.wiretrash import TRASH_EMPTIED_MAX as TRASH_EMPTIED_MAX
from mictlanfs.wiretrash import TRASH_PAGE_MAX as TRASH_PAGE_MAX
from mictlanfs.wiretrash import CreateSnapshot as CreateSnapshot
from mictlanfs.wiretrash import Emptied as Emptied
from mictlanfs.wiretrash import EmptyTrash as EmptyTrash
from mictlanfs.wiretrash import ListSnapshots as ListSnapshots
from mictlanfs.wiretrash import ListTrash as ListTrash
from mictlanfs.wiretrash import RemoveSnapshot as RemoveSnapshot
from mictlanfs.wiretrash import Restore as Restore
from mictlanfs.wiretrash import SnapshotInfo as SnapshotInfo
from mictlanfs.wiretrash import Snapshots as Snapshots
from mictlanfs.wiretrash import TrashItem as TrashItem
from mictlanfs.wiretrash import TrashPage as TrashPage
from mictlanfs.wiretrash import TrashReason as TrashReason

PROTOCOL_VERSION: Final = 1
PREFIX: Final = "/mictlanfs/v1"
MSGPACK: Final = "application/msgpack"

# Every answer of a router carries its peer map's version, so a stale map is noticed at once.
HEADER_PEER_MAP: Final = "x-mictlanfs-peer-map"
HEADER_DIGEST: Final = "x-mictlanfs-digest"
# On a read: the session that asks for leases with the answer. On the answer: it is a frame whose
# header is `Grants`, also when it is an error.
HEADER_SESSION: Final = "x-mictlanfs-session"
HEADER_GRANTS: Final = "x-mictlanfs-grants"

BATCH_OPS_MAX: Final = 4096
BATCH_SIZE_BYTES_MAX: Final = 8 * 1024 * 1024
FRAME_CHUNKS_MAX: Final = 256
FRAME_SIZE_BYTES_MAX: Final = 8 * 1024 * 1024
# With a node, or by a request that asks for no other number.
EXTENTS_PAGE_MAX: Final = 256
# Of one `GetExtents`: about 100 KB.
EXTENTS_LONG_PAGE_MAX: Final = 2048
RESOLVE_DEPTH_MAX: Final = 2048
INODE_BATCH_COUNT: Final = 1024
# Inodes and names of one `Acquire`; leases of one `Recall`, `ReleaseLeases`, `Claim`.
ACQUIRE_COUNT_MAX: Final = 16
LEASES_COUNT_MAX: Final = 4096
# Of one inline chunk, and of all that one answer carries.
INLINE_CHUNK_SIZE_BYTES_MAX: Final = 16 * 1024
INLINE_ANSWER_SIZE_BYTES_MAX: Final = 4 * 1024 * 1024


class Path:
    """Where each request goes, below the server's address."""

    SESSION_OPEN: Final = PREFIX + "/session/open"
    SESSION_HEARTBEAT: Final = PREFIX + "/session/heartbeat"
    SESSION_CLOSE: Final = PREFIX + "/session/close"
    SESSION_INODES: Final = PREFIX + "/session/inodes"
    SESSION_EVENTS: Final = PREFIX + "/session/events"
    LEASE_ACQUIRE: Final = PREFIX + "/lease/acquire"
    LEASE_RELEASE: Final = PREFIX + "/lease/release"
    LEASE_CLAIM: Final = PREFIX + "/lease/claim"
    COMMIT: Final = PREFIX + "/commit"
    LOOKUP: Final = PREFIX + "/lookup"
    NODE: Final = PREFIX + "/node"
    EXTENTS: Final = PREFIX + "/extents"
    INLINE: Final = PREFIX + "/inline"
    LIST: Final = PREFIX + "/list"
    LIST_TREE: Final = PREFIX + "/list-tree"
    XATTRS: Final = PREFIX + "/xattrs"
    RECORDS: Final = PREFIX + "/records"
    RESOLVE: Final = PREFIX + "/resolve"
    STATFS: Final = PREFIX + "/statfs"
    BUCKETS: Final = PREFIX + "/buckets"
    PEER_MAP: Final = PREFIX + "/peer-map"
    PEER_ANNOUNCE: Final = PREFIX + "/peer/announce"
    PEER_LEAVE: Final = PREFIX + "/peer/leave"
    PEER_LEAVE_COST: Final = PREFIX + "/peer/leave-cost"
    STATUS: Final = PREFIX + "/status"
    HEALTH: Final = PREFIX + "/health"
    PATH: Final = PREFIX + "/path"
    BUCKET_USE: Final = PREFIX + "/bucket-use"
    CHUNK: Final = PREFIX + "/chunks/"
    FRAME_PUT: Final = PREFIX + "/frames/put"
    FRAME_GET: Final = PREFIX + "/frames/get"
    FRAME_DELETE: Final = PREFIX + "/frames/delete"
    FRAME_PULL: Final = PREFIX + "/frames/pull"
    FRAGMENT_MAKE: Final = PREFIX + "/fragments/make"
    LOCATE: Final = PREFIX + "/locate"
    UPKEEP: Final = PREFIX + "/upkeep"
    PEER_DRAIN: Final = PREFIX + "/peer/drain"
    PEER_REMOVE: Final = PREFIX + "/peer/remove"
    PEER_CLONE: Final = PREFIX + "/peer/clone"
    TRASH_LIST: Final = PREFIX + "/trash/list"
    TRASH_EMPTY: Final = PREFIX + "/trash/empty"
    SNAPSHOT_CREATE: Final = PREFIX + "/snapshot/create"
    SNAPSHOT_REMOVE: Final = PREFIX + "/snapshot/remove"
    SNAPSHOT_LIST: Final = PREFIX + "/snapshot/list"
    # See `mictlanfs.wireobjects`.
    OBJECT: Final = PREFIX + "/objects/"
    OBJECT_LIST: Final = PREFIX + "/object-list"
    METADATA_SNAPSHOT: Final = PREFIX + "/metadata/snapshot"
    VERIFY: Final = PREFIX + "/verify"
    HELD: Final = PREFIX + "/held"
    SCRUB: Final = PREFIX + "/scrub"
    PEER_BAD: Final = PREFIX + "/peer/bad"
    REPORT: Final = PREFIX + "/report"
    CHECK: Final = PREFIX + "/check"


# --- sessions ------------------------------------------------------------------------------------


class OpenSession(Struct, frozen=True):
    """Begin a session.

    Attributes:
        host, pid, label: who asks, for `status` only.
        leases: whether the session will hold leases: it follows `Path.SESSION_EVENTS`, and is
            fenced when it does not give up a lease in time.
    """

    protocol: int
    host: str
    pid: int
    label: str
    leases: bool = False


class SessionGrant(Struct, frozen=True):
    """A session as the router granted it.

    Attributes:
        epoch: fencing token; sent with every request of the session.
        ttl_s: seconds without a heartbeat after which the session is gone.
        heartbeat_s: seconds between heartbeats.
        inodes: a first batch of inode numbers.
        lease_ttl_s: for how long after a request for events was sent its sender may trust its
            leases; 0 when the session holds none.
        incarnation: of the router; another one has forgotten all leases until they are claimed.
    """

    session: SessionId
    epoch: int
    space_id: str
    ttl_s: float
    heartbeat_s: float
    inodes: InodeRange
    root: Attributes
    peer_map: PeerMap
    lease_ttl_s: float = 0.0
    incarnation: int = 0


class InodeRange(Struct, frozen=True):
    """Inode numbers `first` to `first + count - 1`, never handed to anybody else."""

    first: int
    count: int


class SessionRef(Struct, frozen=True):
    """Names a session: heartbeat, close."""

    session: SessionId
    epoch: int


class TakeInodes(Struct, frozen=True):
    """Ask for another batch of inode numbers."""

    session: SessionId
    epoch: int
    count: int


class Done(Struct, frozen=True):
    """An answer with nothing to say."""


# --- leases --------------------------------------------------------------------------------------
#
# A lease is on a *key*, the number of an inode: a directory, or what has not exactly one name, is
# its own key; anything else has the directory that names it as its key. A lease on a directory so
# covers its attributes, its names (also those that it does not have) and all of its files.


class LeaseMode:
    """What a session holds of a key. WRITE belongs to one session alone, READ to any number."""

    NONE: Final = 0
    READ: Final = 1
    WRITE: Final = 2


class Grants(Struct, frozen=True):
    """READ leases that come with the answer to a read.

    Attributes:
        keys: granted now, or held before. A key that is missing here is not held: what the answer
            says of it was true when it was read and may be false by now.
        stamp: of the moment of the answer; a recall with a larger stamp overtakes it.
    """

    keys: tuple[InodeNumber, ...]
    stamp: int


class Place(Struct, frozen=True):
    """A name in a directory, whether it exists or not."""

    parent: InodeNumber
    name: bytes


class Acquire(Struct, frozen=True):
    """Get WRITE leases on all that a change needs, at once. Waits for those who hold them.

    Attributes:
        inodes: whose keys are wanted.
        places: the keys of the directories are wanted, and those of what the names stand for, if
            anything.
        extents_max: how many extents to send with each node.

    Errors: FENCED, NOT_FOUND (one of `inodes`, or a directory of `places`, does not exist),
    NOT_DIRECTORY, INVALID (too many). Answer: `Acquired`.
    """

    session: SessionId
    epoch: int
    inodes: tuple[InodeNumber, ...]
    places: tuple[Place, ...] = ()
    extents_max: int = 0


class Acquired(Struct, frozen=True):
    """All leases were granted.

    Attributes:
        keys: now held for WRITE.
        nodes: those of `inodes`, then the directories of `places`, in order.
        found: what the name of each of `places` stands for; None: nothing.
        stamp: as in `Grants`.
    """

    keys: tuple[InodeNumber, ...]
    nodes: tuple[Node, ...]
    found: tuple[Node | None, ...]
    stamp: int


class AwaitEvents(Struct, frozen=True):
    """Ask for what happened to the leases of a session; answered when something did, or in a while.

    A sign of life. One such request of a session is under way at a time; a second one ends the
    first. Errors: FENCED. Answer: `Events`.

    Attributes:
        after: number of the last event received; those behind it are sent (again).
        incarnation: that the sender knows of.
    """

    session: SessionId
    epoch: int
    after: int
    incarnation: int


class Events(Struct, frozen=True):
    """Recalls in order; none when nothing happened, or when the router is another incarnation.

    Attributes:
        last: number of the last of `recalls`, or the `after` of the request.
        incarnation: of the router. When it is not the one of the request, leases are to be claimed
            (`Claim`) and events are counted from 0 again.
        lease_ttl_s: from now on as in `SessionGrant`: that of a router may have changed when it
            was started again. 0: nothing is said.
    """

    recalls: tuple[Recall, ...]
    last: int
    incarnation: int
    lease_ttl_s: float = 0.0


class Recall(Struct, frozen=True):
    """Give up leases: keep at most `keep` of each key.

    Who holds WRITE first commits all that was changed under it. Answered by `ReleaseLeases`, also
    by a session that does not hold them. Whoever does not answer in time is fenced.
    """

    keys: tuple[InodeNumber, ...]
    keep: int
    stamp: int


class ReleaseLeases(Struct, frozen=True):
    """The session holds at most `keep` of each key from now on, asked or not. Answer: `Done`.

    Without keys and files: what it was asked for is on its way. It is storing what it changed, and
    no peer fails it; the router waits as if it were committing.

    Attributes:
        stamp: of the recall, or the largest that the sender has seen of the keys: a lease that was
            granted later, in an answer that is still on its way, stays.
        opened: files that the session has open. Before the keys are given up, each that exists is
            noted as sustained: it is kept when it loses its last name, until `Release` or the end
            of the session. At most as many as keys.

    Errors: FENCED, INVALID.
    """

    session: SessionId
    epoch: int
    keys: tuple[InodeNumber, ...]
    keep: int
    stamp: int
    opened: tuple[InodeNumber, ...] = ()


class Claim(Struct, frozen=True):
    """Tell a router that was started again which leases the session held. Answer: `Done`.

    May come in several parts; the last one has `is_last`. Until all sessions with leases have
    claimed, or the grace period is over, the router grants nothing that they might hold. Errors:
    FENCED, CONFLICT (the grace period is over, or another incarnation), INVALID.
    """

    session: SessionId
    epoch: int
    incarnation: int
    reads: tuple[InodeNumber, ...]
    writes: tuple[InodeNumber, ...]
    is_last: bool


# --- operations: the op log ----------------------------------------------------------------------
#
# Applied in order. `time_ns` is the writer's clock and becomes ctime (and mtime where POSIX says
# so) of what the operation touches. Results carry the attributes of every inode touched. What
# touches an inode of a snapshot fails with READ_ONLY.


class MakeNode(Struct, frozen=True, tag="make"):
    """Create a file, directory, symlink or special file under a new name.

    In the root only directories can be made: a bucket with the default policy. Where the parent has
    a default access control list the node inherits it (see `mictlanfs.acl`), and its mode is `mode`
    with `masked`, less what the list does not grant.

    Errors: EXISTS, NOT_FOUND (parent), NOT_DIRECTORY, NAME_TOO_LONG, INVALID (name, number in
    use), NOT_PERMITTED (not a directory, in the root), STALE (parent was removed).
    Result: the new node, the parent.
    """

    parent: InodeNumber
    name: bytes
    ino: InodeNumber
    kind: FileKind
    mode: int
    uid: int
    gid: int
    time_ns: int
    rdev: int = 0
    target: bytes = b""
    # The permission bits that a umask took off `mode`: a default list takes the umask's place.
    masked: int = 0


class Link(Struct, frozen=True, tag="link"):
    """Give an inode that is not a directory one more name. Result: the inode, the parent.

    Errors: EXISTS, NOT_FOUND, NOT_PERMITTED (a directory; in the root), TOO_MANY_LINKS.
    """

    ino: InodeNumber
    parent: InodeNumber
    name: bytes
    time_ns: int


class Unlink(Struct, frozen=True, tag="unlink"):
    """Remove a name of anything but a directory. Result: the inode it named, the parent.

    With `sustain` an inode that loses its last name is kept for the session until `Release` or the
    session's end, so that open handles go on working. Errors: NOT_FOUND, IS_DIRECTORY.
    """

    parent: InodeNumber
    name: bytes
    time_ns: int
    sustain: bool = False


class RemoveDirectory(Struct, frozen=True, tag="rmdir"):
    """Remove an empty directory, in the root: an empty bucket. Result: the directory, the parent.

    Errors: NOT_FOUND, NOT_DIRECTORY, NOT_EMPTY (also of a bucket that has snapshots).
    """

    parent: InodeNumber
    name: bytes
    time_ns: int
    sustain: bool = False


class RenameMode:
    """What `Rename` does about an existing target: the flags of renameat2(2)."""

    REPLACE: Final = 0
    NO_REPLACE: Final = 1
    EXCHANGE: Final = 2


class Rename(Struct, frozen=True, tag="rename"):
    """Move a name; one transaction, no data moves. Buckets may be renamed within the root only.

    Errors: NOT_FOUND, EXISTS (NO_REPLACE), NOT_EMPTY, IS_DIRECTORY, NOT_DIRECTORY, INVALID (a
    directory into itself), NOT_PERMITTED (a file into the root; a bucket out of it or a directory
    into it). Into another bucket also QUOTA_EXCEEDED, and CROSS_DEVICE for a directory with more
    names in it than can be counted at once.
    Result: the moved inode, old parent, new parent, and the replaced or exchanged inode if any.
    """

    parent: InodeNumber
    name: bytes
    new_parent: InodeNumber
    new_name: bytes
    time_ns: int
    mode: int = RenameMode.REPLACE
    sustain: bool = False


class SetAttributes(Struct, frozen=True, tag="setattr"):
    """Change attributes; None leaves one as it is. Result: the inode.

    A `mode` also changes the entries of the access control list that stand for it. A
    `size` below the present one cuts extents, above it makes a hole. Errors: NOT_FOUND,
    IS_DIRECTORY and INVALID (size of what is not a file), TOO_LARGE.
    """

    ino: InodeNumber
    time_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class SetXattr(Struct, frozen=True, tag="setxattr"):
    """Set an extended attribute; `flags` are those of setxattr(2). Result: the inode.

    An access control list must be one (see `mictlanfs.acl`). That for access sets the permission
    bits of the mode, and is not kept when it says no more than they do; with `clear_set_gid` it
    takes the set-group-id bit away, as chmod(2) does for those who are not in the file's group.

    Errors: EXISTS (XATTR_CREATE), NO_DATA (XATTR_REPLACE), RANGE (name), TOO_LARGE (value),
    NO_SPACE (the names together over the limit). Of an access control list also INVALID,
    UNSUPPORTED (another version; of a symlink), ACCESS_DENIED (a default one of no directory).
    """

    ino: InodeNumber
    name: bytes
    value: bytes
    time_ns: int
    flags: int = 0
    clear_set_gid: bool = False


class RemoveXattr(Struct, frozen=True, tag="removexattr"):
    """Remove an extended attribute. Result: the inode.

    Errors: NO_DATA, but not for an access control list: one that is not there can be removed.
    """

    ino: InodeNumber
    name: bytes
    time_ns: int


class WriteExtents(Struct, frozen=True, tag="write"):
    """Make stored chunks the content of ranges of a file. Result: the inode.

    The new extents replace what they cover; `size` is the least size afterwards (the file grows to
    it, never shrinks). `chunks` describes every chunk named that is new to the router; each must
    be durable on its peers before. One without peers is *inline*: its bytes travel in `inline`,
    which has one body for each such chunk, in their order; an empty one when the router has it.
    With `if_content_version` of at least 0 it has no effect unless the file is of that version.
    With `is_same_content` the bytes are what they were, in other chunks: a record stays true.
    Errors: NOT_FOUND, INVALID (not a file, an extent outside its chunk, a chunk that is unknown or
    too large to be inline, bytes that are missing or not those of the digest), CONFLICT (another
    version), QUOTA_EXCEEDED (the bucket would grow beyond its quota).
    """

    ino: InodeNumber
    extents: tuple[Extent, ...]
    chunks: tuple[Chunk, ...]
    size: int
    time_ns: int
    inline: tuple[bytes, ...] = ()
    if_content_version: int = -1
    is_same_content: bool = False


class Release(Struct, frozen=True, tag="release"):
    """Let go of an inode sustained for this session, named or not. Result: nothing. Never fails."""

    ino: InodeNumber


class SetBucketPolicy(Struct, frozen=True, tag="policy"):
    """Change how new data of a bucket is kept. Result: the bucket. Errors: NOT_FOUND, INVALID."""

    ino: InodeNumber
    policy: BucketPolicy
    time_ns: int


Operation = (
    MakeNode
    | Link
    | Unlink
    | RemoveDirectory
    | Rename
    | SetAttributes
    | SetXattr
    | RemoveXattr
    | WriteExtents
    | Release
    | SetBucketPolicy
    | SetRecord
    | PutPart
    | Restore
)


class Commit(Struct, frozen=True):
    """Apply a batch of operations in one transaction.

    Attributes:
        first_number: number of `ops[0]` in the session's log; numbers have no gaps and start at 1.
        ops: 0 to 4096. An empty batch with `sync` is a barrier: it takes no number, and its answer
            says that everything applied before is durable.
        sync: whether the answer may only come once the batch, and all before it, is durable on the
            router's disk.
        stop_on_error: an operation that fails ends the batch (those before it stay applied, those
            behind it take no number); otherwise it has no effect and the next is applied.
        is_covered: the session holds WRITE leases on all that the operations touch, so that no
            lease of anybody is in the way. Without it the router recalls what is.

    A batch that was applied before (the answer was lost) is answered again from the record of its
    results; only the last batch of a session can be repeated. Errors: FENCED (session unknown or
    epoch old), CONFLICT (a gap in the numbers), INVALID (too many operations).
    """

    session: SessionId
    epoch: int
    first_number: int
    ops: tuple[Operation, ...]
    sync: bool
    stop_on_error: bool = False
    is_covered: bool = False


class OpResult(Struct, frozen=True):
    """What became of one operation: the attributes of all inodes it touched, or the error."""

    touched: tuple[Attributes, ...] = ()
    error: WireError | None = None


class CommitAnswer(Struct, frozen=True):
    """One result per operation applied; shorter than the batch only with `stop_on_error`."""

    results: tuple[OpResult, ...]


# --- reads ---------------------------------------------------------------------------------------


class Lookup(Struct, frozen=True):
    """Resolve one name. Errors: NOT_FOUND, NOT_DIRECTORY. Answer: `Node`.

    Attributes:
        extents_max: how many extents to send along, 0 to 256.
        inline_max: how many bytes of inline chunks to send along with them.
    """

    parent: InodeNumber
    name: bytes
    extents_max: int = 0
    inline_max: int = 0


class GetNode(Struct, frozen=True):
    """Read one inode. Errors: NOT_FOUND. Answer: `Node`."""

    ino: InodeNumber
    extents_max: int = 0
    inline_max: int = 0


class GetExtents(Struct, frozen=True):
    """Read extents that end behind `offset`, in order. Errors: NOT_FOUND. Answer: `ExtentPage`.

    At most `EXTENTS_LONG_PAGE_MAX`, whatever `extents_max` says; fewer are no error.
    """

    ino: InodeNumber
    offset: int
    extents_max: int = EXTENTS_PAGE_MAX
    inline_max: int = 0


class ExtentPage(Struct, frozen=True):
    """Some extents of a file.

    Attributes:
        end: the page describes the file from the offset asked up to here; None: up to its end.
        content_version: of the file when the page was read.
        inline: bytes of inline chunks, as in `Node`.
    """

    extents: tuple[Extent, ...]
    chunks: tuple[Chunk, ...]
    end: int | None
    content_version: int
    inline: tuple[bytes, ...] = ()


class GetInline(Struct, frozen=True):
    """Read the bytes of at most 256 inline chunks. Errors: INVALID. Answer: `InlineBodies`."""

    ids: tuple[ChunkId, ...]


class InlineBodies(Struct, frozen=True):
    """Bytes of inline chunks in the order asked for; empty for one that is not, or not any more."""

    bodies: tuple[bytes, ...]


class GetXattrs(Struct, frozen=True):
    """Read all extended attributes. Errors: NOT_FOUND. Answer: `Xattrs`."""

    ino: InodeNumber


class Xattrs(Struct, frozen=True):
    """Names and values."""

    values: dict[bytes, bytes]


class GetPath(Struct, frozen=True):
    """Ask where an inode lies. Answer: `InodePath`.

    Errors: NOT_FOUND (also of an inode without a name), NAME_TOO_LONG (it lies too deep).
    """

    ino: InodeNumber


class InodePath(Struct, frozen=True):
    """The names from the root down to an inode: the first is its bucket. Empty for the root.

    Of a file with several names it is one of those in the bucket whose policy the file has.
    """

    names: tuple[bytes, ...]


class Resolve(Struct, frozen=True):
    """Walk `names` from the root without following symlinks, as far as they exist."""

    names: tuple[bytes, ...]
    extents_max: int = 0
    inline_max: int = 0


class Resolved(Struct, frozen=True):
    """The root, then one node per name that exists; fewer than asked when one is missing."""

    nodes: tuple[Node, ...]


class StatFs(Struct, frozen=True):
    """Space and inode counts, as statvfs(3) wants them, in bytes. `free` is for new replicas."""

    capacity: int
    free: int
    inode_count: int
    chunk_count: int


class BucketInfo(Struct, frozen=True):
    """A bucket: the directory of that name in the root, its policy, the bytes it uses."""

    name: bytes
    attributes: Attributes
    policy: BucketPolicy
    used: int = 0


class Buckets(Struct, frozen=True):
    """All buckets, in order of names."""

    buckets: tuple[BucketInfo, ...]


class GetBucketUse(Struct, frozen=True):
    """Ask what the bucket an inode is or lies in uses. Errors: NOT_FOUND. Answer: `BucketUse`."""

    ino: InodeNumber


class BucketUse(Struct, frozen=True):
    """What a bucket uses, exactly, of what it may use.

    Attributes:
        bucket: 0 when the inode lies in none: the root, or what was removed with its bucket.
        quota: bytes, 0: no limit.
        used: bytes of content that its files have together.
    """

    bucket: InodeNumber = InodeNumber(0)
    quota: int = 0
    used: int = 0
