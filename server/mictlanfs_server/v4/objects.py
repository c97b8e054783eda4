"""The verbs of the v4 interface, shared by router and peer, free of the web framework.

Joins the parts of the door; owns none of the data. Every verb raises `DoorError`, or a
`MictlanError` of the space.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from mictlanfs import wire
from mictlanfs.clock import Clock
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.logevents import log_event
from mictlanfs.model import (
    FILE_SIZE_BYTES_MAX,
    MIB,
    REPLICAS_MAX,
    BucketPolicy,
    Buffer,
    ChunkId,
    PeerInfo,
)
from mictlanfs.v4.names import sanitize_str
from mictlanfs.wirerecords import RECORD_BODY_SIZE_BYTES_MAX
from mictlanfs_server.v4 import records
from mictlanfs_server.v4.catalog import (
    LISTED_EXTENTS_MAX,
    Bucket,
    Catalog,
    File,
    Target,
    checked_names,
)
from mictlanfs_server.v4.checksums import Checksums
from mictlanfs_server.v4.failures import CODE_NOBODY, DoorError, invalid, missing
from mictlanfs_server.v4.fetching import Fetching
from mictlanfs_server.v4.models import PutMetadata, UpdateMetadata
from mictlanfs_server.v4.peers import Peers
from mictlanfs_server.v4.placing import NameTakenError, Placing
from mictlanfs_server.v4.records import RecordBody
from mictlanfs_server.v4.replicating import Replicating
from mictlanfs_server.v4.space import Changes
from mictlanfs_server.v4.splitting import Splitting, is_splittable
from mictlanfs_server.v4.storing import Stored, Storing, Wanted
from mictlanfs_server.v4.tasks import Task, TaskTable

if TYPE_CHECKING:
    from mictlanfs.client.caller import Caller
    from mictlanfs.client.transport import HttpTransport
    from mictlanfs_server.v4.space import SpaceAccess

log = logging.getLogger(__name__)

# Of files whose checksums nobody has worked out yet, a listing reads no more than this.
LISTING_HASHED_SIZE_BYTES_MAX: Final = 64 * MIB
# Files whose checksums are worked out at the same time, for one listing.
HASHED_COUNT_MAX: Final = 64
LISTED_FILES_MAX: Final = 200_000
_UPDATE_ATTEMPTS_MAX: Final = 8
_DELETE_ATTEMPTS_MAX: Final = 8
# The ball is not there any more, or not as it was.
_TAKEN_APART: Final = frozenset({Kind.NOT_FOUND, Kind.STALE, Kind.CONFLICT})
# Whole balls that were deleted because a piece of them was: so many are remembered.
_GONE_COUNT_MAX: Final = 10_000
_GONE_TTL_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a door is told.

    Attributes:
        label: of its session, in `status`.
        caller: owner of what it makes.
        verifies: whether a body that has not the checksum that was announced is refused; an empty
            checksum is never compared.
        preferred: id of the peer that gets the first copy; empty: none does.
        accepts_same: whether a chunk under a task id that the client chose may be there already,
            with the same bytes: routers of MictlanX send each replica by itself.
    """

    label: str
    caller: Caller
    verifies: bool = True
    preferred: str = ""
    accepts_same: bool = False


