"""The router as an application: puts the parts together, serves them, stops them in order.

The data directory is locked and the database opened before anything listens, so that a router that
cannot work says so in one line. The application's lifespan starts what needs an event loop; its end
closes everything: first the background work, then the metadata.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mictlanfs import __version__, wire
from mictlanfs.client.transport import HttpTransport
from mictlanfs.clock import Clock, SystemClock
from mictlanfs.errors import HTTP_STATUS, MictlanError
from mictlanfs.logevents import log_event
from mictlanfs.logsetup import log_to_stderr
from mictlanfs.model import Struct
from mictlanfs_server import environment as variables
from mictlanfs_server.framework import LazyFramework, answering, run_lifespan
from mictlanfs_server.http import (
    METRICS_PATH,
    DirectRoutes,
    HeaderMiddleware,
    Reply,
    header_route,
    json_response,
    message_route,
    metrics_response,
    to_mictlan_error,
)
from mictlanfs_server.metadata.sqlite import SqliteStore
from mictlanfs_server.metasnapshots.keeper import MetadataKeeper
from mictlanfs_server.metering import Meters
from mictlanfs_server.router.auditing import Auditor
from mictlanfs_server.router.collector import Collector
from mictlanfs_server.router.datadir import DataDirectory
from mictlanfs_server.router.front import (
    DEFAULT_FRONT,
    FrontSettings,
    across_origins,
    front_settings,
)
from mictlanfs_server.router.gate import LeasedAnswer, LeaseGate, agree_on_lease_time
from mictlanfs_server.router.handlers import ReadRoute, RouterHandlers
from mictlanfs_server.router.membership import Membership
from mictlanfs_server.router.metrics import families
from mictlanfs_server.router.peermap import PublicPeerMap
from mictlanfs_server.router.peerrequests import Transport
from mictlanfs_server.router.routes import MessageRoute
from mictlanfs_server.router.sessions import SessionTable
from mictlanfs_server.router.settings import RouterSettings
from mictlanfs_server.router.status import StatusReport
from mictlanfs_server.router.upkeep.desk import UpkeepDesk
from mictlanfs_server.router.upkeep.healer import Healer
from mictlanfs_server.router.verifying import CopyVerifier
from mictlanfs_server.serving import Listener, serve
from mictlanfs_server.tracing import trace_settings, traced, tracing
from mictlanfs_server.v4.entry import DoorApplication, Entry, LazyDoor

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

_GRANTS_HEADER = (wire.HEADER_GRANTS.encode(), b"1")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a running router answers with."""

    peer_map: PublicPeerMap
    handlers: RouterHandlers
    report: StatusReport
    collector: Collector
    gate: LeaseGate
    healer: Healer
    keeper: MetadataKeeper
    verifier: CopyVerifier
    auditor: Auditor

    def routes(self) -> list[MessageRoute]:
        """All messages that are answered without leases."""
        return [*self.handlers.routes(), self._snapshot_route()]

    def _snapshot_route(self) -> MessageRoute:
        async def snapshot(_: wire.Done) -> Struct:
            return await self.keeper.snapshot()

        path, purpose = wire.Path.METADATA_SNAPSHOT, "copy the metadata to peers now"
        return MessageRoute(path, wire.Done, snapshot, purpose)


