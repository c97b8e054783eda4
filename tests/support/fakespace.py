"""A whole space in memory: a fake router, fake peers, and the network between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mictlanfs.client.caller import Caller
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.space import SpaceClient, open_space
from tests.support.fakenet import FakeNet
from tests.support.fakepeer import FakePeer
from tests.support.fakerouter import FakeRouter

URI = "mictlanx://router@router:60666/?protocol=http"
CALLER = Caller(uid=1000, gid=1001, umask=0o022)


@dataclass
class FakeSpace:
    """The parts, for tests to look at and to break."""

    net: FakeNet = field(default_factory=FakeNet)
    router: FakeRouter = field(default_factory=FakeRouter)
    peers: list[FakePeer] = field(default_factory=lambda: [FakePeer(n) for n in range(3)])

    def __post_init__(self) -> None:
        self.net.servers[self.router.url] = self.router
        for peer in self.peers:
            self.net.servers[peer.url] = peer
        self.router.peers = tuple(peer.info() for peer in self.peers)

    def stop(self, peer: FakePeer) -> None:
        """Let a peer refuse connections."""
        del self.net.servers[peer.url]

    @asynccontextmanager
    async def client(
        self, deadline_s: float = 30.0, inline_size_max: int = 0
    ) -> AsyncIterator[SpaceClient]:
        """A client of the space; it gives every byte to peers unless told otherwise."""
        retry = RetryPolicy(deadline_s=deadline_s)
        async with open_space(
            URI,
            retry=retry,
            caller=CALLER,
            transport=self.net,
            inline_size_max=inline_size_max,
        ) as client:
            yield client
