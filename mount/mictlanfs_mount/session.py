"""One mount from start to end: build the parts, serve the kernel, take everything down in order.

Owns the nursery of the mount, its signals and the order of teardown::

    connecting --(session granted)--> mounted --(the mount answers a stat)--> ready
        |                                |                                      |
        +--(error: nothing is mounted)   +--(umount, or SIGTERM, SIGINT, SIGHUP)+
                                                          |
                   flush everything -> unmounted -> session closed -> ended

There is one mount per process: pyfuse3 keeps its state in module globals.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pyfuse3
import trio

from mictlanfs import paths, wire
from mictlanfs.client.chunks import ChunkStore, open_chunk_store
from mictlanfs.client.localpeers import LocalPeers, open_local_peers
from mictlanfs.client.localwrites import LocalWriter
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session, open_session
from mictlanfs.client.transport import HttpTransport
from mictlanfs.clock import Clock
from mictlanfs.config import WRITE_THROUGH, MountOptions
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.identifiers import boot_id, reader_number
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from mictlanfs.processes import collect_garbage_rarely, raise_descriptor_limit
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs.uri import parse_routers
from mictlanfs_mount.attaching import attach
from mictlanfs_mount.attributes import Presentation
from mictlanfs_mount.chunkcache.cache import ChunkCache, open_chunk_cache
from mictlanfs_mount.chunkcache.disk import DiskLimits
from mictlanfs_mount.content import Content
from mictlanfs_mount.durable import DurableFileSystem
from mictlanfs_mount.filesystem import FileSystem
from mictlanfs_mount.handshake import Handshake
from mictlanfs_mount.heap import keep_freed_memory
from mictlanfs_mount.inodes import InodeTable
from mictlanfs_mount.kernel import raise_limits
from mictlanfs_mount.kernelcache import NotifiedKernel
from mictlanfs_mount.kernelclock import open_kernel_clock
from mictlanfs_mount.leasekeeper import LeaseKeeper
from mictlanfs_mount.leases import LeaseTable
from mictlanfs_mount.notify import open_notifier
from mictlanfs_mount.operations import Operations
from mictlanfs_mount.requestloop import quick_requests
from mictlanfs_mount.salvage import Salvager
from mictlanfs_mount.selfreport import SelfReport
from mictlanfs_mount.settings import MountSettings
from mictlanfs_mount.stackdump import all_stacks
from mictlanfs_mount.strays import keep_strays_few
from mictlanfs_mount.virtual import VirtualFileSystem
from mictlanfs_mount.warming import Warming

log = logging.getLogger(__name__)

# A router that does not answer within this is reported at once instead of mounting.
CONNECT_DEADLINE_S = 5.0
# How long an unmount may take to store what is dirty while the space does not answer.
FLUSH_DEADLINE_S = 60.0
# The same before that, when a signal ends the mount, while it still answers.
FIRST_FLUSH_DEADLINE_S = 10.0
CACHE_SLOTS_MAX = 16
# How the memory is shared: dirty bytes and the memory cache each, names with their attributes.
BYTES_SHARE_PERCENT = 40
NAMES_SHARE_PERCENT = 20
# What a name takes with its inode.
KEPT_NAME_SIZE_BYTES = 1200
# Beside that, for where the bytes of large files are; and what an extent takes with its chunk.
EXTENTS_SHARE_PERCENT = 10
KEPT_EXTENT_SIZE_BYTES = 350
# Of so many names, inodes that no lease covers.
STRAYS_SHARE = 4
# Carried flags of `-o` that libfuse turns into flags of mount(2).
_MOUNT_FLAGS = frozenset({"dev", "nodev", "suid", "nosuid", "exec", "noexec", "noatime"})


def run_mount(settings: MountSettings, notify_ready: Callable[[], None]) -> None:
    """Mount a space and serve it until it is unmounted.

    Args:
        settings: what to mount and where; the mountpoint was checked before.
        notify_ready: called once, when the mount answers.

    Raises:
        MictlanError: the space cannot be reached or the kernel refuses; nothing is mounted then.
            UNAVAILABLE after the unmount: some bytes could not be stored.
        UsageError: a setting is wrong.
    """
    raise_descriptor_limit()
    collect_garbage_rarely()
    keep_freed_memory()
    with raising_single_errors():
        trio.run(_mount, settings, notify_ready)


async def _mount(settings: MountSettings, notify_ready: Callable[[], None]) -> None:
    options = settings.options
    routers = parse_routers(settings.uri)
    transport = HttpTransport()
    directory = PeerDirectory(trio.current_time, boot_id(), reader_number())
    retry = RetryPolicy(deadline_s=options.deadline_s)
    router = RouterClient(routers, transport, retry, on_peer_map_version=directory.notice_version)
    peers = PeerClient(transport)
    impatient = RouterClient(routers, transport, replace(retry, deadline_s=CONNECT_DEADLINE_S))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(transport.aclose)
        presentation = await _presentation(impatient, options)
        session = await stack.enter_async_context(
            open_session(
                router,
                str(settings.mountpoint),
                deadline_s=options.deadline_s,
                on_grant=lambda grant: directory.update(grant.peer_map),
                leases=options.leases,
            )
        )
        space_id = session.grant.space_id
        writer = stack.enter_context(closing(_local_writer(space_id, options)))
        asked = (router.inline, router.locate, router.report, writer.put)
        chunks = await stack.enter_async_context(
            open_chunk_store(peers, directory, router.peer_map, retry, *asked)
        )
        local = await stack.enter_async_context(open_local_peers(directory, space_id, boot_id()))
        cache = await stack.enter_async_context(_open_cache(chunks, options, space_id, local))
        clock, inodes = stack.enter_context(open_kernel_clock()), InodeTable()
        nursery = await stack.enter_async_context(trio.open_nursery())
        content = _content(nursery, router, session, chunks, cache, inodes, clock, options)
        filesystem = _filesystem(router, session, content, inodes, clock, options)
        kernel_requests: Counter[str] = Counter()
        salvager = Salvager(nursery, session, content.writeback, inodes, clock, settings)
        filesystem.salvager = salvager
        if options.leases and session.grant.lease_ttl_s:
            keeper = _lease(filesystem, router, session, clock, salvager, options)
            nursery.start_soon(keeper.follow_events, filesystem)
        filesystem.views = SelfReport(
            settings,
            router,
            peers,
            session,
            directory,
            cache.stats,
            content.writeback.budget,
            filesystem,
            kernel_requests,
            content.defragmenter.stats,
            chunks.race_stats,
            lambda: writer.stored_count,
            Warming(cache, content.know_extents),
        ).views()
        content.start_upkeep()
        operations = Operations(filesystem, presentation, kernel_requests)
        await _serve(settings, filesystem, salvager, operations, notify_ready)
        nursery.cancel_scope.cancel()


def _content(
    nursery: trio.Nursery,
    router: RouterClient,
    session: Session,
    chunks: ChunkStore,
    cache: ChunkCache,
    inodes: InodeTable,
    clock: Clock,
    options: MountOptions,
) -> Content:
    return Content(
        nursery,
        router,
        session,
        chunks,
        cache,
        inodes,
        clock,
        dirty_size_bytes_max=options.memory * BYTES_SHARE_PERCENT // 100,
        deadline_s=options.deadline_s,
        inline_size_max=options.inline_size_max,
        extents_max=options.memory * EXTENTS_SHARE_PERCENT // 100 // KEPT_EXTENT_SIZE_BYTES,
    )


def _filesystem(
    router: RouterClient,
    session: Session,
    content: Content,
    inodes: InodeTable,
    clock: Clock,
    options: MountOptions,
) -> VirtualFileSystem:
    is_durable = options.sync or options.dirsync
    return (DurableFileSystem if is_durable else VirtualFileSystem)(
        router,
        session,
        content,
        inodes,
        clock,
        attr_timeout_s=options.attr_timeout_s,
        # What was written to mapped memory comes when the file is closed.
        sync_on_close=options.sync_on_close or options.sync,
    )


def _lease(
    filesystem: VirtualFileSystem,
    router: RouterClient,
    session: Session,
    clock: Clock,
    salvager: Salvager,
    options: MountOptions,
) -> LeaseKeeper:
    """Let the file system keep what it is told, and be ahead of the router, under leases."""
    table = LeaseTable(clock, _names_max(options))
    keeper = filesystem.keeper = LeaseKeeper(router, session, table, clock)
    filesystem.writes_through = options.metadata == WRITE_THROUGH
    router.lessee = keeper
    salvager.table = table

    def on_replaced(grant: wire.SessionGrant) -> None:
        # Without an await: nothing of the lost session is committed under the new one.
        salvager.note_paths()
        keeper.on_grant(grant)
        if salvager.take_dirty():
            filesystem.note_loss()

    session.on_replaced = on_replaced
    return keeper


def _names_max(options: MountOptions) -> int:
    return options.memory * NAMES_SHARE_PERCENT // 100 // KEPT_NAME_SIZE_BYTES


async def _presentation(router: RouterClient, options: MountOptions) -> Presentation:
    """Reach the space for the first time and find what is to be mounted."""
    root: InodeNumber = ROOT_INODE
    names = tuple(os.fsencode(options.subdir).split(b"/")) if options.subdir else ()
    nodes = await router.resolve(wire.Resolve(names))
    if names:
        if len(nodes) <= len(names):
            raise UsageError(f"subdir {options.subdir!r} does not exist in the space")
        if nodes[-1].attributes.kind is not FileKind.DIRECTORY:
            raise UsageError(f"subdir {options.subdir!r} is not a directory")
        root = nodes[-1].attributes.ino
    return Presentation(root, options.uid, options.gid, options.umask or 0)


def _local_writer(space_id: str, options: MountOptions) -> LocalWriter:
    """Writes into files of peers on this machine; without `short_circuit` none is on it."""
    return LocalWriter(space_id, boot_id() if options.short_circuit else "")


@asynccontextmanager
async def _open_cache(
    chunks: ChunkStore, options: MountOptions, space_id: str, local_peers: LocalPeers
) -> AsyncIterator[ChunkCache]:
    """The chunk cache in the directory the user named, or in the first free one of ours."""
    async with AsyncExitStack() as stack:
        for directory in _cache_directories(options, space_id):
            try:
                cache = await stack.enter_async_context(
                    open_chunk_cache(
                        chunks.fetch,
                        fetch_many=chunks.fetch_many,
                        memory_budget=options.memory * BYTES_SHARE_PERCENT // 100,
                        directory=directory,
                        limits=DiskLimits(size_max=options.cache_size),
                        local_peers=local_peers if options.short_circuit else None,
                        on_damaged=chunks.complaints.note,
                    )
                )
                break
            except MictlanError as error:
                if options.cache_dir is not None or error.kind is not Kind.BUSY:
                    raise
        else:
            raise MictlanError(
                Kind.BUSY, "open cache", "", f"{CACHE_SLOTS_MAX} mounts use the default caches"
            )
        yield cache


def _cache_directories(options: MountOptions, space_id: str) -> list[Path]:
    if options.cache_dir is not None:
        return [options.cache_dir]
    return [paths.cache_dir() / f"{space_id}-{slot}" for slot in range(CACHE_SLOTS_MAX)]


async def _serve(
    settings: MountSettings,
    filesystem: VirtualFileSystem,
    salvager: Salvager,
    operations: Operations,
    notify_ready: Callable[[], None],
) -> None:
    try:
        source = settings.options.fsname or settings.uri
        attachment = attach(operations, settings.mountpoint, source, _kernel_options(settings))
    except RuntimeError as error:
        detail = f"the kernel refused the mount ({error}); its reason is in the lines above"
        raise MictlanError(
            Kind.NOT_PERMITTED, "mount", os.fspath(settings.mountpoint), detail
        ) from error
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_handle_signals, filesystem)
            nursery.start_soon(_dump_stacks_on_request)
            nursery.start_soon(_announce, settings, notify_ready)
            handshake = Handshake(operations.take_over_set_ids)
            with (
                open_notifier() as notifier,
                quick_requests(is_wanted=settings.options.spin, handshake=handshake),
            ):
                kernel = NotifiedKernel(notifier, operations.to_kernel)
                filesystem.kernel = salvager.kernel = kernel
                strays_max = _names_max(settings.options)
                if filesystem.keeper is not None:
                    # Without leases all inodes are strays.
                    strays_max //= STRAYS_SHARE
                nursery.start_soon(keep_strays_few, filesystem.inodes, kernel, strays_max)
                await pyfuse3.main()
                filesystem.kernel = salvager.kernel = None
            lost_bytes = await filesystem.flush_all(FLUSH_DEADLINE_S)
            kept = await salvager.take_all()
            nursery.cancel_scope.cancel()
    finally:
        attachment.close()
    log.info("unmounted %s", settings.mountpoint)
    if lost_bytes or kept:
        detail = f"{lost_bytes} bytes written before could not be stored: the space refused them"
        if kept:
            detail += f"; what is missing is kept in {kept}, see 'mictlanfs recover'"
        raise MictlanError(Kind.UNAVAILABLE, "unmount", os.fspath(settings.mountpoint), detail)


def _kernel_options(settings: MountSettings) -> set[str]:
    options = settings.options
    chosen = {*pyfuse3.default_options, "default_permissions"}
    if options.allow_other:
        chosen.add("allow_other")
    if options.read_only:
        chosen.add("ro")
    if options.sync:
        # The kernel then sends an fsync behind every write.
        chosen.add("sync")
    if options.dirsync:
        chosen.add("dirsync")
    return chosen | (_MOUNT_FLAGS & set(options.carried))


async def _announce(settings: MountSettings, notify_ready: Callable[[], None]) -> None:
    """Wait until the mount answers through the kernel, then tune it and tell that it is ready."""
    # In a thread: the answer comes from this very loop.
    limits = await trio.to_thread.run_sync(
        raise_limits, settings.mountpoint, settings.options.read_ahead_kib
    )
    log.info(
        "mounted %s at %s (read-ahead %s KiB, background %s)",
        settings.uri,
        settings.mountpoint,
        limits.read_ahead_kib or "default",
        limits.max_background or "default",
    )
    notify_ready()


async def _handle_signals(filesystem: FileSystem) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            # Once while the mount still answers, so that applications are held up shortly.
            await filesystem.flush_all(FIRST_FLUSH_DEADLINE_S)
            pyfuse3.terminate()


async def _dump_stacks_on_request() -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            log.info("tasks:\n%s", all_stacks())
