"""What the router believes of the peers: a state machine over a clock, without any I/O.

::

              silent for suspect_s            silent for down_s
      UP  ------------------------> SUSPECT ---------------------> DOWN
      ^ ^                              |                            | ^
      | +------------ announce --------+                            | |
      +-------------------------- announce -------------------------+ |
      +-------------------------------- leave ------------------------+

A number stands for one *store* of chunks, which tells a token of its own. When a peer comes back
with another store its chunks are gone: the old number is retired and the peer gets a new one, so
that what was written to the old store is never looked for in the new one, whenever its writer says
so. Should the old store come back, so does its number. Removed peers stay out.

Owns the numbers of peers and the version of the peer map. The version grows exactly when a writer
should know: a new peer, another state, address, zone, machine or fullness, a capacity that differs
by a hundredth, space used by a twentieth of the capacity. Smaller changes go along without a new
version.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import CHUNK_ID_SIZE_BYTES, PeerInfo, PeerMap, PeerNumber, PeerState
from mictlanfs_server.metadata.copies import PeerBook, RetiredPeer

if TYPE_CHECKING:
    from mictlanfs.clock import Clock

log = logging.getLogger(__name__)

PEERS_MAX = 10_000
# Of peers, in a message to somebody who named one that there is not.
NAMED_COUNT_MAX = 10
TEXT_LENGTH_MAX = 255
URL_LENGTH_MAX = 2048
SIZE_MAX = 2**63 - 1
CAPACITY_CHANGE_MIN = 0.01
# Of the capacity: what placement is off by until a writer hears of it.
USED_CHANGE_MIN = 0.05


@dataclass(slots=True)
class _Peer:
    """A peer; times by the monotonic clock.

    Attributes:
        told_used: bytes, when the version last grew for the peer.
        hot: what it said last of what is read; None: nothing since the router started.
    """

    info: PeerInfo
    last_seen_s: float
    chunk_count: int = 0
    store: str = ""
    told_used: int = 0
    hot: tuple[wire.HotChunk, ...] | None = None


class Membership:
    """The peers of a space.

    Args:
        saved: the peers as last persisted. Each counts as up, with a fresh timer: the silence was
            ours.
        book: what was persisted beside them.
        number_min: a new peer gets no smaller number.
    """

    def __init__(
        self,
        clock: Clock,
        space_id: str,
        saved: PeerMap,
        book: PeerBook | None = None,
        *,
        suspect_s: float,
        down_s: float,
        number_min: int = 1,
    ) -> None:
        self._number_min = number_min
        self._clock = clock
        self._space_id = space_id
        self._suspect_s = suspect_s
        self._down_s = down_s
        self._version = saved.version
        now_s = clock.monotonic_s()
        stores = book.stores if book is not None else {}
        self._retired = dict(book.retired) if book is not None else {}
        self._peers = {
            peer.id: _Peer(peer, now_s, store=stores.get(peer.number, ""), told_used=peer.used)
            for peer in saved.peers
        }
        for peer in self._peers.values():
            self._enter(peer, PeerState.UP)

    # --- what happens ----------------------------------------------------------------------------

    def announce(self, request: wire.PeerAnnounce) -> PeerNumber:
        """A peer registers or sends a heartbeat. Returns its number.

        Raises:
            MictlanError: PROTOCOL, INVALID, CONFLICT, NO_SPACE (too many peers).
        """
        check_protocol(request.protocol, "announce", request.id[:TEXT_LENGTH_MAX])
        _check_announce(request)
        url = _normal_url(request.url)
        if request.space_id not in ("", self._space_id):
            detail = (
                f"it holds data of space {request.space_id}, this router serves {self._space_id}: "
                "give it another data directory or another router"
            )
            raise MictlanError(Kind.CONFLICT, "announce", request.id, detail)
        self._refuse_removed(request)
        peer = self._peers.get(request.id)
        if peer is None:
            return self._add(request).info.number
        if peer.info.url != url and peer.info.state is PeerState.UP:
            detail = (
                f"a peer of this id answers at {peer.info.url}: "
                "give this one another id, or stop that one and wait until it is suspect"
            )
            raise MictlanError(Kind.CONFLICT, "announce", request.id, detail)
        if _has_another_store(peer, request):
            return self._replace(peer, request).info.number
        self._refresh(peer, request)
        return peer.info.number

    def _refuse_removed(self, request: wire.PeerAnnounce) -> None:
        for retired in self._retired.values():
            if retired.is_removed and request.store_id and retired.store == request.store_id:
                detail = (
                    "it was removed from the space, and nothing that it holds counts any more: "
                    "give it an empty data directory to let it join as a new peer"
                )
                raise MictlanError(Kind.CONFLICT, "announce", request.id, detail)

    def _replace(self, peer: _Peer, request: wire.PeerAnnounce) -> _Peer:
        """The peer has another store than before."""
        number, url = peer.info.number, peer.info.url
        if url != _normal_url(request.url) and not self._number_of(request.store_id):
            detail = (
                f"a peer of this id has other data at {url}: give this one another id, or take "
                f"that one out of the space first (mictlanfs peer rm {request.id})"
            )
            raise MictlanError(Kind.CONFLICT, "announce", request.id, detail)
        log.warning(
            "peer %s lost its %d chunks: another store answers, number %d is retired",
            request.id,
            peer.chunk_count,
            number,
        )
        self._retire(peer, is_removed=False)
        return self._add(request)

    def _retire(self, peer: _Peer, *, is_removed: bool) -> None:
        del self._peers[peer.info.id]
        self._retired[peer.info.number] = RetiredPeer(peer.info.id, peer.store, is_removed)
        self._version += 1

    def _number_of(self, store: str) -> PeerNumber | None:
        """The retired number of a store, if it has one and may have it again."""
        for number, retired in self._retired.items():
            if store and retired.store == store:
                return number
        return None

    def _add(self, request: wire.PeerAnnounce) -> _Peer:
        if len(self._peers) >= PEERS_MAX:
            raise MictlanError(Kind.NO_SPACE, "announce", request.id, "there are too many peers")
        number = self._number_of(request.store_id)
        if number is None:
            used = {peer.info.number for peer in self._peers.values()} | self._retired.keys()
            number = PeerNumber(max(max(used, default=0) + 1, self._number_min))
        self._retired.pop(number, None)
        peer = _Peer(_info_of(number, request), self._clock.monotonic_s())
        peer.chunk_count, peer.store = request.chunk_count, request.store_id
        peer.told_used = request.used
        peer.hot = request.hot
        self._peers[request.id] = peer
        self._version += 1
        log.info("peer %s is new: number %d at %s", request.id, number, request.url)
        return peer

    def _refresh(self, peer: _Peer, request: wire.PeerAnnounce) -> None:
        if request.store_id != peer.store and request.store_id:
            peer.store = request.store_id
            # So that it is saved.
            self._version += 1
        before, after = peer.info, _info_of(peer.info.number, request)
        after = msgspec.structs.replace(after, is_draining=before.is_draining)
        silent_s = self._clock.monotonic_s() - peer.last_seen_s
        is_news = _is_news(before, after)
        # Below a hundredth the old capacity stays, or it could drift far without any news.
        peer.info = after if is_news else msgspec.structs.replace(after, capacity=before.capacity)
        peer.chunk_count = request.chunk_count
        peer.hot = request.hot
        peer.last_seen_s = self._clock.monotonic_s()
        if before.state is not PeerState.UP:
            log.info("peer %s is up again after %.1f s", request.id, silent_s)
        if is_news or abs(after.used - peer.told_used) >= USED_CHANGE_MIN * after.capacity > 0:
            peer.told_used = after.used
            self._version += 1

    def leave(self, request: wire.PeerLeave) -> None:
        """A peer stops in order. One that is unknown, or answers elsewhere by now, is no error."""
        peer = self._peers.get(request.id)
        if peer is not None and peer.info.url == _normal_url(request.url):
            self._enter(peer, PeerState.DOWN)

    def set_draining(self, peer_id: str, *, is_draining: bool) -> PeerInfo:
        """Empty a peer, or stop doing so. Raises NOT_FOUND."""
        peer = self._named(peer_id, "drain")
        if peer.info.is_draining is not is_draining:
            log.info("peer %s is %s", peer_id, "being emptied" if is_draining else "in use again")
            peer.info = msgspec.structs.replace(peer.info, is_draining=is_draining)
            self._version += 1
        return peer.info

    def remove(self, peer_id: str) -> PeerNumber:
        """Take a peer out of the space for ever. Raises NOT_FOUND."""
        peer = self._named(peer_id, "remove")
        log.warning("peer %s, number %d, is removed", peer_id, peer.info.number)
        self._retire(peer, is_removed=True)
        return peer.info.number

    def find(self, peer_id: str, operation: str) -> PeerInfo:
        """A peer by its id. Raises NOT_FOUND, of this operation."""
        return self._named(peer_id, operation).info

    def _named(self, peer_id: str, operation: str) -> _Peer:
        peer = self._peers.get(peer_id)
        if peer is None:
            there = ", ".join(sorted(self._peers)[:NAMED_COUNT_MAX]) or "none"
            detail = f"there is no such peer; there are: {there}"
            raise MictlanError(Kind.NOT_FOUND, operation, peer_id[:TEXT_LENGTH_MAX], detail)
        return peer

    def tick(self) -> None:
        """Draw conclusions from silence; to be called often."""
        now_s = self._clock.monotonic_s()
        for peer in self._peers.values():
            silent_s = now_s - peer.last_seen_s
            if silent_s >= self._down_s:
                self._enter(peer, PeerState.DOWN)
            elif silent_s >= self._suspect_s and peer.info.state is PeerState.UP:
                self._enter(peer, PeerState.SUSPECT)

    def forgive(self, pause_s: float) -> None:
        """The router itself was stopped for a while: nobody could be heard."""
        for peer in self._peers.values():
            peer.last_seen_s += pause_s

    def _enter(self, peer: _Peer, state: PeerState) -> None:
        if peer.info.state is state:
            return
        level = logging.WARNING if state is PeerState.DOWN else logging.INFO
        log.log(level, "peer %s is %s", peer.info.id, state.name.lower())
        peer.info = msgspec.structs.replace(peer.info, state=state)
        self._version += 1

    # --- what is believed ------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version of the map as it is now."""
        return self._version

    def peer_map(self) -> PeerMap:
        """The map as it is now."""
        return PeerMap(self._version, tuple([peer.info for peer in self._peers.values()]))

    def reads(self) -> dict[PeerNumber, tuple[wire.HotChunk, ...] | None]:
        """What is read at the peers that are up; None: it has said nothing since the start."""
        return {
            peer.info.number: peer.hot
            for peer in self._peers.values()
            if peer.info.state is PeerState.UP
        }

    def book(self) -> PeerBook:
        """What is to be saved beside the map."""
        stores = {peer.info.number: peer.store for peer in self._peers.values() if peer.store}
        return PeerBook(stores, dict(self._retired))

    def statuses(self) -> list[wire.PeerStatus]:
        """The peers, for people."""
        now_s = self._clock.monotonic_s()
        return [
            wire.PeerStatus(
                id=peer.info.id,
                url=peer.info.url,
                zone=peer.info.zone,
                state=peer.info.state.name.lower(),
                capacity=peer.info.capacity,
                used=peer.info.used,
                chunk_count=peer.chunk_count,
                is_full=peer.info.is_full,
                last_seen_s=now_s - peer.last_seen_s,
                number=peer.info.number,
                is_draining=peer.info.is_draining,
            )
            for peer in self._peers.values()
        ]


