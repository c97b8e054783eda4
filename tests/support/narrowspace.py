"""A space of loose servers in which every peer is reached by a way that can be slow or end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from mictlanfs.client.blocking import BlockingSpace
from mictlanfs.errors import MictlanError
from tests.support.slowproxy import SlowProxy
from tests.support.spaces import LooseServers, free_ports, wait_until


class NarrowSpace:
    """A router and peers, each behind a `SlowProxy` that it advertises.

    Attributes:
        servers: the processes.
        proxies: the ways, by the index of the peer.
    """

    def __init__(self, data: Path, *router_options: str, peer_count: int = 3) -> None:
        data.mkdir()
        self.servers = LooseServers(data)
        self.proxies: dict[int, SlowProxy] = {}
        self._router_options = router_options
        self._peer_count = peer_count

    @property
    def uri(self) -> str:
        """Of the space."""
        return self.servers.uri

    def start(self) -> None:
        """Start everything; returns when all peers are up."""
        router_port, *ports = free_ports(1 + self._peer_count)
        self.servers.start_router(router_port, *self._router_options)
        for index, port in enumerate(ports):
            self._start_peer(index, SlowProxy(port), port)
        self._wait_for_peers()

    def _start_peer(self, index: int, proxy: SlowProxy, port: int) -> None:
        self.proxies[index] = proxy
        self.servers.start_peer(index, port, "--advertise", proxy.url)

    def _wait_for_peers(self) -> None:
        space = BlockingSpace(self.uri)

        def are_up() -> bool:
            with contextlib.suppress(MictlanError):
                states = [peer.state for peer in space.status().peers]
                return states == ["up"] * self._peer_count
            return False

        wait_until(are_up, f"{self._peer_count} peers are up")

    def name(self, index: int) -> str:
        """Of a peer, among the processes."""
        return f"peer-{index}"

    def kill_after(self, index: int, count: int, direction: str) -> None:
        """kill -9 a peer when `count` more bytes have come `from` it or gone `to` it."""
        name = self.name(index)
        self.proxies[index].end_after(count, direction, lambda: self.servers.kill(name))

    def is_killed(self, index: int) -> bool:
        """Whether that has happened."""
        return self.name(index) not in self.servers.processes

    def revive(self, index: int) -> None:
        """Start a killed peer again, where it was; returns when it is up."""
        port = self.servers.ports[index]
        self._start_peer(index, SlowProxy(port, self.proxies[index].port), port)
        self._wait_for_peers()

    @contextlib.contextmanager
    def stopped(self, index: int) -> Iterator[None]:
        """A peer that does nothing while the block runs, as SIGSTOP makes it."""
        process = self.servers.processes[self.name(index)]
        os.kill(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process.pid, signal.SIGCONT)
            self._wait_for_peers()

    @contextlib.contextmanager
    def throttled(self, index: int, bytes_per_s: float) -> Iterator[SlowProxy]:
        """A peer behind a narrow link while the block runs."""
        proxy = self.proxies[index]
        proxy.throttle(bytes_per_s)
        try:
            yield proxy
        finally:
            proxy.throttle(None)

    def stop(self) -> None:
        """Stop everything that runs."""
        self.servers.stop()
        for proxy in self.proxies.values():
            proxy.close()


@contextlib.contextmanager
def narrow_space(data: Path, *router_options: str) -> Iterator[NarrowSpace]:
    """A space that is gone on leaving."""
    space = NarrowSpace(data, *router_options)
    try:
        space.start()
        yield space
    finally:
        space.stop()
