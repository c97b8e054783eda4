"""What a router answers to each message: one method a request, free of the web framework.

Owns no state; joins the metadata store (names, inodes, chunks), the session table (who is alive)
and membership (peers). A request of a session counts as a sign of life.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import REPLICAS_DEFAULT, PeerMap, PeerState, Struct
from mictlanfs_server.router.membership import check_protocol
from mictlanfs_server.router.reading import Read, Reading
from mictlanfs_server.router.routes import MessageRoute
from mictlanfs_server.router.snapshots import Snapshotter

if TYPE_CHECKING:
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.gate import LeaseGate
    from mictlanfs_server.router.membership import Membership
    from mictlanfs_server.router.peermap import PublicPeerMap
    from mictlanfs_server.router.sessions import SessionTable
    from mictlanfs_server.router.settings import RouterSettings
    from mictlanfs_server.router.upkeep.desk import UpkeepDesk

log = logging.getLogger(__name__)

TEXT_LENGTH_MAX = 1024
PID_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ReadRoute:
    """As `MessageRoute`, of a read, which also gets the value of `wire.HEADER_SESSION`."""

    path: str
    request_type: type[Struct]
    handler: Read
    purpose: str


class RouterHandlers:
    """The verbs of the router protocol.

    Args:
        more: messages that others answer.
    """

    def __init__(
        self,
        settings: RouterSettings,
        store: MetadataStore,
        sessions: SessionTable,
        membership: Membership,
        peer_map: PublicPeerMap,
        gate: LeaseGate,
        upkeep: UpkeepDesk,
        more: Sequence[MessageRoute] = (),
    ) -> None:
        self._upkeep = upkeep
        self._more = more
        self._gate = gate
        self._settings = settings
        self._store = store
        self._sessions = sessions
        self._membership = membership
        self._peer_map = peer_map
        self._reading = Reading(store, sessions, gate)
        self._snapshots = Snapshotter(store, gate, self._resolve)

    def routes(self) -> list[MessageRoute]:
        """All messages a router answers."""
        path, snapshots = wire.Path, self._snapshots
        return [
            MessageRoute(path.COMMIT, wire.Commit, self.commit, "apply a batch of operations"),
            MessageRoute(path.LEASE_ACQUIRE, wire.Acquire, self.acquire, "get leases for writing"),
            MessageRoute(path.LEASE_RELEASE, wire.ReleaseLeases, self.release, "give up leases"),
            MessageRoute(path.INLINE, wire.GetInline, self._store.inline, "read inline chunks"),
            MessageRoute(
                path.SESSION_EVENTS, wire.AwaitEvents, self.await_events, "hear of recalls"
            ),
            MessageRoute(path.LEASE_CLAIM, wire.Claim, self.claim, "claim leases after a restart"),
            MessageRoute(
                path.SESSION_HEARTBEAT, wire.SessionRef, self.heartbeat, "keep a session alive"
            ),
            MessageRoute(path.SESSION_OPEN, wire.OpenSession, self.open_session, "begin a session"),
            MessageRoute(path.SESSION_CLOSE, wire.SessionRef, self.close_session, "end a session"),
            MessageRoute(
                path.SESSION_INODES, wire.TakeInodes, self.take_inodes, "take inode numbers"
            ),
            MessageRoute(path.STATFS, wire.Done, self.statfs, "read space and counts"),
            MessageRoute(path.BUCKETS, wire.Done, self.buckets, "list all buckets"),
            MessageRoute(
                path.BUCKET_USE,
                wire.GetBucketUse,
                self._store.bucket_use,
                "read what a bucket uses",
            ),
            MessageRoute(path.PEER_MAP, wire.Done, self.read_peer_map, "read the peer map"),
            MessageRoute(
                path.PEER_ANNOUNCE, wire.PeerAnnounce, self.announce, "register, or stay, a peer"
            ),
            MessageRoute(path.PEER_LEAVE, wire.PeerLeave, self.leave, "a peer stops in order"),
            MessageRoute(path.PEER_LEAVE_COST, wire.GetLeaveCost, self.leave_cost, "weigh a leave"),
            *self._upkeep.routes(),
            MessageRoute(path.TRASH_LIST, wire.ListTrash, self.list_trash, "list the trash"),
            MessageRoute(path.TRASH_EMPTY, wire.EmptyTrash, self.empty_trash, "give up trash"),
            MessageRoute(
                path.SNAPSHOT_CREATE, wire.CreateSnapshot, snapshots.create, "take a snapshot"
            ),
            MessageRoute(
                path.SNAPSHOT_REMOVE, wire.RemoveSnapshot, snapshots.remove, "remove a snapshot"
            ),
            MessageRoute(path.SNAPSHOT_LIST, wire.ListSnapshots, snapshots.list, "list snapshots"),
            *self._more,
        ]

    def reads(self) -> list[ReadRoute]:
        """All reads that leases may come with, the most frequent first."""
        path, reading = wire.Path, self._reading
        return [
            ReadRoute(path.LOOKUP, wire.Lookup, reading.lookup(), "resolve one name"),
            ReadRoute(path.NODE, wire.GetNode, reading.node(), "read one inode"),
            ReadRoute(path.EXTENTS, wire.GetExtents, reading.extents(), "read a page of extents"),
            ReadRoute(
                path.LIST,
                wire.ListDirectory,
                reading.list_directory(),
                "read a page of a directory",
            ),
            ReadRoute(
                path.LIST_TREE,
                wire.ListTree,
                reading.list_tree(),
                "read directories and what is below them",
            ),
            ReadRoute(path.RESOLVE, wire.Resolve, reading.resolve(), "walk a path from the root"),
            ReadRoute(path.PATH, wire.GetPath, reading.path(), "find the path of an inode"),
            ReadRoute(path.XATTRS, wire.GetXattrs, reading.xattrs(), "read extended attributes"),
            ReadRoute(path.RECORDS, wire.GetRecords, reading.records(), "read records of files"),
        ]

    # --- sessions --------------------------------------------------------------------------------

    async def open_session(self, request: wire.OpenSession) -> wire.SessionGrant:
        """Begin a session. Raises PROTOCOL for a client of another version, INVALID."""
        check_protocol(request.protocol, "open session", request.label[:TEXT_LENGTH_MAX])
        if max(len(request.host), len(request.label)) > TEXT_LENGTH_MAX:
            detail = f"host and label have at most {TEXT_LENGTH_MAX} characters"
            raise MictlanError(Kind.INVALID, "open session", detail=detail)
        if not 0 <= request.pid <= PID_MAX:
            raise MictlanError(Kind.INVALID, "open session", detail="this is no process number")
        record = await self._store.open_session(request)
        self._sessions.add(record)
        if request.leases:
            self._gate.table.add(record.session)
        inodes = await self._store.take_inodes(wire.INODE_BATCH_COUNT)
        log.info("session %s opened by %s on %s", record.session, record.label, record.host)
        return wire.SessionGrant(
            session=record.session,
            epoch=record.epoch,
            space_id=self._store.space_id,
            ttl_s=self._settings.session_ttl_s,
            heartbeat_s=self._settings.heartbeat_s,
            inodes=inodes,
            root=await self._store.root(),
            peer_map=self._peer_map.peer_map,
            lease_ttl_s=self._settings.lease_ttl_s if request.leases else 0.0,
            incarnation=self._gate.table.incarnation,
        )

    async def heartbeat(self, request: wire.SessionRef) -> wire.Done:
        """Keep a session alive. Raises FENCED."""
        self._sessions.touch(request.session, request.epoch)
        return wire.Done()

    async def close_session(self, request: wire.SessionRef) -> wire.Done:
        """End a session; one that has ended is no error."""
        try:
            self._sessions.touch(request.session, request.epoch)
        except MictlanError:
            return wire.Done()
        await self._gate.close(request.session)
        log.info("session %s closed", request.session)
        return wire.Done()

    async def take_inodes(self, request: wire.TakeInodes) -> wire.InodeRange:
        """Hand out inode numbers. Raises FENCED, INVALID."""
        self._sessions.touch(request.session, request.epoch)
        return await self._store.take_inodes(request.count)

    async def commit(self, request: wire.Commit) -> bytes:
        """Apply a batch. Raises FENCED, CONFLICT, INVALID."""
        self._sessions.touch(request.session, request.epoch)
        return await self._gate.commit(request)

    # --- leases ----------------------------------------------------------------------------------

    async def acquire(self, request: wire.Acquire) -> wire.Acquired:
        """Grant leases for writing. Raises FENCED, NOT_FOUND, NOT_DIRECTORY, INVALID."""
        self._sessions.touch(request.session, request.epoch)
        return await self._gate.acquire(request)

    async def release(self, request: wire.ReleaseLeases) -> wire.Done:
        """A session gives up leases. Raises FENCED, INVALID."""
        self._sessions.touch(request.session, request.epoch)
        await self._gate.release(request)
        return wire.Done()

    async def await_events(self, request: wire.AwaitEvents) -> wire.Events:
        """Tell of recalls. Raises FENCED, INVALID."""
        self._sessions.touch(request.session, request.epoch)
        return await self._gate.await_events(request)

    async def claim(self, request: wire.Claim) -> wire.Done:
        """A session tells what it held before a restart. Raises FENCED, CONFLICT, INVALID."""
        self._sessions.touch(request.session, request.epoch)
        self._gate.claim(request)
        return wire.Done()

    async def _resolve(self, request: wire.Resolve) -> wire.Resolved:
        found = await self._reading.resolve()(request, None)
        assert isinstance(found, wire.Resolved)
        return found

    # --- the space -------------------------------------------------------------------------------

    async def statfs(self, _: wire.Done) -> wire.StatFs:
        """Space and counts. Sizes are what fits with the default number of copies."""
        peers = [p for p in self._membership.peer_map().peers if p.state is not PeerState.DOWN]
        copies = max(1, min(REPLICAS_DEFAULT, len(peers)))
        counts = await self._store.counts()
        return wire.StatFs(
            capacity=sum(peer.capacity for peer in peers) // copies,
            free=sum(max(0, p.capacity - p.used) for p in peers if not (p.is_full or p.is_draining))
            // copies,
            inode_count=counts.inodes,
            chunk_count=counts.chunks,
        )

    async def buckets(self, _: wire.Done) -> wire.Buckets:
        """All buckets."""
        return await self._store.buckets()

    async def list_trash(self, request: wire.ListTrash) -> wire.TrashPage:
        """A page of the trash."""
        return await self._store.trash(request)

    async def empty_trash(self, request: wire.EmptyTrash) -> wire.Emptied:
        """Give up some of the trash."""
        return await self._store.empty_trash(request)

    # --- peers -----------------------------------------------------------------------------------

    async def read_peer_map(self, _: wire.Done) -> PeerMap:
        """The present peer map."""
        return self._peer_map.peer_map

    async def announce(self, request: wire.PeerAnnounce) -> wire.PeerWelcome:
        """A peer registers or sends a heartbeat. Raises PROTOCOL, INVALID, CONFLICT, NO_SPACE."""
        number = self._membership.announce(request)
        # Its number must be known for good before a writer can name it.
        await self._peer_map.publish()
        return wire.PeerWelcome(number, self._store.space_id, self._settings.peer_heartbeat_s)

    async def leave(self, request: wire.PeerLeave) -> wire.Done:
        """A peer stops in order."""
        self._membership.leave(request)
        await self._peer_map.publish()
        return wire.Done()

    async def leave_cost(self, request: wire.GetLeaveCost) -> wire.LeaveCost:
        """What the space would be short of without a peer. Raises NOT_FOUND."""
        peers = self._membership.peer_map().peers
        if all(peer.id != request.id for peer in peers):
            raise MictlanError(Kind.NOT_FOUND, "weigh leave", request.id[:TEXT_LENGTH_MAX])
        live = [peer for peer in peers if peer.state is not PeerState.DOWN]
        rest = [peer.number for peer in live if peer.id != request.id]
        now = await self._store.replica_counts([peer.number for peer in live])
        then = await self._store.replica_counts(rest)
        # Chunks may come and go between the two counts.
        lost, short = then.lost - now.lost, then.under_replicated - now.under_replicated
        return wire.LeaveCost(max(0, lost), max(0, short))