def check_protocol(version: int, operation: str, who: str) -> None:
    """Raises PROTOCOL, naming both versions, for one we do not speak."""
    if version != wire.PROTOCOL_VERSION:
        detail = (
            f"it speaks protocol version {version}, this router version {wire.PROTOCOL_VERSION}: "
            "update the older of the two"
        )
        raise MictlanError(Kind.PROTOCOL, operation, who, detail)


def _check_announce(request: wire.PeerAnnounce) -> None:
    def refuse(detail: str) -> MictlanError:
        return MictlanError(Kind.INVALID, "announce", request.id[:TEXT_LENGTH_MAX], detail)

    if not 0 < len(request.id) <= TEXT_LENGTH_MAX:
        raise refuse(f"the id of a peer has 1 to {TEXT_LENGTH_MAX} characters")
    if max(len(request.zone), len(request.boot_id)) > TEXT_LENGTH_MAX:
        raise refuse(f"zone and boot id have at most {TEXT_LENGTH_MAX} characters")
    is_web = request.url.startswith(("http://", "https://"))
    if not is_web or len(request.url) > URL_LENGTH_MAX:
        raise refuse("the address of a peer is an http or https URL")
    if len(request.hot) > wire.HOT_COUNT_MAX or any(
        len(one.id) != CHUNK_ID_SIZE_BYTES or not 0 <= one.reads_per_min < math.inf
        for one in request.hot
    ):
        raise refuse(f"at most {wire.HOT_COUNT_MAX} chunks are told of, with their rates")
    if len(request.store_id) > TEXT_LENGTH_MAX:
        raise refuse(f"the token of a store has at most {TEXT_LENGTH_MAX} characters")
    if not all(0 <= n <= SIZE_MAX for n in (request.capacity, request.used, request.chunk_count)):
        raise refuse("sizes and counts are not negative")


def _has_another_store(peer: _Peer, request: wire.PeerAnnounce) -> bool:
    if peer.store and request.store_id:
        return peer.store != request.store_id
    # One of them told no token: a store that is of no space yet is new.
    return not request.space_id and peer.chunk_count > 0


def _normal_url(url: str) -> str:
    return url.rstrip("/")


def _info_of(number: PeerNumber, request: wire.PeerAnnounce) -> PeerInfo:
    return PeerInfo(
        number=number,
        id=request.id,
        url=_normal_url(request.url),
        zone=request.zone,
        capacity=request.capacity,
        used=request.used,
        state=PeerState.UP,
        is_full=request.is_full,
        boot_id=request.boot_id,
    )


def _is_news(before: PeerInfo, after: PeerInfo) -> bool:
    """Whether a writer should know of the difference."""
    difference = abs(after.capacity - before.capacity)
    if difference and difference >= CAPACITY_CHANGE_MIN * before.capacity:
        return True
    # The rest of the fields, with the sizes made equal.
    return after != msgspec.structs.replace(before, capacity=after.capacity, used=after.used)