class _Router:
    """The files of a router, and its parts while it runs."""

    def __init__(self, settings: RouterSettings, clock: Clock, transport: Transport | None) -> None:
        self._settings = settings
        self._clock = clock
        self._transport = transport
        self._data = DataDirectory(settings.data)
        self._parts: _Parts | None = None
        try:
            self._store = SqliteStore(self._data.database, clock.wall_ns)
        except BaseException:
            self._data.close()
            raise

    @property
    def parts(self) -> _Parts:
        """What it answers with, while it runs."""
        assert self._parts is not None, "the router does not run"
        return self._parts

    @asynccontextmanager
    async def running(self) -> AsyncIterator[_Parts]:
        """Everything at work inside the block, everything durable and closed behind it."""
        async with AsyncExitStack() as stack:
            stack.callback(self.unlock)
            stack.push_async_callback(self._store.close)
            await self._store.start()
            transport = self._transport
            if transport is None:
                own = transport = HttpTransport()
                stack.push_async_callback(own.aclose)
            parts = self._parts = await self._build(transport)
            tasks = [
                asyncio.create_task(parts.collector.run(), name="router-collector"),
                asyncio.create_task(parts.gate.run(), name="router-leases"),
                asyncio.create_task(parts.healer.run(), name="router-healer"),
                asyncio.create_task(parts.keeper.run(), name="router-snapshots"),
                asyncio.create_task(parts.verifier.run(), name="router-verifier"),
                asyncio.create_task(parts.auditor.run(), name="router-auditor"),
            ]
            try:
                yield parts
            finally:
                for task in tasks:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    async def _build(self, transport: Transport) -> _Parts:
        settings, clock, store = self._settings, self._clock, self._store
        saved = await store.peer_map()
        if unfinished := await store.drop_unfinished_snapshots():
            log.warning("%d snapshots were not completed and are removed", unfinished)
        membership = Membership(
            clock,
            store.space_id,
            saved,
            await store.peer_book(),
            suspect_s=settings.peer_suspect_s,
            down_s=settings.peer_down_s,
            number_min=store.peer_number_min,
        )
        peer_map = PublicPeerMap(store, membership, saved)
        await peer_map.publish()
        sessions = SessionTable(clock, settings.session_ttl_s, await store.sessions())
        times = (settings.lease_ttl_s, settings.session_ttl_s)
        earlier_ttl_s = await agree_on_lease_time(store, sessions, *times)
        gate = LeaseGate(store, sessions, clock, settings.lease_ttl_s, earlier_ttl_s)
        healer = Healer(settings, store, membership, transport, clock)
        await healer.prepare()
        desk = UpkeepDesk(store, membership, peer_map, healer)
        keeper = MetadataKeeper(
            *(store, lambda: peer_map.peer_map.peers, transport, clock),
            *(self._data.path, settings.snapshot_interval_s),
        )
        parts = (store, sessions, membership, peer_map)
        verifier = CopyVerifier(store, membership, transport, clock, healer.wake)
        auditor = Auditor(settings, store, membership, verifier, clock)
        more = [*verifier.routes(), *auditor.routes()]
        return _Parts(
            peer_map,
            RouterHandlers(settings, *parts, gate, desk, more),
            StatusReport(
                store,
                membership,
                sessions,
                clock,
                settings.router_id,
                gate.table.counts,
                healer.status,
                keeper.status,
                verifier.damaged,
            ),
            Collector(settings, *parts, transport, clock, gate.end, keeper),
            gate,
            healer,
            keeper,
            verifier,
            auditor,
        )

    @asynccontextmanager
    async def open_door(self) -> AsyncIterator[DoorApplication]:
        """The MictlanX v4 interface of the running router."""
        # Imported when somebody asks for it: see `entry`.
        from mictlanfs_server.v4.routerapp import open_router_door

        settings = self._settings
        door = open_router_door(
            self.parts.handlers,
            self._clock,
            router_id=settings.router_id,
            space_id=self._store.space_id,
            cache=settings.cache,
            verifies=settings.verifies_checksums,
        )
        async with door as application:
            yield application

    def stop_waiting(self) -> None:
        """End every request that waits for a lease or for events, so that the router can stop."""
        if self._parts is not None:
            self._parts.gate.stop()

    def peer_map_header(self) -> bytes:
        """The version of the peer map; 0 before the router is ready."""
        return self._parts.peer_map.header if self._parts else b"0"

    def unlock(self) -> None:
        """Let go of the data directory; can be repeated."""
        self._data.close()


