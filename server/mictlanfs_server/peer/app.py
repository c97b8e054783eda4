"""The peer process put together: folder, index, back end, store, endpoints, link to the router.

The only module of the peer that knows the web framework and which back end is used. Chunk requests
go to `handlers.py` past the framework; everything else is small and goes through it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from mictlanfs import __version__, wire
from mictlanfs.client.transport import HttpTransport
from mictlanfs.clock import SystemClock
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.identifiers import boot_id
from mictlanfs.logsetup import log_to_stderr
from mictlanfs.model import KIB
from mictlanfs_server.environment import log_peer_ineffective
from mictlanfs_server.framework import LazyFramework, answering, run_lifespan
from mictlanfs_server.http import (
    METRICS_PATH,
    json_response,
    metrics_response,
)
from mictlanfs_server.metering import Meters
from mictlanfs_server.peer.backends.file import FileBackend
from mictlanfs_server.peer.capacity import Capacity
from mictlanfs_server.peer.folder import DataFolder, PeerIdentity
from mictlanfs_server.peer.handlers import ChunkHandlers
from mictlanfs_server.peer.localserver import LocalServer
from mictlanfs_server.peer.localwrites import LocalWrites
from mictlanfs_server.peer.metrics import families
from mictlanfs_server.peer.objecthandlers import ObjectHandlers
from mictlanfs_server.peer.objects import ObjectStore
from mictlanfs_server.peer.popularity import ReadCounter
from mictlanfs_server.peer.pulling import Puller
from mictlanfs_server.peer.rebuilding import Rebuilder
from mictlanfs_server.peer.registration import Registration, reachable_url
from mictlanfs_server.peer.reindexing import open_index
from mictlanfs_server.peer.sharers import Sharers
from mictlanfs_server.peer.store import ChunkStore
from mictlanfs_server.peer.verification import Verification
from mictlanfs_server.serving import Listener, serve
from mictlanfs_server.tracing import trace_settings, traced, tracing
from mictlanfs_server.v4.entry import DoorApplication, Entry, LazyDoor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp

    from mictlanfs_server.peer.settings import PeerSettings
    from mictlanfs_server.serving import Message

log = logging.getLogger(__name__)

# `service.name` in the traces of peers; the instance is the id.
TRACE_SERVICE = "mictlanx-peer"
# What the index and its log grow by with the chunks that fill a disk, besides their bytes.
INDEX_ROOM_BYTES = 64 * KIB


class LinkStatus(msgspec.Struct, frozen=True):
    """The link to the router, for people; see `LinkState`."""

    router: str
    is_registered: bool
    number: int | None
    error: str


class Status(msgspec.Struct, frozen=True):
    """The state of a peer, for people and scripts. Sizes in bytes."""

    id: str
    version: str
    space_id: str
    zone: str
    capacity: int
    used: int
    chunk_count: int
    is_full: bool
    backend: str
    link: LinkStatus
    store_id: str
    scrub: dict[str, int | bool]


class PeerApp:
    """The ASGI application of one peer, and what it is made of.

    The data folder is locked, and the index made to agree with it, before this is there; the
    application's lifespan ends both.

    Raises:
        UsageError: the folder cannot be used.
        MictlanError: the index cannot be used.
    """

    def __init__(self, settings: PeerSettings) -> None:
        self._settings = settings
        self._listener: Listener | None = None
        self._folder = DataFolder(settings.data)
        self._identity: PeerIdentity | None = None
        try:
            self._objects = _open_objects(settings)
            self.store, was_rebuilt = _open_store(settings)
        except BaseException:
            self._folder.close()
            raise
        self._transport = HttpTransport()
        self._local = LocalServer(self.store.open_file)
        self._local_writes = LocalWrites(self.store.put_file)
        self._registration = Registration(
            settings.router_urls,
            self._describe,
            self._folder,
            self._transport,
            self._on_refused,
            on_welcome=self._on_welcome,
        )
        self._reads = ReadCounter(SystemClock())
        self._chunks = ChunkHandlers(
            self.store,
            Puller(self.store, self._transport),
            Rebuilder(self.store, self._transport),
            self._reads,
        )
        self._kept = ObjectHandlers(self._objects, self.store)
        self.verification = Verification(self.store, settings, self._transport, self._router)
        if was_rebuilt:
            # What damaged the index may have damaged chunks.
            self.verification.scrubber.begin()
        self._meters = Meters()
        self._door = LazyDoor(self._open_door)
        self._looks = {path: answering(look) for path, look in self._look_handlers().items()}
        self._framework = Entry(LazyFramework(self._make_framework), self._door)

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "lifespan":
            await run_lifespan(self.running, receive, send)
            return
        path = scope["path"]
        look = self._looks.get(path) if scope["method"] == "GET" else None
        if self._chunks.is_ours(path):
            template = self._chunks.template(path)
            await self._meters.run(self._chunks, template, scope, receive, send)
        elif self._kept.is_ours(path):
            await self._meters.run(self._kept, self._kept.template(path), scope, receive, send)
        elif look is not None:
            await self._meters.run(look, path, scope, receive, send)
        elif path in self.verification.handlers.paths:
            await self._meters.run(self.verification.handlers, path, scope, receive, send)
        else:
            await self._meters.run(self._framework, None, scope, receive, send)

    def on_listening(self, listener: Listener) -> None:
        """Take note of where the peer answers, and of how it is stopped."""
        self._listener = listener

    def status(self) -> Status:
        """The state of the peer now."""
        link = self._registration.state
        return Status(
            id=self._settings.peer_id,
            version=__version__,
            space_id=self._folder.space_id,
            zone=self._settings.zone,
            capacity=self.store.capacity_bytes,
            used=self.store.used_bytes,
            chunk_count=self.store.chunk_count,
            is_full=self.store.is_full,
            backend="file",
            link=LinkStatus(link.router, link.is_registered, link.number, link.error),
            store_id=self._folder.store_id,
            scrub=msgspec.structs.asdict(self.verification.scrubber.state()),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the peer registered while it serves; then leave, and let go of everything."""
        task = asyncio.create_task(self._registration.run())
        task.add_done_callback(self._on_link_ended)
        upkeep = asyncio.create_task(self.verification.run(), name="peer-verification")
        try:
            yield
        finally:
            await self._door.close()
            task.cancel()
            upkeep.cancel()
            await asyncio.wait([task, upkeep])
            self._local.close()
            await self._local_writes.aclose()
            await self._registration.leave()
            await self._transport.aclose()
            await self.store.aclose()
            self.close()

    @asynccontextmanager
    async def _open_door(self) -> AsyncIterator[DoorApplication]:
        """The MictlanX v4 interface of this peer."""
        # Imported when somebody asks for it: see `entry`.
        from mictlanfs_server.v4.peerapp import open_peer_door

        door = open_peer_door(
            self._settings.router_urls,
            SystemClock(),
            peer_id=self._settings.peer_id,
            usage=lambda: (self.store.used_bytes, self.store.capacity_bytes),
            verifies=self._settings.verifies_checksums,
        )
        async with door as application:
            yield application

    def close(self) -> None:
        """Let go of the store and the folder. Blocks; twice is once."""
        self.store.close()
        self._objects.close()
        self._folder.close()

    def _look_handlers(self) -> dict[str, Callable[[], Awaitable[Response]]]:
        async def health() -> Response:
            """Answers as long as the peer serves."""
            return json_response({"status": "ok"})

        async def status() -> Response:
            """The state of the peer."""
            return json_response(self.status())

        async def metrics() -> Response:
            """What Prometheus scrapes: requests, the peer, the process."""
            is_registered = self._registration.state.is_registered
            return await metrics_response(
                families(
                    self.store,
                    self._meters,
                    self.verification.scrubber.state(),
                    bad_count=self.verification.inspector.bad_count,
                    is_registered=is_registered,
                )
            )

        return {wire.Path.HEALTH: health, wire.Path.STATUS: status, METRICS_PATH: metrics}

    def _make_framework(self) -> ASGIApp:
        # Imported when somebody asks for more than chunks: see `framework`.
        from mictlanfs_server.peer.described import described_app

        return described_app(self._look_handlers(), self._door.describe)

    def _describe(self) -> wire.PeerAnnounce:
        settings = self._settings
        return wire.PeerAnnounce(
            protocol=wire.PROTOCOL_VERSION,
            id=settings.peer_id,
            url=self._url(),
            zone=settings.zone,
            capacity=self.store.capacity_bytes,
            used=self.store.used_bytes,
            chunk_count=self.store.chunk_count,
            is_full=self.store.is_full,
            boot_id=boot_id(),
            space_id=self._folder.space_id,
            store_id=self._folder.store_id,
            hot=self._reads.hottest(),
        )

    def _router(self) -> str | None:
        link = self._registration.state
        return link.router if link.is_registered else None

    def _url(self) -> str:
        if self._settings.advertise is not None:
            return self._settings.advertise
        if self._listener is None:
            raise MictlanError(Kind.INTERNAL, detail="the peer does not listen yet")
        return reachable_url(self._listener.url, self._registration.state.router)

    def _on_welcome(self, space_id: str) -> None:
        """A router knows this peer: whoever looks for it later should, too."""
        self._local.listen(space_id, self._settings.peer_id)
        self._local_writes.listen(space_id, self._settings.peer_id)
        number = self._registration.state.number
        assert number is not None, "welcomed without a number"
        settings = self._settings
        identity = PeerIdentity(settings.peer_id, number, self._url(), settings.zone)
        if identity != self._identity:
            self._identity = identity
            try:
                self._folder.remember_peer(identity)
            except OSError as error:
                # Only a restore from this folder alone would miss it.
                log.warning("who this peer is cannot be noted: %s", error)

    def _on_refused(self, error: MictlanError) -> None:
        if self._listener is not None:
            self._listener.stop(error)

    def _on_link_ended(self, task: asyncio.Task[None]) -> None:
        """A link that ends by a bug must not leave a peer that nobody finds."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the link to the router failed", exc_info=error)
            self._on_refused(MictlanError(Kind.INTERNAL, detail=f"the link failed: {error!r}"))


def create_app(settings: PeerSettings) -> PeerApp:
    """The application of a peer; see `PeerApp`."""
    return PeerApp(settings)


def run(settings: PeerSettings) -> None:
    """Run a peer until it is stopped. Blocks.

    Raises:
        UsageError: the folder, the address or the router does not let it run.
        MictlanError: the index cannot be used, or the link to the router failed.
    """
    # Before anything is opened: what was lost is reported then.
    log_to_stderr(settings.peer_id, settings.logs)
    log_peer_ineffective(os.environ)
    with tracing(trace_settings(os.environ, TRACE_SERVICE, settings.peer_id)):
        _run(settings)


def _run(settings: PeerSettings) -> None:
    app = create_app(settings)
    try:
        serve(
            traced(app),
            name=settings.peer_id,
            host=settings.host,
            port=settings.port,
            insecure=settings.insecure,
            lifeline_fd=settings.lifeline_fd,
            on_listening=app.on_listening,
            direct_bodies=True,
            logs=None,
        )
    finally:
        # The lifespan did this already, unless the server never came up.
        app.close()


def _open_objects(settings: PeerSettings) -> ObjectStore:
    try:
        return ObjectStore(settings.data, fsync=settings.is_fsynced)
    except OSError as error:
        raise UsageError(f"{settings.data} cannot hold the data of a peer: {error}") from error


def _open_store(settings: PeerSettings) -> tuple[ChunkStore, bool]:
    """The chunks of a peer, and whether their index had to be made anew."""
    try:
        backend = FileBackend(settings.data, fsync=settings.is_fsynced)
        index, was_rebuilt = open_index(
            settings.data, settings.peer_id, backend, fsync=settings.is_fsynced
        )
    except OSError as error:
        raise UsageError(f"{settings.data} cannot hold the data of a peer: {error}") from error
    capacity = Capacity(
        settings.capacity,
        settings.reserve + INDEX_ROOM_BYTES,
        backend.free_bytes,
        lambda: index.totals.used_bytes,
        Sharers(settings.sharers, settings.sharers_file),
    )
    return ChunkStore(index, backend, capacity), was_rebuilt
