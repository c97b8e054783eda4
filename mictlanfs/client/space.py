"""A space as a program sees it: the verbs of the client library.

Owns nothing but the wiring: transport, router, peers, chunk store and the session, which is opened
at the first change. A path is `BUCKET/a/b`, text or bytes. Any number of tasks may use one client
at once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from mictlanfs import uri as uris
from mictlanfs import wire
from mictlanfs.client.caller import Caller
from mictlanfs.client.chunks import ChunkStore, open_chunk_store
from mictlanfs.client.copytree import CopyEvents, TreeGet, TreePut
from mictlanfs.client.download import Downloader, open_sink
from mictlanfs.client.inline import INLINE_SIZE_BYTES_DEFAULT
from mictlanfs.client.lazysession import LazySession
from mictlanfs.client.names import Names, parse_path, show_path
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.recode import Recoded, Recoder
from mictlanfs.client.recovering import Applier, Outcome
from mictlanfs.client.removal import remove_tree
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.router import RouterClient
from mictlanfs.client.sources import open_source
from mictlanfs.client.transport import HttpTransport
from mictlanfs.client.trash import Trash
from mictlanfs.client.tree import Tree
from mictlanfs.client.upload import Uploader, new_directories
from mictlanfs.client.verifying import SpaceVerifier
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import boot_id, reader_number
from mictlanfs.model import ROOT_INODE, Attributes, BucketPolicy, FileKind, Node, PeerState
from mictlanfs.protection import Protection, protection_of
from mictlanfs.recoveries import RecoveryFile
from mictlanfs.taskerrors import raising_single_errors

Progress = Callable[[int], None]


@asynccontextmanager
async def open_space(
    uri: str,
    *,
    label: str = "client",
    retry: RetryPolicy | None = None,
    caller: Caller | None = None,
    transport: HttpTransport | None = None,
    inline_size_max: int = INLINE_SIZE_BYTES_DEFAULT,
) -> AsyncIterator[SpaceClient]:
    """A client of the space at `uri`, with the tasks it needs, inside the block.

    Entering sends nothing; a space that cannot be reached shows at the first verb. Errors leave
    the block as they are, without an exception group.

    Args:
        uri: names the routers, as in `mictlanx://router@127.0.0.1:60666/?protocol=http`.
        label: what `status` shows of this client while it makes changes.
        retry: how long requests are tried again; the same deadline bounds a change.
        caller: owner of what is made; by default the user of this process.
        transport: by default one of its own; closed on leaving in either case.
        inline_size_max: objects of at most so many bytes are kept in the metadata; 0 for none.
            They have as many copies as the metadata has.

    Cancellation: changes not answered yet may or may not be applied.

    Raises:
        UsageError: `uri` is wrong.
    """
    routers = uris.parse_routers(uri)
    retry = retry or RetryPolicy()
    transport = transport or HttpTransport()
    directory = PeerDirectory(trio.current_time, boot_id(), reader_number())
    peers = PeerClient(transport)
    router = RouterClient(routers, transport, retry, on_peer_map_version=directory.notice_version)
    with raising_single_errors():
        try:
            async with (
                open_chunk_store(
                    peers,
                    directory,
                    router.peer_map,
                    retry,
                    router.inline,
                    router.locate,
                    router.report,
                ) as chunks,
                trio.open_nursery() as nursery,
            ):
                sessions = LazySession(
                    nursery,
                    router,
                    label,
                    retry.deadline_s,
                    lambda grant: directory.update(grant.peer_map),
                )
                yield SpaceClient(
                    router,
                    SpaceVerifier(router, peers),
                    chunks,
                    sessions,
                    caller or Caller.of_process(),
                    min(inline_size_max, wire.INLINE_CHUNK_SIZE_BYTES_MAX),
                )
                sessions.end()
        finally:
            with trio.CancelScope(shield=True):
                await transport.aclose()


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of a directory listing: a name and what it names."""

    name: bytes
    node: Node