class RouterApp:
    """The ASGI application of a router.

    Attributes:
        direct: endpoints of messages, for POST, by path; there while the router runs.
        looks: endpoints of what is looked at, for GET, by path.
        meters: of all requests.
    """

    def __init__(self, router: _Router, front: FrontSettings) -> None:
        self._router = router
        self._front = front
        self._door = LazyDoor(router.open_door)
        self._routes: list[Route] = []
        self.direct: dict[str, ASGIApp] = {}
        self.looks: dict[str, ASGIApp] = {}
        self.meters = Meters()
        framework = LazyFramework(self._make_framework)
        # What pages of other origins may do holds for the door, too.
        self._app = self._with_header(
            across_origins(Entry(framework, self._door, front.prefix), front.cross_origin)
        )

    def _with_header(self, app: ASGIApp) -> ASGIApp:
        return HeaderMiddleware(app, wire.HEADER_PEER_MAP, self._router.peer_map_header)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "lifespan":
            await run_lifespan(self.running, receive, send)
        else:
            await self._app(scope, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The router at work inside the block."""
        async with self._router.running() as parts:
            self._routes = _message_routes(parts)
            for route in self._routes:
                self.direct[route.path] = self._with_header(route.app)
            for path, handler in self._look_handlers(parts).items():
                self.looks[path] = self._with_header(answering(handler))
            log_event(log, "SERVICE.STARTUP", version=__version__)
            try:
                yield
            finally:
                await self._door.close()
                log_event(log, "SERVICE.SHUTDOWN")

    def _look_handlers(self, parts: _Parts) -> dict[str, Callable[[], Awaitable[Response]]]:
        async def status() -> Response:
            """The state of the space: peers, sessions, counts, problems as sentences."""
            return json_response(await parts.report.status())

        async def health() -> Response:
            """Whether the router serves; it answers only when it does."""
            return json_response({"status": "ok"})

        async def metrics() -> Response:
            """What Prometheus scrapes: requests, the space, the process."""
            return await metrics_response(families(await parts.report.status(), self.meters))

        return {wire.Path.STATUS: status, wire.Path.HEALTH: health, METRICS_PATH: metrics}

    def _make_framework(self) -> ASGIApp:
        # Imported when somebody asks for more than messages: see `framework`.
        from mictlanfs_server.router.described import described_app

        parts = self._router.parts
        return described_app(
            self._front,
            self._routes,
            [*parts.routes(), *parts.handlers.reads()],
            self._look_handlers(parts),
            self._door.describe,
        )

    def stop_waiting(self) -> None:
        """End every request that waits, so that the router can stop."""
        self._router.stop_waiting()

    def unlock(self) -> None:
        """Let go of the data directory; can be repeated."""
        self._router.unlock()


def create_app(
    settings: RouterSettings,
    front: FrontSettings = DEFAULT_FRONT,
    *,
    clock: Clock | None = None,
    transport: Transport | None = None,
) -> RouterApp:
    """A router over `settings.data`, which it locks at once and until its lifespan ends.

    Args:
        settings: of the router.
        front: how its HTTP interface presents itself.
        clock: for tests; the system's clocks otherwise.
        transport: how peers are reached; one of its own otherwise.

    Raises:
        UsageError: the data directory is in use, of a newer version, or cannot be used.
    """
    return RouterApp(_Router(settings, clock or SystemClock(), transport), front)


def _message_routes(parts: _Parts) -> list[Route]:
    return [
        *(_read_route(route) for route in parts.handlers.reads()),
        *(message_route(route.path, route.request_type, route.handler) for route in parts.routes()),
    ]


def _read_route(route: ReadRoute) -> Route:
    async def answer(request: Struct, session: bytes | None) -> Struct | Reply:
        found = await route.handler(request, session)
        if not isinstance(found, LeasedAnswer):
            return found
        if isinstance(found.answer, MictlanError):
            failure = to_mictlan_error(found.answer, route.path)
            status, body = HTTP_STATUS[failure.kind], wire.encode_error(failure)
        else:
            status, body = 200, wire.encode(found.answer)
        return Reply(status, b"".join(wire.frame(found.grants, [body])), (_GRANTS_HEADER,))

    return header_route(route.path, route.request_type, answer, wire.HEADER_SESSION)


def run(
    settings: RouterSettings, *, on_listening: Callable[[Listener], None] | None = None
) -> None:
    """Serve a router until SIGTERM, SIGINT or the end of the lifeline. Blocks.

    Args:
        settings: of the router.
        on_listening: called once with the address, when the socket is bound.

    Raises:
        UsageError: the data directory or the address cannot be used.
        SystemExit: the router could not start; the reason is in the log.
    """
    log_to_stderr(settings.router_id, settings.logs)
    variables.log_router_ineffective(os.environ)
    service = variables.SERVICE_NAME.value(os.environ)
    with tracing(trace_settings(os.environ, service, settings.router_id)):
        _run(settings, on_listening)


def _run(settings: RouterSettings, on_listening: Callable[[Listener], None] | None) -> None:
    app = create_app(settings, front_settings(os.environ))
    try:
        serve(
            traced(DirectRoutes(app, app.direct, app.meters, app.looks)),
            name=settings.router_id,
            host=settings.host,
            port=settings.port,
            insecure=settings.insecure,
            lifeline_fd=settings.lifeline_fd,
            on_listening=on_listening,
            on_stopping=app.stop_waiting,
            joined_answers=True,
            logs=None,
        )
    finally:
        # The lifespan never ran when the address was refused.
        app.unlock()
