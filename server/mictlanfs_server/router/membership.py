"""What the router believes of the peers: a state machine over a clock, without any I/O.

::

              silent for suspect_s            silent for down_s
      UP  ------------------------> SUSPECT ---------------------> DOWN
      ^ ^                              |                            | ^
      | +------------ announce --------+                            | |
      +-------------------------- announce -------------------------+ |
      +-------------------------------- leave ------------------------+

Owns the numbers of peers and the version of the peer map. The version grows exactly when a writer
should know: a new peer, another state, address, zone, machine or fullness, a capacity that differs
by a hundredth. Space used changes all the time and goes along without a new version.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import PeerInfo, PeerMap, PeerNumber, PeerState

if TYPE_CHECKING:
    from mictlanfs.clock import Clock

log = logging.getLogger(__name__)

PEERS_MAX = 10_000
TEXT_LENGTH_MAX = 255
URL_LENGTH_MAX = 2048
SIZE_MAX = 2**63 - 1
CAPACITY_CHANGE_MIN = 0.01


@dataclass(slots=True)
class _Peer:
    """A peer; times by the monotonic clock."""

    info: PeerInfo
    last_seen_s: float
    chunk_count: int = 0


class Membership:
    """The peers of a space.

    Args:
        saved: the peers as last persisted. Each counts as up, with a fresh timer: the silence was
            ours.
    """

    def __init__(
        self, clock: Clock, space_id: str, saved: PeerMap, *, suspect_s: float, down_s: float
    ) -> None:
        self._clock = clock
        self._space_id = space_id
        self._suspect_s = suspect_s
        self._down_s = down_s
        self._version = saved.version
        now_s = clock.monotonic_s()
        self._peers = {peer.id: _Peer(peer, now_s) for peer in saved.peers}
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
        peer = self._peers.get(request.id)
        if peer is None:
            return self._add(request).info.number
        if peer.info.url != url and peer.info.state is PeerState.UP:
            detail = (
                f"a peer of this id answers at {peer.info.url}: "
                "give this one another id, or stop that one and wait until it is suspect"
            )
            raise MictlanError(Kind.CONFLICT, "announce", request.id, detail)
        self._refresh(peer, request)
        return peer.info.number

    def _add(self, request: wire.PeerAnnounce) -> _Peer:
        if len(self._peers) >= PEERS_MAX:
            raise MictlanError(Kind.NO_SPACE, "announce", request.id, "there are too many peers")
        number = max((peer.info.number for peer in self._peers.values()), default=0) + 1
        peer = _Peer(_info_of(PeerNumber(number), request), self._clock.monotonic_s())
        peer.chunk_count = request.chunk_count
        self._peers[request.id] = peer
        self._version += 1
        log.info("peer %s is new: number %d at %s", request.id, number, request.url)
        return peer

    def _refresh(self, peer: _Peer, request: wire.PeerAnnounce) -> None:
        if not request.space_id and peer.chunk_count:
            log.warning("peer %s lost its %d chunks", request.id, peer.chunk_count)
        before, after = peer.info, _info_of(peer.info.number, request)
        silent_s = self._clock.monotonic_s() - peer.last_seen_s
        is_news = _is_news(before, after)
        # Below a hundredth the old capacity stays, or it could drift far without any news.
        peer.info = after if is_news else msgspec.structs.replace(after, capacity=before.capacity)
        peer.chunk_count = request.chunk_count
        peer.last_seen_s = self._clock.monotonic_s()
        if before.state is not PeerState.UP:
            log.info("peer %s is up again after %.1f s", request.id, silent_s)
        if is_news:
            self._version += 1

    def leave(self, request: wire.PeerLeave) -> None:
        """A peer stops in order. One that is unknown, or answers elsewhere by now, is no error."""
        peer = self._peers.get(request.id)
        if peer is not None and peer.info.url == _normal_url(request.url):
            self._enter(peer, PeerState.DOWN)

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
    if not all(0 <= n <= SIZE_MAX for n in (request.capacity, request.used, request.chunk_count)):
        raise refuse("sizes and counts are not negative")


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
