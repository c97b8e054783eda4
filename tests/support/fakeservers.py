"""A router and peers as far as their answers to a probe go, without any network."""

from __future__ import annotations

import msgspec
import trio

from mictlanfs import wire
from mictlanfs.client.transport import HttpTransport, Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import PeerInfo, PeerMap, PeerNumber, PeerState
from mictlanfs.uri import ServerAddress

ROUTER = ServerAddress("mictlanx-router-0", "127.0.0.1", 60666)
PEERS = [ServerAddress(f"mictlanx-peer-{index}", "127.0.0.1", 24000 + index) for index in range(2)]


class Servers(HttpTransport):
    """Answers for every server whose address is in `answering`, and never for one in `hanging`.

    Attributes:
        states: what the router says of each peer.
        leave_cost: what it would be short of without any one of them.
    """

    def __init__(self) -> None:
        self.answering: set[str] = set()
        self.hanging: set[str] = set()
        self.states: dict[str, str] = {}
        self.leave_cost = wire.LeaveCost(0, 0)

    async def request(
        self, method: str, url: str, *, timeout_s: float = 10.0, **_: object
    ) -> Response:
        base, slash, path = url.partition(wire.PREFIX)
        if base in self.hanging:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if base not in self.answering:
            raise MictlanError(Kind.UNAVAILABLE, method, url, "no connection")
        if slash + path == wire.Path.STATUS:
            return Response(200, {}, msgspec.json.encode(self._status()))
        if slash + path == wire.Path.PEER_MAP:
            return Response(200, {}, wire.encode(self._peer_map()))
        if slash + path == wire.Path.PEER_LEAVE_COST:
            return Response(200, {}, wire.encode(self.leave_cost))
        assert slash + path == wire.Path.HEALTH
        return Response(200, {}, b"{}")

    def _peer_map(self) -> PeerMap:
        peers = [
            PeerInfo(
                number=PeerNumber(number),
                id=name,
                url="",
                zone="",
                capacity=0,
                used=0,
                state=PeerState[state.upper()],
                is_full=False,
                boot_id="",
            )
            for number, (name, state) in enumerate(self.states.items(), 1)
        ]
        return PeerMap(1, tuple(peers))

    def _status(self) -> wire.SpaceStatus:
        peers = [
            wire.PeerStatus(
                id=name,
                url="",
                zone="",
                state=state,
                capacity=0,
                used=0,
                chunk_count=0,
                is_full=False,
                last_seen_s=0.0,
            )
            for name, state in self.states.items()
        ]
        return wire.SpaceStatus(
            space_id="s",
            router_id="r",
            version="1",
            uptime_s=1.0,
            is_healthy=True,
            problems=[],
            peers=peers,
            sessions=[],
            bucket_count=0,
            inode_count=0,
            chunk_count=0,
            under_replicated_count=0,
            lost_count=0,
            tombstone_count=0,
            bytes_logical=0,
        )

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