class Door:
    """Balls of the space, as MictlanX speaks of them. Belongs to one event loop."""

    def __init__(
        self, settings: Settings, space: SpaceAccess, transport: HttpTransport, clock: Clock
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.space = space
        self.tasks = TaskTable(clock)
        self.peers = Peers(space, transport, clock, settings.preferred)
        self.catalog = Catalog(space)
        self._changes = Changes(space, settings.label)
        self._storing = Storing(self.peers)
        self._fetching = Fetching(space, self.peers)
        self._checksums = Checksums(self._fetching, self._changes)
        self._placing = Placing(space, self._changes, settings.caller)
        self._splitting = Splitting(space, self._changes)
        self._replicating = Replicating(space, self._changes, self.peers)
        self._gone: dict[tuple[str, str], float] = {}

    async def close(self) -> None:
        """End what is under way in the background, and the session."""
        await self._checksums.close()
        await self._storing.close()
        await self._changes.close()

    # --- putting ---------------------------------------------------------------------------------

    async def announce(
        self, bucket_id: str, announced: PutMetadata, *, task_id: str = "", is_update: bool = False
    ) -> Task:
        """The first step of a put: a task to send the bytes to.

        With `is_update` the metadata of a stored record is replaced, and the task is no use.

        Raises:
            DoorError: 400; 404 with code 666 when the key is taken or no peer is there; 503.
        """
        bucket_name = _agreed_bucket(bucket_id, announced.bucket_id)
        names = checked_names(announced.key, "key")
        checked_names(announced.ball_id, "ball_id")
        if not 0 <= announced.size <= FILE_SIZE_BYTES_MAX:
            raise invalid(f"a chunk cannot have {announced.size} bytes")
        if announced.replication_factor < 1:
            raise invalid("a chunk has one copy at least: replication_factor is less than 1")
        body = _body_of(announced, announced.checksum)
        if len(records.encode_body(body)) > RECORD_BODY_SIZE_BYTES_MAX:
            raise invalid("tags and names together are more than 64 KiB")
        bucket, taken = await self.catalog.look(bucket_name, announced.key)
        if bucket is not None and taken is None:
            taken = await self._in_the_way(bucket, announced.key, body)
        if taken is not None and is_update:
            change = UpdateMetadata(
                announced.tags,
                announced.content_type,
                announced.producer_id,
                announced.is_disabled or announced.is_disable,
            )
            await self._update_record(taken, change)
        elif taken is not None and not (task_id and self._is_same(taken, announced)):
            raise self._taken_error(bucket_name, announced.key, await self.replicas(taken))
        first_chunk = new_chunk_id()
        candidates = await self.peers.candidates(first_chunk)
        if not candidates:
            log_event(log, "NO.AVAILABLE.PEERS", level=logging.WARNING, bucket_id=bucket_name)
            raise _nobody(bucket_name, announced.key, [], "No available peers.")
        policy = bucket.policy if bucket is not None else BucketPolicy()
        copies = self._copies(policy, announced.replication_factor)
        replicas = tuple([peer.id for peer in candidates[:copies]])
        return self.tasks.add(
            bucket_name,
            records.shown(names),
            announced,
            policy,
            first_chunk,
            replicas,
            task_id,
        )

    async def _in_the_way(self, bucket: Bucket, key: str, body: RecordBody) -> Target | None:
        """The file that has the name of the ball that a new record is a part of."""
        if not body.is_part or body.ball_id == key:
            return None
        ball = await self.catalog.file(bucket, body.ball_id)
        return None if ball is None else Target(ball, None)

    def _is_same(self, found: Target, announced: PutMetadata) -> bool:
        """Whether what is there may count as the replica that is announced."""
        return (
            self._settings.accepts_same
            and found.piece.size == announced.size
            and found.piece.checksum == announced.checksum.lower() != ""
        )

    async def _take_as_replica(self, task: Task) -> bool:
        """Whether the very chunk is there already; then this peer has a copy of it as well."""
        bucket = await self.catalog.exact_bucket(task.bucket)
        found = await self.catalog.exact(bucket, task.key) if bucket is not None else None
        if found is None or not self._is_same(found, task.announced):
            return False
        if await self.holders(found):
            await self.replicate(found, self._settings.preferred)
        return True

    def _taken_error(self, bucket: str, key: str, holders: Sequence[str]) -> DoorError:
        return _nobody(bucket, key, holders, f"{bucket}@{key} is there already.")

    def _copies(self, policy: BucketPolicy, replication_factor: int) -> int:
        """Copies of each chunk: what the client wants, and no less than the bucket has."""
        return min(max(replication_factor, policy.replicas), REPLICAS_MAX)

    async def put(self, task: Task, source: AsyncIterator[Buffer]) -> Stored:
        """The second step of a put: the bytes, whole. Then the record is there, durably.

        Cancellation: as an error; the record may be there when its commit was under way.

        Raises:
            DoorError: 400 and nothing is stored: another size or checksum than announced; 409: the
                key was taken meanwhile.
            MictlanError: of the space.
        """
        announced = task.announced
        policy = task.policy
        checksum = announced.checksum if self._settings.verifies else ""
        has_inline = announced.replication_factor <= policy.replicas
        wanted = Wanted(
            announced.size,
            checksum,
            policy,
            self._copies(policy, announced.replication_factor),
            task.first_chunk,
            has_inline,
        )
        stored = await self._storing.store(source, wanted)
        names = checked_names(announced.key, "key")
        body = _body_of(announced, stored.checksum)
        try:
            await self._placing.place(task.bucket.encode(), names, stored, body)
        except NameTakenError as error:
            if not error.is_stored:
                self._storing.discard(stored)
            if await self._take_as_replica(task):
                return stored
            raise DoorError(409, str(error), CODE_NOBODY) from error
        except MictlanError as error:
            if not error.is_retryable:
                self._storing.discard(stored)
            raise
        self._gone.pop((task.bucket, announced.ball_id), None)
        return stored

    # --- reading ---------------------------------------------------------------------------------

    async def metadata(self, bucket_id: str, key: str) -> Target:
        """A record, with its checksum. Raises 404, 409."""
        target = await self.catalog.find(bucket_id, key)
        return Target(await self._checksums.ensure(target.file), target.index)

    def read(self, file: File, start: int, end: int) -> AsyncGenerator[Buffer, None]:
        """Bytes `[start, end)` of a file; to be closed. Raises as `Fetching.read`."""
        return self._fetching.read(file.node, start, end)

    async def ball(self, bucket_id: str, ball_id: str) -> tuple[Bucket, list[Target]]:
        """The records of a ball in their order, with checksums. Raises 404, 409."""
        bucket = await self.catalog.bucket(bucket_id)
        targets = await self.catalog.ball(bucket, ball_id)
        if not targets:
            raise missing(f"there is no ball {ball_id} in bucket {bucket.name}")
        return bucket, await self._with_checksums(targets)

    async def _with_checksums(self, targets: Sequence[Target]) -> list[Target]:
        files: dict[int, File] = {}
        for target in targets:
            if target.file.ino not in files:
                files[target.file.ino] = await self._checksums.ensure(target.file)
        return [Target(files[target.file.ino], target.index) for target in targets]

    async def listing(self, bucket_id: str) -> tuple[str, list[Target]]:
        """The name of a bucket and all its records, those of a ball together; none is no error.

        Files that nobody put as a ball, and whose checksums nobody has asked for, have empty ones
        when there are many bytes in them. Raises 409; 503 for too many files.
        """
        try:
            bucket = await self.catalog.bucket(bucket_id)
        except DoorError as error:
            if error.status != 404:
                raise
            return bucket_id, []
        balls: dict[str, list[Target]] = {}
        for file in await self._listed_files(bucket):
            for index, piece in enumerate(file.pieces):
                balls.setdefault(piece.ball_id, []).append(Target(file, index))
        return bucket.name, [target for ball in balls.values() for target in ball]

    async def _listed_files(self, bucket: Bucket) -> list[File]:
        """All files of a bucket, with as many checksums as a listing may work out."""
        files: list[File] = []
        async for file in self.catalog.files(bucket, LISTED_EXTENTS_MAX):
            files.append(file)
            if len(files) > LISTED_FILES_MAX:
                # An answer has no pages: it is in memory whole.
                raise DoorError(503, f"bucket {bucket.name} has too many files for one listing")
        left = LISTING_HASHED_SIZE_BYTES_MAX
        unknown = []
        for position, file in enumerate(files):
            if file.record is None and file.size <= left:
                left -= file.size
                unknown.append(position)
        for start in range(0, len(unknown), HASHED_COUNT_MAX):
            group = unknown[start : start + HASHED_COUNT_MAX]
            found = await asyncio.gather(*(self._hashed_if_still(files[at]) for at in group))
            for position, file in zip(group, found, strict=True):
                files[position] = file
        return files

    async def _hashed_if_still(self, file: File) -> File:
        """The file with checksums; without when it changes, or cannot be read, just now."""
        found: File | None = file
        try:
            if not file.node.has_all_extents:
                found = await self.catalog.file(file.bucket, file.path)
            if found is None or found.ino != file.ino:
                return file
            return await self._checksums.ensure(found)
        except MictlanError as error:
            log.info("no checksums of %s for now: %s", file.path, error)
            return file

    async def records_of_space(
        self, start: int, end: int, *, with_extents: bool = False
    ) -> list[tuple[str, Target]]:
        """Records `start` to `end - 1` of all buckets in order; all from `start` with `end` 0.

        With extents, the first of each file, `holders` of them tells something.
        """
        found: list[tuple[str, Target]] = []
        count = 0
        for bucket in await self.catalog.buckets():
            async for target in self.catalog.all(bucket, LISTED_EXTENTS_MAX if with_extents else 0):
                if 0 < end <= count:
                    return found
                if count >= start:
                    found.append((bucket.name, target))
                count += 1
        return found

    async def record_count(self) -> int:
        """How many records the space has."""
        count = 0
        for bucket in await self.catalog.buckets():
            async for file in self.catalog.files(bucket):
                count += len(file.pieces)
        return count

    async def holders(self, target: Target, *, is_listed: bool = False) -> list[str]:
        """Ids of the peers that hold bytes of a record, as far as its first extents tell.

        Of a record that was listed with extents those will do, though there may be more.
        Bytes that are kept in the metadata are held by the router: an empty list.
        """
        await self.peers.refresh()
        node, piece = target.file.node, target.piece
        extents, chunks = node.extents, node.chunks
        if not node.has_all_extents and not is_listed:
            request = wire.GetExtents(target.file.ino, piece.offset, LISTED_EXTENTS_MAX)
            page = await self.space.ask(wire.Path.EXTENTS, request, wire.ExtentPage)
            extents, chunks = page.extents, page.chunks
        wanted: set[ChunkId] = {
            extent.chunk_id
            for extent in extents
            if extent.end > piece.offset and extent.offset < piece.offset + piece.size
        }
        numbers = [n for chunk in chunks if chunk.id in wanted for n in chunk.peers]
        return self.peers.ids_of(dict.fromkeys(numbers))

    async def replicas(self, target: Target) -> list[str]:
        """As `holders`; the first peer that is there when none is needed."""
        held = await self.holders(target)
        return held or [peer.id for peer in await self.available()][:1]

    async def available(self) -> list[PeerInfo]:
        """The peers that are worth asking."""
        return await self.peers.candidates(new_chunk_id())

    # --- changing --------------------------------------------------------------------------------

    async def disable(self, bucket_id: str, key: str) -> None:
        """Mark a record as disabled. That says so in its metadata; it can be read as before."""
        await self.update(bucket_id, key, UpdateMetadata(is_disabled=True))

    async def update(self, bucket_id: str, key: str, change: UpdateMetadata) -> None:
        """Change what a record says. Raises 404, 409; 400 for too much of it."""
        await self._update_record(await self.catalog.find(bucket_id, key), change)

    async def _update_record(self, target: Target, change: UpdateMetadata) -> None:
        for _ in range(_UPDATE_ATTEMPTS_MAX):
            file = await self._checksums.ensure(target.file)
            assert file.record is not None
            chosen = range(len(file.record.pieces)) if target.index is None else [target.index]
            pieces = list(file.record.pieces)
            for index in chosen:
                body = _changed(records.decode_body(pieces[index].body), change)
                encoded = records.encode_body(body)
                if len(encoded) > RECORD_BODY_SIZE_BYTES_MAX:
                    raise invalid("tags and names together are more than 64 KiB")
                pieces[index] = msgspec.structs.replace(pieces[index], body=encoded)
            op = wire.SetRecord(file.ino, file.record.content_version, tuple(pieces))
            self.catalog.forget(file)
            try:
                await self._changes.apply([op])
                return
            except MictlanError as error:
                if error.kind is not Kind.CONFLICT:
                    raise
            found = await self.catalog.file(file.bucket, file.path)
            if found is None:
                raise missing(f"there is no {file.path} in bucket {file.bucket.name}")
            target = Target(found, target.index)
        raise DoorError(409, f"{target.file.path} changes all the time")

    async def replicate(self, target: Target, to: str = "") -> str:
        """One more copy of a record; see `Replicating.replicate`."""
        return await self._replicating.replicate(target, to)

    async def delete(self, bucket_id: str, key: str) -> tuple[int, list[Target]]:
        """Delete a record: how many copies of it went, and the records that are gone.

        A chunk of a ball leaves the other chunks as records of their own. A piece of a file that
        nobody put chunk by chunk, or of a ball of very many, takes the file along; then its other
        pieces count as deleted for a while: deleting them is no error. Raises 404, 409.
        """
        for attempt in range(1, _DELETE_ATTEMPTS_MAX + 1):
            try:
                target = await self.catalog.find(bucket_id, key)
            except DoorError as error:
                if error.status == 404 and self._is_gone(bucket_id, key):
                    return 0, []
                raise
            if target.index is None or not is_splittable(target.file):
                return await self._delete_file(target.file)
            try:
                copies = max(1, len(await self.holders(target)))
                await self._splitting.split(target.file, target.index)
            except MictlanError as error:
                # Clients delete all chunks of a ball at once: another one was first.
                if error.kind not in _TAKEN_APART or attempt == _DELETE_ATTEMPTS_MAX:
                    raise
            else:
                return copies, [target]
        raise AssertionError("the last attempt returns or raises")

    async def _delete_file(self, file: File) -> tuple[int, list[Target]]:
        gone = [Target(file, index) for index in range(len(file.pieces))]
        copies = max(1, len(await self.holders(Target(file, None))))
        op = wire.Unlink(file.parent, file.names[-1], time.time_ns())
        try:
            await self._changes.apply([op])
        except MictlanError as error:
            if error.kind is Kind.NOT_FOUND:
                return 0, []
            raise
        if len(gone) > 1:
            self._remember(file.bucket.name, file.path)
        return copies * len(gone), gone

    def _remember(self, bucket: str, ball: str) -> None:
        now_s = self._clock.monotonic_s()
        self._gone.pop((bucket, ball), None)
        self._gone[bucket, ball] = now_s + _GONE_TTL_S
        while len(self._gone) > _GONE_COUNT_MAX:
            del self._gone[next(iter(self._gone))]

    def _is_gone(self, bucket: str, key: str) -> bool:
        """Whether a key is that of a piece of a ball that went as a whole, not long ago."""
        split = records.split_part_key(key)
        if split is None:
            return False
        names = {(bucket, split[0])}
        short = (sanitize_str(bucket), sanitize_str(split[0]))
        now_s = self._clock.monotonic_s()
        return any(
            ends_s > now_s
            and ((known in names) or (sanitize_str(known[0]), sanitize_str(known[1])) == short)
            for known, ends_s in self._gone.items()
        )

    async def delete_ball(self, bucket_id: str, ball_id: str) -> tuple[int, list[Target]]:
        """Delete all records of a ball: how many copies went, and the records. None is no error."""
        try:
            bucket = await self.catalog.bucket(bucket_id)
        except DoorError as error:
            if error.status == 404:
                return 0, []
            raise
        count, gone = 0, []
        for file in _files_of(await self.catalog.ball(bucket, ball_id)):
            file_count, file_gone = await self._delete_file(file)
            count += file_count
            gone.extend(file_gone)
        return count, gone


def _files_of(targets: Iterable[Target]) -> list[File]:
    """The files of records, each once."""
    return list({target.file.ino: target.file for target in targets}.values())


def _agreed_bucket(in_path: str, in_body: str) -> str:
    """The bucket that path and body of a request both name. Raises 400."""
    if in_body != in_path and in_body != sanitize_str(in_path):
        raise invalid(f"the path says bucket {in_path!r}, the body {in_body!r}")
    names = checked_names(in_body, "bucket")
    if len(names) != 1:
        raise invalid(f"bucket {in_body!r} has a / in it")
    return in_body


def _body_of(announced: PutMetadata, checksum: str) -> RecordBody:
    """The record of what was announced."""
    place = records.place_of(announced.key, announced.ball_id, announced.tags)
    return RecordBody(
        announced.key,
        announced.ball_id,
        checksum,
        announced.tags,
        announced.content_type,
        announced.producer_id,
        announced.is_disabled or announced.is_disable,
        place.count if place else 0,
        place.index if place else 0,
    )


def _changed(body: RecordBody, change: UpdateMetadata) -> RecordBody:
    given = {
        name: value
        for name in ("tags", "content_type", "producer_id", "is_disabled")
        if (value := getattr(change, name)) is not None
    }
    return msgspec.structs.replace(body, **given)


def _nobody(bucket: str, key: str, replicas: Sequence[str], message: str) -> DoorError:
    """The one 404 that the first step of a put gives."""
    suggestion = (
        "Delete it first: balls are not overwritten." if replicas else "Add peers, or free space."
    )
    return DoorError(
        404,
        message,
        CODE_NOBODY,
        suggestion=suggestion,
        bucket_id=bucket,
        key=key,
        replicas=list(replicas),
    )
