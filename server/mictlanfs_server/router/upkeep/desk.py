"""What people and clients ask of the upkeep: where chunks are, to empty, remove or clone a peer.

Owns no state. Nothing here waits for copies to be made: that goes on in the background, and status
tells how far it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import BucketPolicy, PeerInfo, PeerState
from mictlanfs.wirecopies import (
    LOCATE_COUNT_MAX,
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
from mictlanfs_server.router.routes import MessageRoute
from mictlanfs_server.router.upkeep.orders import REBALANCE, clone_name

if TYPE_CHECKING:
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.membership import Membership
    from mictlanfs_server.router.peermap import PublicPeerMap
    from mictlanfs_server.router.upkeep.healer import Healer

log = logging.getLogger(__name__)


class UpkeepDesk:
    """Answers messages."""

    def __init__(
        self,
        store: MetadataStore,
        membership: Membership,
        peer_map: PublicPeerMap,
        healer: Healer,
    ) -> None:
        self._store = store
        self._membership = membership
        self._peer_map = peer_map
        self._healer = healer

    def routes(self) -> list[MessageRoute]:
        """All messages that are answered here."""
        path = wire.Path
        return [
            MessageRoute(path.LOCATE, Locate, self.locate, "find out where chunks are now"),
            MessageRoute(path.UPKEEP, StartUpkeep, self.start, "look for work, or rebalance"),
            MessageRoute(path.PEER_DRAIN, DrainPeer, self.drain, "empty a peer"),
            MessageRoute(path.PEER_REMOVE, RemovePeer, self.remove, "remove a peer for ever"),
            MessageRoute(path.PEER_CLONE, ClonePeer, self.clone, "copy a peer onto another"),
        ]

    async def locate(self, request: Locate) -> Located:
        """Where chunks are now. Raises INVALID."""
        if len(request.ids) > LOCATE_COUNT_MAX:
            detail = f"{len(request.ids)} chunks are more than {LOCATE_COUNT_MAX}"
            raise MictlanError(Kind.INVALID, "locate", detail=detail)
        found = await self._store.locate(request.ids)
        return Located(tuple([found.get(chunk_id) for chunk_id in request.ids]))

    async def start(self, request: StartUpkeep) -> UpkeepStarted:
        """Look for chunks that are short now; begin to rebalance, or end all moves."""
        if request.cancel:
            await self._healer.orders.cancel()
        elif request.rebalance:
            await self._healer.orders.order(REBALANCE)
        return UpkeepStarted(self._healer.wake())

    async def drain(self, request: DrainPeer) -> Drain:
        """Empty a peer, or use it again. Raises NOT_FOUND, CONFLICT (too few others)."""
        peer = self._membership.find(request.id, "drain")
        others = self._others(peer)
        if request.is_draining and not others:
            detail = "no other peer could take its chunks: add one first"
            raise MictlanError(Kind.CONFLICT, "drain", request.id, detail)
        if request.is_draining and not request.force:
            await self._refuse_too_few("drain", request.id, len(others))
        self._membership.set_draining(request.id, is_draining=request.is_draining)
        await self._peer_map.publish()
        count = await self._store.peer_chunk_count(peer.number)
        if request.is_draining:
            self._healer.tally.draining[peer.id] = count
        self._healer.wake()
        return Drain(count, len(others))

    async def remove(self, request: RemovePeer) -> Removed:
        """Remove a peer for ever.

        Raises NOT_FOUND, BUSY (it is in use), CONFLICT (only copies, too few others).
        """
        peer = self._membership.find(request.id, "remove")
        if peer.state is not PeerState.DOWN and await self._store.peer_chunk_count(peer.number):
            detail = (
                "it answers, and holds chunks: empty it first (mictlanfs peer drain), or stop it"
            )
            raise MictlanError(Kind.BUSY, "remove", request.id, detail)
        there = [other.number for other in self._others(peer)]
        lost_count = await self._store.only_copies_count(peer.number, there)
        if lost_count and not request.force_lost:
            what = "1 chunk has its" if lost_count == 1 else f"{lost_count} chunks have their"
            detail = (
                f"{what} only copy on it: start it and drain it to keep them, or give them up for "
                "ever with --force-lost"
            )
            raise MictlanError(Kind.CONFLICT, "remove", request.id, detail)
        if not request.force:
            await self._refuse_too_few("remove", request.id, len(there))
        self._membership.remove(request.id)
        await self._peer_map.publish()
        self._healer.wake()
        return Removed(lost_count)

    async def clone(self, request: ClonePeer) -> wire.Done:
        """Copy all chunks of a peer onto another. Raises NOT_FOUND, INVALID."""
        source = self._membership.find(request.source, "clone")
        target = self._membership.find(request.target, "clone")
        if source.number == target.number or target.is_draining:
            why = "it is being emptied" if target.is_draining else "it is the same peer"
            raise MictlanError(Kind.INVALID, "clone", request.target, why)
        await self._healer.orders.order(clone_name(source.number, target.number))
        self._healer.wake()
        return wire.Done()

    async def _refuse_too_few(self, operation: str, peer_id: str, count: int) -> None:
        """Raise CONFLICT when `count` peers are fewer than some bucket wants for a chunk."""
        buckets = (await self._store.buckets()).buckets
        found = max(buckets, key=lambda bucket: _peers_wanted(bucket.policy), default=None)
        if found is None or (wanted := _peers_wanted(found.policy)) <= count:
            return
        name = found.name.decode("utf-8", "backslashreplace")
        stay = "1 other peer answers" if count == 1 else f"{count} other peers answer"
        detail = (
            f"{stay}, and bucket {name} wants each chunk on {wanted}: chunks would be short of "
            "copies until there are more. Add a peer first, or go on with --force"
        )
        raise MictlanError(Kind.CONFLICT, operation, peer_id, detail)

    def _others(self, peer: PeerInfo) -> list[PeerInfo]:
        """The other peers that answer and stay."""
        return [
            other
            for other in self._membership.peer_map().peers
            if other.number != peer.number
            and other.state is not PeerState.DOWN
            and not other.is_draining
        ]


def _peers_wanted(policy: BucketPolicy) -> int:
    """On how many peers a chunk of a bucket is to lie."""
    return max(policy.replicas, policy.data + policy.parity)
