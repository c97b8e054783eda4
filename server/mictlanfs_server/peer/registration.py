"""A peer's link to the routers of its space: announces it, and keeps announcing it.

Owns one task. Never touches chunks: what to announce comes from a callback. A router that cannot be
reached is no reason to stop serving; one that refuses the peer is.

::

    searching --welcome--> registered --leave--> gone
        ^                      |
        +-------failure--------+
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from mictlanfs import wire
from mictlanfs.client.retrypolicy import RetryPolicy
from mictlanfs.clock import Clock, SystemClock
from mictlanfs.errors import Kind, MictlanError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mictlanfs.client.transport import HttpTransport
    from mictlanfs.model import Buffer, PeerNumber

log = logging.getLogger(__name__)

ANNOUNCE_TIMEOUT_S: Final = 5.0
LEAVE_TIMEOUT_S: Final = 2.0
# Whatever a router asks for, heartbeats are neither a load nor a rarity.
HEARTBEAT_S_MIN: Final = 0.05
HEARTBEAT_S_MAX: Final = 60.0
# When a router has been out of reach for so long, a person should look.
ALARM_AFTER_S: Final = 60.0
_RETRY: Final = RetryPolicy(delay_s_first=0.1, delay_s_max=5.0)
# Asking again, or asking another router of the same space, does not change these.
_FINAL_KINDS: Final = frozenset(
    {
        Kind.CONFLICT,
        Kind.PROTOCOL,
        Kind.INVALID,
        Kind.ACCESS_DENIED,
        Kind.NOT_PERMITTED,
        Kind.UNSUPPORTED,
    }
)


class SpaceMemory(Protocol):
    """Where the peer remembers whose data it holds."""

    @property
    def space_id(self) -> str:
        """The space; empty when no router told it yet."""
        ...

    def remember_space(self, space_id: str) -> None:
        """Note the space durably."""
        ...


@dataclass(slots=True)
class LinkState:
    """What `status` shows of the link.

    Attributes:
        router: URL of the router last tried.
        is_registered: whether its last answer was a welcome.
        number: of this peer in the peer map, None before the first welcome.
        error: why it is not registered; empty when it is.
    """

    router: str
    is_registered: bool = False
    number: PeerNumber | None = None
    error: str = ""


class Registration:
    """Keeps a peer registered. `run` is the task; `state` may be read at any time.

    Args:
        routers: URLs, tried in this order; at least one.
        describe: what to announce now.
        memory: where the space is remembered.
        transport: not closed here.
        on_refused: called once when a router refuses the peer for good; `run` ends then.
        on_welcome: called with the space at every welcome.
    """

    def __init__(
        self,
        routers: Sequence[str],
        describe: Callable[[], wire.PeerAnnounce],
        memory: SpaceMemory,
        transport: HttpTransport,
        on_refused: Callable[[MictlanError], None],
        clock: Clock | None = None,
        on_welcome: Callable[[str], None] | None = None,
    ) -> None:
        self._routers = itertools.cycle(routers)
        self._describe = describe
        self._memory = memory
        self._transport = transport
        self._on_refused = on_refused
        self._on_welcome = on_welcome
        self._clock = clock or SystemClock()
        self._lost_since_s: float | None = None
        self._is_alarmed = False
        self.state = LinkState(next(self._routers))

    async def run(self) -> None:
        """Announce the peer until cancelled or refused for good."""
        delays_s = _RETRY.delays_s()
        while True:
            try:
                welcome = await self._announce()
            except MictlanError as error:
                if error.kind in _FINAL_KINDS:
                    self._refused(error)
                    return
                self._failed(error)
                await asyncio.sleep(next(delays_s))
            else:
                delays_s = _RETRY.delays_s()
                await asyncio.sleep(min(max(welcome.heartbeat_s, HEARTBEAT_S_MIN), HEARTBEAT_S_MAX))

    async def leave(self) -> None:
        """Tell the router that the peer stops. Never fails: the router notices by itself later."""
        if self.state.number is None:
            return
        self.state.is_registered = False
        announce = self._describe()
        message = wire.PeerLeave(announce.id, announce.url)
        try:
            await self._post(wire.Path.PEER_LEAVE, message, LEAVE_TIMEOUT_S)
        except MictlanError as error:
            log.info("could not say good-bye to the router: %s", error)

    async def _announce(self) -> wire.PeerWelcome:
        body = await self._post(wire.Path.PEER_ANNOUNCE, self._describe(), ANNOUNCE_TIMEOUT_S)
        welcome = wire.decode(body, wire.PeerWelcome)
        if not self._memory.space_id:
            self._memory.remember_space(welcome.space_id)
        elif self._memory.space_id != welcome.space_id:
            detail = f"it serves space {welcome.space_id}, the data is of {self._memory.space_id}"
            raise MictlanError(Kind.CONFLICT, "announce", detail=detail)
        self._welcomed(welcome)
        return welcome

    async def _post(
        self, path: str, message: wire.PeerAnnounce | wire.PeerLeave, timeout_s: float
    ) -> Buffer:
        response = await self._transport.request(
            "POST",
            self.state.router + path,
            body=wire.encode(message),
            headers={"content-type": wire.MSGPACK},
            timeout_s=timeout_s,
        )
        if response.status != 200:
            raise wire.decode_error(response.status, response.body)
        return response.body

    def _welcomed(self, welcome: wire.PeerWelcome) -> None:
        if not self.state.is_registered:
            log.info(
                "registered with the router at %s as number %d",
                self.state.router,
                welcome.number,
                extra={"space_id": welcome.space_id},
            )
        self.state.is_registered = True
        self.state.number = welcome.number
        self.state.error = ""
        self._lost_since_s = None
        self._is_alarmed = False
        if self._on_welcome is not None:
            self._on_welcome(welcome.space_id)

    def _failed(self, error: MictlanError) -> None:
        """Note a failure and turn to the next router. One WARNING, one ERROR when it lasts."""
        now_s = self._clock.monotonic_s()
        if self._lost_since_s is None:
            self._lost_since_s = now_s
            log.warning("no link to the router at %s, trying again: %s", self.state.router, error)
        elif not self._is_alarmed and now_s - self._lost_since_s >= ALARM_AFTER_S:
            self._is_alarmed = True
            log.error("no link to any router for %d s: %s", now_s - self._lost_since_s, error)
        self.state.is_registered = False
        self.state.error = str(error)
        self.state.router = next(self._routers)

    def _refused(self, error: MictlanError) -> None:
        self.state.is_registered = False
        self.state.error = str(error)
        if not isinstance(error, UsageError):
            error = UsageError(f"the router at {self.state.router} refuses this peer: {error}")
        self._on_refused(error)


def reachable_url(url: str, router_url: str) -> str:
    """`url` with an address that others can use, when it names all addresses of this machine.

    That is the address from which packets to the router leave; no packet is sent to find out.
    """
    parts = urlsplit(url)
    if parts.hostname not in {"0.0.0.0", "::"}:  # noqa: S104 - recognised here, not bound.
        return url
    router = urlsplit(router_url)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            router.hostname, router.port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            host = probe.getsockname()[0]
    except OSError as error:
        raise UsageError(
            f"no telling by which address others reach this peer ({error}): say it with --advertise"
        ) from error
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port}"
