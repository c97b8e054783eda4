"""The peer map as a client holds it: who can be reached, and who just failed.

Owns the newest map seen, and a short memory of peers that did not answer or were slow, so that one
dead peer costs one time-out and not one per chunk. Does no I/O: the map is fetched by its user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mictlanfs import placement
from mictlanfs.model import Chunk, ChunkId, PeerInfo, PeerMap, PeerNumber, PeerState

AVOID_S = 3.0
# How long a peer that was slow comes behind the others: at first, and at most. Each time that it is
# slow again soon after, it is twice as long.
SLOW_S_FIRST = 5.0
SLOW_S_MAX = 80.0


class _Slowness(NamedTuple):
    """For how long a peer comes behind the others, and until when on the clock."""

    duration_s: float
    until_s: float


class PeerDirectory:
    """What a client knows of the peers.

    Args:
        monotonic_s: the clock that avoidance is measured with.
        boot_id: of this machine; peers with the same one are preferred for reads.
        reader: a number that other clients have not, so that they prefer other copies.
    """

    def __init__(
        self, monotonic_s: Callable[[], float], boot_id: str = "", reader: int = 0
    ) -> None:
        self._monotonic_s = monotonic_s
        self._boot_id = boot_id
        self._reader = reader
        self._peers: dict[PeerNumber, PeerInfo] = {}
        self._avoid_until: dict[PeerNumber, float] = {}
        self._slow: dict[PeerNumber, _Slowness] = {}
        self._full: set[PeerNumber] = set()
        self.version = -1
        self.version_seen = -1
        self._is_doubted = False

    @property
    def is_stale(self) -> bool:
        """Whether there is, or may be, a newer map than the one held."""
        return self._is_doubted or self.version_seen > self.version

    def notice_version(self, version: int) -> None:
        """A router's answer carried this version."""
        self.version_seen = max(self.version_seen, version)

    def doubt(self) -> None:
        """Nobody of this map served a request: it counts as stale until the next is taken over."""
        self._is_doubted = True

    def update(self, peer_map: PeerMap) -> None:
        """Take over a map, unless a newer one is held already."""
        self._is_doubted = False
        if peer_map.version < self.version:
            return
        if peer_map.version > self.version:
            self._full.clear()
        self.version = peer_map.version
        self.version_seen = max(self.version_seen, peer_map.version)
        self._peers = {peer.number: peer for peer in peer_map.peers}

    def get(self, number: PeerNumber) -> PeerInfo | None:
        """The peer of that number, None when the map does not know it."""
        return self._peers.get(number)

    def all(self) -> Sequence[PeerInfo]:
        """Every peer of the map."""
        return tuple(self._peers.values())

    def failed(self, number: PeerNumber) -> None:
        """The peer did not answer: try others first for a while."""
        self._avoid_until[number] = self._monotonic_s() + AVOID_S

    def slow(self, number: PeerNumber) -> None:
        """The peer took far longer than others do: ask it after them for a while.

        That a request under way before ends late says nothing new.
        """
        now_s = self._monotonic_s()
        before = self._slow.get(number)
        if before is None or now_s > before.until_s + before.duration_s:
            self._slow[number] = _Slowness(SLOW_S_FIRST, now_s + SLOW_S_FIRST)
        elif now_s >= before.until_s:
            duration_s = min(2 * before.duration_s, SLOW_S_MAX)
            self._slow[number] = _Slowness(duration_s, now_s + duration_s)

    def is_slow(self, number: PeerNumber) -> bool:
        """Whether the peer was slow a short while ago."""
        slowness = self._slow.get(number)
        return slowness is not None and slowness.until_s > self._monotonic_s()

    def refused(self, number: PeerNumber) -> None:
        """The peer is full: do not place chunks on it until the next map."""
        self._full.add(number)

    @property
    def has_only_full_peers(self) -> bool:
        """Whether peers are there, and none of them takes new chunks for want of space."""
        there = [peer for peer in self._peers.values() if peer.state is not PeerState.DOWN]
        return bool(there) and all(p.is_full or p.number in self._full for p in there)

    def answered(self, number: PeerNumber) -> None:
        """The peer works."""
        self._avoid_until.pop(number, None)

    def is_doubtful(self, number: PeerNumber) -> bool:
        """Whether another peer is to be asked before this one, if there is one."""
        peer = self._peers.get(number)
        is_gone = peer is None or peer.state is PeerState.DOWN
        return is_gone or self._is_avoided(number) or self.is_slow(number)

    def candidates(self, chunk_id: ChunkId) -> list[PeerInfo]:
        """Peers to place a chunk on, best first; slow ones, then those that just failed, last."""
        usable = [peer for peer in self._peers.values() if peer.number not in self._full]
        ranked = placement.rank(chunk_id, usable, placement.by_space)
        return sorted(
            ranked, key=lambda peer: (self._is_avoided(peer.number), self.is_slow(peer.number))
        )

    def holders(self, chunk: Chunk) -> list[PeerInfo]:
        """Peers to read a chunk from, best first: working, quick ones, those on this machine.

        Ties are broken by a rotation that depends on the chunk and on this client, so that the
        readers of many chunks, and many readers of one, spread over the replicas. Peers the router
        believes down are tried last: it may be wrong, and they may be the only ones.
        """
        known = [peer for number in chunk.peers if (peer := self._peers.get(number))]
        if not known:
            return []
        turn = (chunk.id[-1] + self._reader) % len(known)
        rotated = known[turn:] + known[:turn]
        return sorted(rotated, key=self._distance)

    def _distance(self, peer: PeerInfo) -> tuple[bool, bool, bool, bool]:
        number = peer.number
        is_remote = not self._boot_id or peer.boot_id != self._boot_id
        is_down = peer.state is PeerState.DOWN
        return (is_down, self._is_avoided(number), self.is_slow(number), is_remote)

    def _is_avoided(self, number: PeerNumber) -> bool:
        return self._avoid_until.get(number, 0.0) > self._monotonic_s()
