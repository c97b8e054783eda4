"""Control requests to the routers of a space, one method for each.

Owns the choice of router: requests go to one until it fails, then to the next. Holds no state of
the space. Every method raises the `MictlanError` that the router answered, or UNAVAILABLE or
TIMED_OUT once the retry policy is exhausted. A cancelled request may or may not have been served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from mictlanfs import wire
from mictlanfs.client.retry import NO_RETRY, RetryPolicy, retrying
from mictlanfs.client.transport import HttpTransport, Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Chunk, ChunkId, InodeNumber, Node, PeerMap, Struct
from mictlanfs.uri import ServerAddress
from mictlanfs.wirecopies import (
    ClonePeer,
    Drain,
    DrainPeer,
    Locate,
    Located,
    Removed,
    RemovePeer,
    StartUpkeep,
    UpkeepStarted,
)
from mictlanfs.wireverify import CheckSpace, CheckState, ReportCopy

T = TypeVar("T")

REQUEST_TIMEOUT_S = 15.0
# What may have to wait until a session that does not give up its leases is fenced.
LEASED_TIMEOUT_S = 40.0
# What also copies, with others held up meanwhile.
SNAPSHOT_TIMEOUT_S = 180.0
# On top of the time after which the router answers that nothing happened.
EVENTS_MARGIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Leased(Generic[T]):
    """The answer to a read that asked for leases, also when it is an error.

    Attributes:
        grants: leases that came along.
    """

    answer: T | MictlanError
    grants: wire.Grants


class Lessee(Protocol):
    """Who wants leases with the answers to reads."""

    @property
    def ref(self) -> wire.SessionRef:
        """The session that they are for."""
        ...

    def on_grants(self, grants: wire.Grants) -> None:
        """Leases came along. Called before the answer is given to whoever asked."""
        ...

    async def replace(self, fenced: wire.SessionRef) -> None:
        """The session was fenced: open another one."""
        ...


class RouterClient:
    """The verbs of the router protocol; see the request structures in `mictlanfs.wire`.

    Attributes:
        lessee: who gets leases with every read; None: nobody.
    """

    def __init__(
        self,
        routers: Sequence[ServerAddress],
        transport: HttpTransport,
        retry: RetryPolicy,
        *,
        on_peer_map_version: Callable[[int], None] | None = None,
    ) -> None:
        if not routers:
            raise ValueError("a space has at least one router")
        self._routers = tuple(routers)
        self._current_index = 0
        self._transport = transport
        self._retry = retry
        self._on_peer_map_version = on_peer_map_version
        self.request_count = 0
        self.lessee: Lessee | None = None

    @property
    def addresses(self) -> tuple[ServerAddress, ...]:
        """The routers of the space, in the order of its URI."""
        return self._routers

    async def open_session(self, request: wire.OpenSession) -> wire.SessionGrant:
        """Begin a session."""
        return await self._ask(wire.Path.SESSION_OPEN, request, wire.SessionGrant)

    async def heartbeat(self, session: wire.SessionRef) -> None:
        """Keep a session alive. Raises FENCED when it is gone."""
        await self._ask(wire.Path.SESSION_HEARTBEAT, session, wire.Done)

    async def close_session(self, session: wire.SessionRef) -> None:
        """End a session; what it sustained is let go. An unknown session is no error."""
        await self._ask(wire.Path.SESSION_CLOSE, session, wire.Done)

    async def take_inodes(self, request: wire.TakeInodes) -> wire.InodeRange:
        """Get a batch of inode numbers."""
        return await self._ask(wire.Path.SESSION_INODES, request, wire.InodeRange)

    async def commit(self, batch: wire.Commit, retry: RetryPolicy) -> wire.CommitAnswer:
        """Apply a batch of operations."""
        return await self._ask(wire.Path.COMMIT, batch, wire.CommitAnswer, retry)

    async def events(self, request: wire.AwaitEvents, wait_s: float) -> wire.Events:
        """What happened to the leases of a session. Waits; never tried again here."""
        body = wire.encode(request)
        timeout_s = wait_s + EVENTS_MARGIN_S
        response = await self._send(
            "POST", wire.Path.SESSION_EVENTS, body, NO_RETRY, timeout_s=timeout_s
        )
        return wire.decode(response.body, wire.Events)

    async def acquire(self, request: wire.Acquire) -> wire.Acquired:
        """Get leases for writing; waits for those who hold them."""
        response = await self._send(
            "POST",
            wire.Path.LEASE_ACQUIRE,
            wire.encode(request),
            self._retry,
            timeout_s=LEASED_TIMEOUT_S,
        )
        return wire.decode(response.body, wire.Acquired)

    async def release(self, request: wire.ReleaseLeases) -> None:
        """Give up leases."""
        await self._ask(wire.Path.LEASE_RELEASE, request, wire.Done)

    async def claim(self, request: wire.Claim) -> None:
        """Tell a router that was started again which leases the session held."""
        await self._ask(wire.Path.LEASE_CLAIM, request, wire.Done)

    async def leased(self, path: str, request: Struct, answer: type[T]) -> Leased[T]:
        """Any of the reads below, with the leases for `lessee` that come along.

        An error of the read itself is in what is returned; others are raised.
        """
        assert self.lessee is not None, "nobody wants leases"
        body = wire.encode(request)
        for is_last in (False, True):
            ref = self.lessee.ref
            headers = {wire.HEADER_SESSION: f"{ref.session}:{ref.epoch}"}
            try:
                response = await self._send(
                    "POST", path, body, self._retry, headers=headers, timeout_s=LEASED_TIMEOUT_S
                )
                grants, rest = wire.unframe(response.body, wire.Grants)
                if response.status == 200:
                    break
                failure = wire.decode_error(response.status, rest)
                if is_last or failure.kind is not Kind.FENCED:
                    break
            except MictlanError as error:
                if is_last or error.kind is not Kind.FENCED:
                    raise
            await self.lessee.replace(ref)
        if ref == self.lessee.ref:
            self.lessee.on_grants(grants)
        if response.status != 200:
            return Leased(wire.decode_error(response.status, rest), grants)
        return Leased(wire.decode(rest, answer), grants)

    async def _read(self, path: str, request: Struct, answer: type[T]) -> T:
        if self.lessee is None:
            return await self._ask(path, request, answer)
        leased = await self.leased(path, request, answer)
        if isinstance(leased.answer, MictlanError):
            raise leased.answer
        return leased.answer

    async def lookup(self, request: wire.Lookup) -> Node:
        """Resolve one name."""
        return await self._read(wire.Path.LOOKUP, request, Node)

    async def node(self, request: wire.GetNode) -> Node:
        """Read one inode."""
        return await self._read(wire.Path.NODE, request, Node)

    async def extents(self, request: wire.GetExtents) -> wire.ExtentPage:
        """Read a page of extents."""
        return await self._read(wire.Path.EXTENTS, request, wire.ExtentPage)

    async def inline(self, ids: Sequence[ChunkId]) -> tuple[bytes, ...]:
        """The bytes of inline chunks; empty for those that are not, or not any more."""
        request = wire.GetInline(tuple(ids))
        answer = await self._ask(wire.Path.INLINE, request, wire.InlineBodies)
        if len(answer.bodies) != len(request.ids):
            raise MictlanError(Kind.PROTOCOL, "decode", "InlineBodies", "their number is wrong")
        return answer.bodies

    async def locate(self, ids: Sequence[ChunkId]) -> tuple[Chunk | None, ...]:
        """Where chunks are now; None for those that are dead or unknown."""
        answer = await self._ask(wire.Path.LOCATE, Locate(tuple(ids)), Located, NO_RETRY)
        if len(answer.chunks) != len(ids):
            raise MictlanError(Kind.PROTOCOL, "decode", "Located", "their number is wrong")
        return answer.chunks

    async def list(self, request: wire.ListDirectory) -> wire.ListPage:
        """Read a page of a directory."""
        return await self._read(wire.Path.LIST, request, wire.ListPage)

    async def xattrs(self, ino: InodeNumber) -> dict[bytes, bytes]:
        """Read all extended attributes of an inode."""
        answer = await self._read(wire.Path.XATTRS, wire.GetXattrs(ino), wire.Xattrs)
        return answer.values

    async def records(self, inodes: Sequence[InodeNumber]) -> tuple[wire.FileRecord, ...]:
        """The records of files in the order asked for, each of its file's present content.

        Read in several steps when they are many: a file that is changed meanwhile, not to be
        noticed by this, has the one or the other.
        """
        found: list[wire.FileRecord] = []
        while len(found) < len(inodes):
            wanted = tuple(inodes[len(found) : len(found) + wire.RECORDS_COUNT_MAX])
            answer = await self._read(wire.Path.RECORDS, wire.GetRecords(wanted), wire.Records)
            if not 0 < len(answer.records) <= len(wanted):
                raise MictlanError(Kind.PROTOCOL, "decode", "Records", "their number is wrong")
            found += answer.records
        return tuple(found)

    async def path(self, ino: InodeNumber) -> tuple[bytes, ...]:
        """The names from the root down to an inode."""
        answer = await self._read(wire.Path.PATH, wire.GetPath(ino), wire.InodePath)
        return answer.names

    async def resolve(self, request: wire.Resolve) -> tuple[Node, ...]:
        """Walk names from the root as far as they exist."""
        return (await self._read(wire.Path.RESOLVE, request, wire.Resolved)).nodes

    async def statfs(self) -> wire.StatFs:
        """Space and counts."""
        return await self._ask(wire.Path.STATFS, wire.Done(), wire.StatFs)

    async def buckets(self) -> tuple[wire.BucketInfo, ...]:
        """All buckets."""
        return (await self._ask(wire.Path.BUCKETS, wire.Done(), wire.Buckets)).buckets

    async def bucket_use(self, ino: InodeNumber) -> wire.BucketUse:
        """What the bucket that an inode is or lies in uses, and its quota."""
        return await self._ask(wire.Path.BUCKET_USE, wire.GetBucketUse(ino), wire.BucketUse)

    async def list_trash(self, request: wire.ListTrash) -> wire.TrashPage:
        """Read a page of the trash."""
        return await self._ask(wire.Path.TRASH_LIST, request, wire.TrashPage)

    async def empty_trash(self, request: wire.EmptyTrash) -> wire.Emptied:
        """Give up some of the trash."""
        return await self._ask(wire.Path.TRASH_EMPTY, request, wire.Emptied)

    async def create_snapshot(self, request: wire.CreateSnapshot) -> wire.SnapshotInfo:
        """Take a snapshot; waits for mounts, and for the copy. Never tried again here."""
        return await self._work(wire.Path.SNAPSHOT_CREATE, request, wire.SnapshotInfo)

    async def remove_snapshot(self, request: wire.RemoveSnapshot) -> None:
        """Remove a snapshot; waits for mounts. Never tried again here."""
        await self._work(wire.Path.SNAPSHOT_REMOVE, request, wire.Done)

    async def snapshots(self, request: wire.ListSnapshots) -> tuple[wire.SnapshotInfo, ...]:
        """The snapshots of a bucket, or of all."""
        return (await self._ask(wire.Path.SNAPSHOT_LIST, request, wire.Snapshots)).snapshots

    async def peer_map(self) -> PeerMap:
        """The present peer map."""
        return await self._ask(wire.Path.PEER_MAP, wire.Done(), PeerMap)

    async def leave_cost(self, peer_id: str) -> wire.LeaveCost:
        """What the space would be short of without a peer. Raises NOT_FOUND."""
        request = wire.GetLeaveCost(peer_id)
        return await self._ask(wire.Path.PEER_LEAVE_COST, request, wire.LeaveCost)

    async def start_upkeep(self, *, rebalance: bool = False, cancel: bool = False) -> int:
        """Look for chunks short of copies now; begin to rebalance, or end all ordered moves.

        Returns the number of the look at all chunks that comes next.
        """
        request = StartUpkeep(rebalance, cancel)
        return (await self._ask(wire.Path.UPKEEP, request, UpkeepStarted)).look

    async def drain_peer(
        self, peer_id: str, *, is_draining: bool = True, force: bool = False
    ) -> Drain:
        """Empty a peer, or use it again. Raises NOT_FOUND, CONFLICT (too few others)."""
        return await self._ask(wire.Path.PEER_DRAIN, DrainPeer(peer_id, is_draining, force), Drain)

    async def remove_peer(
        self, peer_id: str, *, force_lost: bool = False, force: bool = False
    ) -> Removed:
        """Remove a peer for ever.

        Raises NOT_FOUND, BUSY (it is in use), CONFLICT (only copies, too few others).
        """
        request = RemovePeer(peer_id, force_lost, force)
        return await self._ask(wire.Path.PEER_REMOVE, request, Removed)

    async def clone_peer(self, source: str, target: str) -> None:
        """Copy all chunks of a peer onto another, in the background. Raises NOT_FOUND, INVALID."""
        await self._ask(wire.Path.PEER_CLONE, ClonePeer(source, target), wire.Done)

    async def report(self, request: ReportCopy) -> None:
        """Complain of a copy of a chunk. Not tried again."""
        await self._ask(wire.Path.REPORT, request, wire.Done, NO_RETRY)

    async def check(self, request: CheckSpace) -> CheckState:
        """Begin a check of the space, or ask how it stands."""
        return await self._ask(wire.Path.CHECK, request, CheckState)

    async def status(self) -> wire.SpaceStatus:
        """The state of the space."""
        response = await self._send("GET", wire.Path.STATUS, None, self._retry)
        try:
            return msgspec.json.decode(response.body, type=wire.SpaceStatus)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MictlanError(Kind.PROTOCOL, "decode", "status", str(error)) from error

    async def _work(self, path: str, message: Struct, answer: type[T]) -> T:
        """Ask for what takes long, and would be refused when it is asked for again."""
        body = wire.encode(message)
        response = await self._send("POST", path, body, NO_RETRY, timeout_s=SNAPSHOT_TIMEOUT_S)
        return wire.decode(response.body, answer)

    async def _ask(
        self, path: str, message: Struct, answer: type[T], retry: RetryPolicy | None = None
    ) -> T:
        body = wire.encode(message)
        response = await self._send("POST", path, body, retry or self._retry)
        return wire.decode(response.body, answer)

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        retry: RetryPolicy,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Response:
        """One exchange; an error that brings leases is returned, every other one is raised."""
        sent_headers = {"content-type": wire.MSGPACK, **(headers or {})}

        async def attempt() -> Response:
            router = self._routers[self._current_index]
            self.request_count += 1
            try:
                response = await self._transport.request(
                    method,
                    router.base_url + path,
                    body=body,
                    headers=sent_headers if body is not None else None,
                    timeout_s=timeout_s,
                )
                if response.status != 200 and wire.HEADER_GRANTS not in response.headers:
                    raise wire.decode_error(response.status, response.body)
            except MictlanError as error:
                if error.is_retryable:
                    self._current_index = (self._current_index + 1) % len(self._routers)
                raise
            return response

        response = await retrying(retry, attempt)
        version = response.headers.get(wire.HEADER_PEER_MAP)
        if version is not None and version.isdecimal() and self._on_peer_map_version is not None:
            self._on_peer_map_version(int(version))
        return response