class SpaceClient:
    """The verbs; made by `open_space`. All raise `MictlanError` and none retries by itself.

    Attributes:
        trash: what buckets keep of what they lost.
        verifier: those about the truth of what the space holds.
    """

    def __init__(
        self,
        router: RouterClient,
        verifier: SpaceVerifier,
        chunks: ChunkStore,
        sessions: LazySession,
        caller: Caller,
        inline_size_max: int = INLINE_SIZE_BYTES_DEFAULT,
    ) -> None:
        self.router = router
        self.verifier = verifier
        self._sessions = sessions
        self._caller = caller
        self._tree = Tree(router)
        self.trash = Trash(router, self._tree, sessions, caller)
        self._chunks = chunks
        self._uploader = Uploader(self._tree, chunks, caller, inline_size_max)
        self._downloader = Downloader(self._tree, chunks)

    # --- objects ---------------------------------------------------------------------------------

    async def put(
        self,
        source: Path | BinaryIO,
        bucket: str | bytes,
        path: str | bytes,
        *,
        keep_times: bool = False,
        progress: Progress | None = None,
    ) -> Attributes:
        """Store a local file or a stream as the object `path`; returns when it is durable.

        Readers see what was there before or the new object, whole. Missing directories are made.
        The object has the mode of the file less the umask (0644 for a stream), the owner of this
        client, and with `keep_times` the mtime of the file. A stream is read from where it stands
        and left open. `progress` is called with the number of bytes stored since the last call.

        Cancellation and errors: what was there before stays; after TIMED_OUT, or a cancellation
        at the very end, the new object may be there.

        Raises:
            MictlanError: NOT_FOUND (bucket or source), IS_DIRECTORY, NO_SPACE, ...
        """
        names = _names(bucket, path)
        opened = open_source(source)
        try:
            session = await self._sessions.get()
            return await self._uploader.put(
                session, opened, names, keep_times=keep_times, progress=progress
            )
        finally:
            opened.close()

    async def put_tree(
        self,
        source: Path,
        bucket: str | bytes,
        path: str | bytes,
        events: CopyEvents,
        *,
        keep_times: bool = False,
    ) -> None:
        """Copy what is in a local directory into the directory `path`; see `copytree`.

        Raises:
            MictlanError: nothing more can be copied; other errors go to `events`.
        """
        session = await self._sessions.get()
        copy = TreePut(self._tree, self._uploader, session, self._caller, events)
        await copy.put(source, _names(bucket, path), keep_times=keep_times)

    async def get(
        self,
        bucket: str | bytes,
        path: str | bytes,
        destination: Path | BinaryIO,
        *,
        progress: Progress | None = None,
    ) -> Attributes:
        """Fetch an object into a local file, or a stream, and return its attributes.

        A file gets its mode and mtime and appears under its name when it is complete; holes stay
        holes. A symlink is followed as long as it stays in its bucket. `progress` is called with
        the number of bytes written since the last call.

        Cancellation and errors: a local file stays as it was; a stream has got some of it.

        Raises:
            MictlanError: NOT_FOUND, IS_DIRECTORY, CORRUPT, STALE (changed meanwhile), ...
        """
        names = _names(bucket, path)
        found = await self._tree.find_content(names)
        node = found.node
        kind = node.attributes.kind
        if kind is FileKind.DIRECTORY:
            raise MictlanError(Kind.IS_DIRECTORY, "get", show_path(names))
        if kind is not FileKind.FILE:
            raise MictlanError(Kind.UNSUPPORTED, "get", show_path(names), "it has no content")
        if isinstance(destination, Path):
            return await self._downloader.get_whole(
                names, node, lambda: open_sink(destination), progress
            )
        # What a stream has got cannot be taken back, so a change meanwhile is an error.
        await self._downloader.get(node, open_sink(destination), progress)
        return node.attributes

    async def get_tree(
        self, bucket: str | bytes, path: str | bytes, destination: Path, events: CopyEvents
    ) -> None:
        """Copy what is in the directory `path` into a local directory; see `copytree`.

        Raises:
            MictlanError: nothing more can be copied; other errors go to `events`.
        """
        names = _names(bucket, path)
        node = await self._directory(names)
        copy = TreeGet(self._tree, self._downloader, events)
        await copy.get(node, names, destination)

    async def remove(
        self,
        path: str | bytes,
        *,
        recursive: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Remove a file or an empty directory, or with `recursive` all that is in it as well.

        `progress` is called with the number of names removed since the last call.

        Cancellation: some of it is gone.

        Raises:
            MictlanError: NOT_FOUND; NOT_EMPTY; INVALID for a bucket, see `remove_bucket`.
        """
        names = parse_path(path)
        if len(names) < 2:
            raise MictlanError(Kind.INVALID, "remove", show_path(names), "it is not in a bucket")
        await self._remove(names, recursive=recursive, progress=progress)

    async def stat(self, path: str | bytes) -> Node:
        """What a path names, with its first extents; a symlink itself is shown.

        Raises:
            MictlanError: NOT_FOUND, NOT_DIRECTORY.
        """
        found = await self._tree.find(parse_path(path), extents_max=wire.EXTENTS_PAGE_MAX)
        return found.node

    async def exists(self, path: str | bytes) -> bool:
        """Whether a path names anything.

        Raises:
            MictlanError: the space cannot be reached.
        """
        return (await self._tree.find(parse_path(path))).is_complete

    async def list(self, path: str | bytes = "") -> list[Listing]:
        """What is in a directory, in order of names; of anything else, itself.

        Raises:
            MictlanError: NOT_FOUND, NOT_DIRECTORY.
        """
        async with aclosing(self.iterate(path)) as listings:
            return [listing async for listing in listings]

    async def iterate(self, path: str | bytes = "") -> AsyncGenerator[Listing, None]:
        """Like `list`, without holding all of it in memory."""
        names = parse_path(path)
        node = (await self._tree.find(names)).node
        if node.attributes.kind is not FileKind.DIRECTORY:
            yield Listing(names[-1], node)
            return
        async with aclosing(self._tree.entries(node.attributes.ino)) as entries:
            async for entry in entries:
                yield Listing(entry.name, entry.node)

    def extents(self, node: Node) -> AsyncGenerator[wire.ExtentPage, None]:
        """Where the content of a file lies, page by page.

        Raises:
            MictlanError: STALE when the file changed since `node` was read.
        """
        return self._tree.extents(node)

    # --- buckets ---------------------------------------------------------------------------------

    async def make_bucket(self, name: str | bytes, policy: BucketPolicy | None = None) -> None:
        """Make a bucket; with a policy, or with that of the space.

        Raises:
            MictlanError: EXISTS; INVALID for a name or a policy that cannot be.
        """
        names = _bucket_names(name)
        session = await self._sessions.get()
        making, ino = await new_directories(session, self._caller, ROOT_INODE, names)
        ops: list[wire.Operation] = [*making]
        if policy is not None:
            ops.append(wire.SetBucketPolicy(ino, policy, time.time_ns()))
        try:
            await session.apply_all(ops, sync=True)
        except MictlanError as error:
            if policy is not None and error.kind is not Kind.EXISTS:
                await self._unmake_bucket(names)
            raise

    async def _unmake_bucket(self, names: Names) -> None:
        """Take back a bucket whose policy was refused."""
        try:
            await self._remove(names, recursive=False, progress=None)
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise

    async def remove_bucket(
        self,
        name: str | bytes,
        *,
        recursive: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Remove an empty bucket, or with `recursive` all that is in it as well.

        Raises:
            MictlanError: NOT_FOUND, NOT_EMPTY: it is not, or it has snapshots.
        """
        names = _bucket_names(name)
        # Known before anything is removed.
        if recursive and await self.snapshots(name):
            detail = "it has snapshots: remove them first"
            raise MictlanError(Kind.NOT_EMPTY, "remove", show_path(names), detail)
        await self._remove(names, recursive=recursive, progress=progress)

    async def buckets(self) -> tuple[wire.BucketInfo, ...]:
        """All buckets, in order of names."""
        return await self.router.buckets()

    async def bucket(self, name: str | bytes) -> wire.BucketInfo:
        """One bucket.

        Raises:
            MictlanError: NOT_FOUND.
        """
        names = _bucket_names(name)
        node = (await self._tree.find(names)).node
        use = await self.router.bucket_use(node.attributes.ino)
        policy = node.policy or BucketPolicy()
        return wire.BucketInfo(names[0], node.attributes, policy, use.used)

    async def set_bucket_policy(
        self,
        name: str | bytes,
        *,
        replicas: int | None = None,
        replicas_min: int | None = None,
        chunk_size: int | None = None,
        quota: int | None = None,
        protection: Protection | None = None,
        trash_days: int | None = None,
    ) -> BucketPolicy:
        """Change what is given of how a bucket keeps its new data; `quota` 0: no limit.

        `protection` says all of copies and code; `replicas` says that there are copies and no code.
        What it loses from now on is kept for `trash_days`; what it has lost, as long as before.

        Copies that suffice while peers are down are never more than those wanted.

        Raises:
            MictlanError: NOT_FOUND; INVALID for a policy that cannot be.
        """
        node = (await self._tree.find(_bucket_names(name))).node
        old = node.policy or BucketPolicy()
        if protection is not None:
            old = protection.applied(old)
        wanted = old.replicas if replicas is None else replicas
        policy = BucketPolicy(
            wanted,
            min(old.replicas_min, wanted) if replicas_min is None else replicas_min,
            old.chunk_size if chunk_size is None else chunk_size,
            old.quota if quota is None else quota,
            old.data if replicas is None else 0,
            old.trash_days if trash_days is None else trash_days,
        )
        session = await self._sessions.get()
        op = wire.SetBucketPolicy(node.attributes.ino, policy, time.time_ns())
        await session.apply(op, sync=True)
        return policy

    async def recode_bucket(self, name: str | bytes, progress: Progress | None = None) -> Recoded:
        """Store what a bucket has in the form that its policy asks for now; see `recode`.

        `progress` is called with the number of bytes stored since the last call.

        Cancellation: what was stored anew stays so; another call goes on.

        Raises:
            MictlanError: NOT_FOUND; UNAVAILABLE, there are not peers enough for the form.
        """
        names = _bucket_names(name)
        node = (await self._tree.find(names)).node
        policy = node.policy or BucketPolicy()
        peers = (await self.router.peer_map()).peers
        there = sum(peer.state is not PeerState.DOWN for peer in peers)
        wanted = protection_of(policy)
        if policy.data and there < wanted.peer_count:
            detail = f"{wanted} needs {wanted.peer_count} peers, and {there} are there"
            raise MictlanError(Kind.UNAVAILABLE, "recode", show_path(names), detail)
        session = await self._sessions.get()
        recoder = Recoder(self._tree, self._chunks, session, policy, len(peers))
        return await recoder.run(names, node.attributes.ino, progress or (lambda _: None))

    # --- snapshots -------------------------------------------------------------------------------

    async def create_snapshot(self, path: str | bytes, name: str | bytes) -> wire.SnapshotInfo:
        """Keep a bucket, or a directory in one, as it is now: to be read at `.snapshots/NAME`.

        Waits for mounts to store what they changed there. Not tried again: after TIMED_OUT or
        UNAVAILABLE `snapshots` tells whether it was taken.

        Raises:
            MictlanError: NOT_FOUND, NOT_DIRECTORY, EXISTS, READ_ONLY, TOO_LARGE, INVALID.
        """
        request = wire.CreateSnapshot(parse_path(path), _snapshot_name(name))
        return await self.router.create_snapshot(request)

    async def snapshots(self, bucket: str | bytes = "") -> tuple[wire.SnapshotInfo, ...]:
        """The snapshots of a bucket, or of all buckets, in order of names.

        Raises:
            MictlanError: NOT_FOUND.
        """
        names = _bucket_names(bucket) if bucket else (b"",)
        return await self.router.snapshots(wire.ListSnapshots(names[0]))

    async def remove_snapshot(self, bucket: str | bytes, name: str | bytes) -> None:
        """Give up a snapshot.

        Raises:
            MictlanError: NOT_FOUND.
        """
        (bucket_name,) = _bucket_names(bucket)
        request = wire.RemoveSnapshot(bucket_name, _snapshot_name(name))
        await self.router.remove_snapshot(request)

    # --- what a mount could not commit --------------------------------------------------------

    async def apply_recovery(self, recovery: RecoveryFile) -> Sequence[Outcome]:
        """Bring what a mount could not commit into the space; see `recovering`.

        Raises:
            MictlanError: CONFLICT when it is of another space.
        """
        session = await self._sessions.get()
        applier = Applier(self.router, self._tree, self._chunks, session, self._caller, recovery)
        return await applier.apply()

    # --- the space -------------------------------------------------------------------------------

    async def status(self) -> wire.SpaceStatus:
        """The state of the space."""
        return await self.router.status()

    # --- inside ----------------------------------------------------------------------------------

    async def _directory(self, names: Names) -> Node:
        node = (await self._tree.find_followed(names)).node
        if node.attributes.kind is not FileKind.DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY, "use", show_path(names))
        return node

    async def _remove(self, names: Names, *, recursive: bool, progress: Progress | None) -> None:
        found = await self._tree.find(names)
        attributes = found.node.attributes
        parent = found.nodes[-2].attributes.ino
        session = await self._sessions.get()
        op: wire.Operation
        if attributes.kind is not FileKind.DIRECTORY:
            op = wire.Unlink(parent, names[-1], time.time_ns())
        elif recursive:
            ino = attributes.ino
            await remove_tree(self._tree, session, parent, names[-1], ino, progress)
            return
        else:
            op = wire.RemoveDirectory(parent, names[-1], time.time_ns())
        try:
            await session.apply(op, sync=True)
        except MictlanError as error:
            raise MictlanError(error.kind, "remove", show_path(names), error.detail) from error
        if progress is not None:
            progress(1)


def _names(bucket: str | bytes, path: str | bytes) -> Names:
    return (*_bucket_names(bucket), *parse_path(path))


def _bucket_names(name: str | bytes) -> Names:
    """The name of a bucket as a path.

    Raises:
        MictlanError: INVALID when it is empty or more than one name.
    """
    names = parse_path(name)
    if len(names) != 1:
        raise MictlanError(Kind.INVALID, "use bucket", repr(name), "it is not the name of a bucket")
    return names


def _snapshot_name(name: str | bytes) -> bytes:
    """The name of a snapshot. Raises INVALID when it is empty or more than one name."""
    names = parse_path(name)
    if len(names) != 1:
        raise MictlanError(Kind.INVALID, "use snapshot", repr(name), "it cannot name a snapshot")
    return names[0]
