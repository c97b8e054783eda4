"""Which file, and which range of it, a bucket and a key of the v4 interface stand for.

Names are taken exactly first; then as the public client strips them, when that leaves one answer.
All is read from the space, through the leases, when it is asked for; owns nothing but the records
of large balls for a moment.

Source of the rules: the wire interface of MictlanX v4, section 9.1, and `docs/mictlanx-v4.md`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeVar

from mictlanfs import wire
from mictlanfs.client.names import TEMPORARY_NAME_PREFIX
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import BucketPolicy, FileKind, InodeNumber, Node
from mictlanfs.v4 import tags as v4tags
from mictlanfs.v4.names import sanitize_str
from mictlanfs_server.v4 import records
from mictlanfs_server.v4.failures import DoorError, invalid, missing
from mictlanfs_server.v4.records import Names, Piece

if TYPE_CHECKING:
    from mictlanfs_server.v4.space import SpaceAccess

T = TypeVar("T")

# Files of a bucket that are looked at for a name that is not there exactly.
FILES_MAX: Final = 1_000_000
CANDIDATES_SHOWN_MAX: Final = 10
# Extents that come with each file of many: enough to tell which peers hold it, mostly.
LISTED_EXTENTS_MAX: Final = 16
# How many pieces a file has at most that nobody put as a ball.
MADE_PIECES_MAX: Final = 16_384
# Extents that come with one file: all of a small one. Of a large one a page is asked for.
RESOLVED_EXTENTS_MAX: Final = 4
# The records of balls of so many chunks are kept for a moment: they are read whole for each chunk.
# What another server's door changes in them is seen that much later.
KEPT_PIECES_MIN: Final = 8
KEPT_COUNT_MAX: Final = 64
KEPT_S: Final = 1.0
_ATTEMPTS_MAX: Final = 4
_INLINE_SIZE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket that exists."""

    name: str
    raw: bytes
    ino: InodeNumber
    policy: BucketPolicy


@dataclass(frozen=True)
class File:
    """A file of a bucket, as it was at one moment.

    Attributes:
        names: its path in the bucket.
        parent: the directory that names it.
        record: of this very content, None when there is none.
    """

    bucket: Bucket
    names: Names
    parent: InodeNumber
    node: Node
    record: wire.FileRecord | None = None

    @property
    def path(self) -> str:
        """Its path in the bucket, as a key."""
        return records.shown(self.names)

    @property
    def ino(self) -> InodeNumber:
        """Its inode."""
        return self.node.attributes.ino

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.node.attributes.size

    def sizes(self) -> list[int]:
        """The sizes of its pieces when nobody put it as a ball: chunks of the bucket."""
        piece_size = self.bucket.policy.chunk_size
        while self.size > piece_size * MADE_PIECES_MAX:
            piece_size *= 2
        return records.cut(self.size, piece_size)

    @cached_property
    def pieces(self) -> list[Piece]:
        """Its pieces in order; with empty checksums while nobody has worked them out."""
        stored: Sequence[wire.RecordPiece]
        if self.record is not None:
            stored = self.record.pieces
        else:
            sizes = self.sizes()
            stored = records.made_pieces(
                sizes, [""] * len(sizes), "", self.node.attributes.mtime_ns
            )
        return records.pieces_of(self.path, stored)

    def whole(self) -> Piece:
        """All of it as one record, named by its path."""
        first, *more = self.pieces
        if not more:
            return replace(first, key=self.path)
        checksum = first.tags.get(v4tags.FULL_CHECKSUM, "")
        return replace(first, key=self.path, ball_id=self.path, size=self.size, checksum=checksum)


@dataclass(frozen=True, slots=True)
class Target:
    """What a key stands for: a piece of a file, or all of it when `index` is None."""

    file: File
    index: int | None

    @property
    def piece(self) -> Piece:
        """The piece as it is known now."""
        return self.file.whole() if self.index is None else self.file.pieces[self.index]


class Catalog:
    """Finds buckets, files and pieces."""

    def __init__(self, space: SpaceAccess) -> None:
        self._space = space
        self._kept: dict[InodeNumber, tuple[float, File]] = {}

    # --- buckets ---------------------------------------------------------------------------------

    async def bucket(self, name: str) -> Bucket:
        """The bucket called so. Raises 404; 409 when the stripped name fits several."""
        found = await self.exact_bucket(name)
        if found is not None:
            return found
        buckets = await self.buckets()
        short = sanitize_str(name)
        fitting = [b for b in buckets if short and sanitize_str(b.name) == short]
        if not fitting:
            raise missing(f"there is no bucket {name}")
        return _only(fitting, [bucket.name for bucket in fitting], f"bucket {name}")

    async def exact_bucket(self, name: str) -> Bucket | None:
        """The bucket of exactly that name, if there is one."""
        names = records.names_of(name)
        if names is None or len(names) != 1:
            return None
        nodes = await self._resolve(names)
        if len(nodes) < 2 or nodes[1].policy is None:
            return None
        return Bucket(name, names[0], nodes[1].attributes.ino, nodes[1].policy)

    async def look(self, bucket_name: str, key: str) -> tuple[Bucket | None, Target | None]:
        """The bucket of exactly that name, and what `key` exactly means in it, as far as there."""
        raw, names = records.names_of(bucket_name), records.names_of(key)
        if raw is None or len(raw) != 1:
            return None, None
        nodes = await self._resolve((*raw, *(names or ())))
        if len(nodes) < 2 or nodes[1].policy is None:
            return None, None
        bucket = Bucket(bucket_name, raw[0], nodes[1].attributes.ino, nodes[1].policy)
        if names is not None and len(nodes) == len(names) + 2:
            file = await self._file_of(bucket, names, nodes)
            return bucket, Target(file, None) if file else await self.exact(bucket, key)
        return bucket, await self._piece_or_file(bucket, key)

    async def buckets(self) -> list[Bucket]:
        """All buckets."""
        answer = await self._space.ask(wire.Path.BUCKETS, wire.Done(), wire.Buckets)
        return [
            Bucket(records.shown((info.name,)), info.name, info.attributes.ino, info.policy)
            for info in answer.buckets
        ]

    # --- records ---------------------------------------------------------------------------------

    async def find(self, bucket_name: str, key: str) -> Target:
        """What a key stands for. Raises 404; 409 when the stripped name fits several."""
        bucket, found = await self.look(bucket_name, key)
        if bucket is None:
            bucket = await self.bucket(bucket_name)
            found = await self.exact(bucket, key)
        if found is None:
            found = await self._by_stripped_name(bucket, key)
        if found is None:
            raise missing(f"there is no {key} in bucket {bucket.name}")
        return found

    async def exact(self, bucket: Bucket, key: str) -> Target | None:
        """The file of exactly that name, or the piece `BALL_INDEX` of exactly that ball."""
        file = await self.file(bucket, key)
        return Target(file, None) if file is not None else await self._piece_or_file(bucket, key)

    async def _piece_or_file(self, bucket: Bucket, key: str) -> Target | None:
        """What a key stands for that was no file when one was looked for."""
        if records.split_part_key(key) is None:
            return None
        piece = await self._exact_piece(bucket, key)
        if piece is not None:
            return piece
        # Its ball may have been taken apart between the two looks.
        file = await self.file(bucket, key)
        return Target(file, None) if file is not None else None

    async def _exact_piece(self, bucket: Bucket, key: str) -> Target | None:
        split = records.split_part_key(key)
        if split is None:
            return None
        ball, index = split
        file = await self.file(bucket, ball)
        if file is None:
            return None
        pieces = file.pieces
        # A single record that is called like the ball has no parts.
        if index < len(pieces) and (len(pieces) > 1 or pieces[0].key != file.path):
            return Target(file, index)
        return None

    async def file(self, bucket: Bucket, path: str) -> File | None:
        """The file at exactly that path, if there is one."""
        names = records.names_of(path)
        if names is None:
            return None
        for _ in range(_ATTEMPTS_MAX):
            nodes = await self._resolve((bucket.raw, *names))
            if len(nodes) < len(names) + 2 or nodes[-1].attributes.kind is not FileKind.FILE:
                return None
            if (file := await self._file_of(bucket, names, nodes)) is not None:
                return file
        raise MictlanError(Kind.BUSY, "read", path, "the file changes all the time")

    async def _file_of(self, bucket: Bucket, names: Names, nodes: Sequence[Node]) -> File | None:
        """The file at the end of a path with its record; None: it is none, or has just changed."""
        if nodes[-1].attributes.kind is not FileKind.FILE:
            return None
        file = File(bucket, names, nodes[-2].attributes.ino, nodes[-1])
        if (kept := self._kept_for(file)) is not None:
            return kept
        [with_record] = await self.with_records([file])
        if with_record is not None:
            self._keep(with_record)
        return with_record

    def _kept_for(self, file: File) -> File | None:
        """The file with the record that it had a moment ago, if it is of the same content."""
        kept = self._kept.get(file.ino)
        if kept is None or kept[0] < time.monotonic():
            return None
        known = kept[1]
        version = file.node.attributes.content_version
        if known.node.attributes.content_version != version or known.names != file.names:
            return None
        found = replace(file, record=known.record)
        # Taking the bodies of thousands of pieces apart costs more than all else.
        found.__dict__["pieces"] = known.pieces
        return found

    def _keep(self, file: File) -> None:
        if len(file.pieces) >= KEPT_PIECES_MIN:
            self._kept.pop(file.ino, None)
            self._kept[file.ino] = (time.monotonic() + KEPT_S, file)
            if len(self._kept) > KEPT_COUNT_MAX:
                del self._kept[next(iter(self._kept))]

    def forget(self, file: File) -> None:
        """The record of a file is being changed."""
        self._kept.pop(file.ino, None)

    async def with_records(self, files: Sequence[File]) -> list[File | None]:
        """The files with their records; None for one that has changed since it was looked at."""
        found: list[File | None] = []
        while len(found) < len(files):
            asked = files[len(found) : len(found) + wire.RECORDS_COUNT_MAX]
            request = wire.GetRecords(tuple([file.ino for file in asked]))
            answer = await self._space.ask(wire.Path.RECORDS, request, wire.Records)
            for file, record in zip(asked, answer.records, strict=False):
                if not record.pieces:
                    found.append(file)
                elif record.content_version != file.node.attributes.content_version:
                    found.append(None)
                else:
                    found.append(replace(file, record=record))
        return found

    async def ball(self, bucket: Bucket, ball_id: str) -> list[Target]:
        """The pieces of a ball in their order; empty when there is none."""
        file = await self.file(bucket, ball_id)
        if file is not None:
            pieces = file.pieces
            own = [Target(file, i) for i, piece in enumerate(pieces) if piece.ball_id == file.path]
            if own and (len(own) > 1 or pieces[0].key != file.path):
                return own
        found = await self._with_ball_id(bucket, ball_id)
        if found:
            return found
        short = sanitize_str(ball_id)
        if not short or file is not None:
            return []
        fitting: dict[str, list[Target]] = {}
        async for target in self.all(bucket, LISTED_EXTENTS_MAX):
            name = target.piece.ball_id
            if sanitize_str(name) == short:
                fitting.setdefault(name, []).append(target)
        if not fitting:
            return []
        return _in_order(_only(list(fitting.values()), list(fitting), f"ball {ball_id}"))

    async def _with_ball_id(self, bucket: Bucket, ball_id: str) -> list[Target]:
        targets = self.all(bucket, LISTED_EXTENTS_MAX)
        return _in_order([t async for t in targets if t.piece.ball_id == ball_id])

    async def all(self, bucket: Bucket, extents_max: int = 0) -> AsyncGenerator[Target, None]:
        """All pieces of all files of a bucket; those of one file in order. Raises as `files`."""
        async for file in self.files(bucket, extents_max):
            for index in range(len(file.pieces)):
                yield Target(file, index)

    async def files(self, bucket: Bucket, extents_max: int = 0) -> AsyncGenerator[File, None]:
        """All files of a bucket with their records, directory by directory.

        Each with its first `extents_max` extents. What comes or goes meanwhile may be
        missing. Raises 503 for more than a million files.
        """
        count = 0
        waiting: list[tuple[Names, InodeNumber]] = [((), bucket.ino)]
        while waiting:
            path, ino = waiting.pop()
            directories: list[tuple[Names, InodeNumber]] = []
            async for page in self._pages(ino, extents_max):
                files = []
                for entry in page.entries:
                    if entry.name.startswith(TEMPORARY_NAME_PREFIX):
                        continue
                    attributes, names = entry.node.attributes, (*path, entry.name)
                    if attributes.kind is FileKind.DIRECTORY:
                        directories.append((names, attributes.ino))
                    elif attributes.kind is FileKind.FILE:
                        files.append(File(bucket, names, ino, entry.node))
                count += len(files)
                if count > FILES_MAX:
                    raise DoorError(503, f"bucket {bucket.name} has too many files for this")
                for file in await self.with_records(files):
                    if file is not None:
                        yield file
                # Other requests have their turn: a page takes some milliseconds.
                await asyncio.sleep(0)
            waiting.extend(reversed(directories))

    async def _pages(
        self, ino: InodeNumber, extents_max: int
    ) -> AsyncGenerator[wire.ListPage, None]:
        after = b""
        while True:
            request = wire.ListDirectory(ino, after, wire.LIST_ENTRIES_MAX, extents_max)
            try:
                page = await self._space.ask(wire.Path.LIST, request, wire.ListPage)
            except MictlanError as error:
                if error.kind is not Kind.NOT_FOUND:
                    raise
                return
            yield page
            if page.is_last or not page.entries:
                return
            after = page.entries[-1].name

    async def _by_stripped_name(self, bucket: Bucket, key: str) -> Target | None:
        """The one file or piece whose name is `key` when both are stripped, or whose key it is."""
        short = sanitize_str(key)
        split = records.split_part_key(short)
        fitting: list[Target] = []
        async for file in self.files(bucket, LISTED_EXTENTS_MAX):
            if short and sanitize_str(file.path) == short:
                fitting.append(Target(file, None))
                continue
            pieces = file.pieces if file.record is not None or split is not None else []
            for index, piece in enumerate(pieces):
                if piece.key == key:
                    return Target(file, index)
                if short and sanitize_str(piece.key) == short:
                    fitting.append(Target(file, index))
        if not fitting:
            return None
        return _only(fitting, [target.piece.key for target in fitting], key)

    async def _resolve(self, names: Names) -> tuple[Node, ...]:
        request = wire.Resolve(names, RESOLVED_EXTENTS_MAX, _INLINE_SIZE_BYTES)
        answer = await self._space.ask(wire.Path.RESOLVE, request, wire.Resolved)
        return answer.nodes


def checked_names(key: str, what: str) -> Names:
    """The names of the path that `key` is. Raises 400 for what cannot be one."""
    names = records.names_of(key)
    if names is None:
        raise invalid(f"{what} {key!r} cannot be a name: empty, too long, or with . or .. in it")
    return names


def _in_order(targets: Iterable[Target]) -> list[Target]:
    """The pieces of one ball by their index, those that have none behind them."""

    def place(target: Target) -> tuple[bool, int]:
        index = target.piece.tags.get(v4tags.INDEX, "")
        return (not index.isdecimal(), int(index) if index.isdecimal() else 0)

    return sorted(targets, key=place)


def _only(found: Sequence[T], names: Sequence[str], what: str) -> T:
    """The one that was found. Raises 409 with the candidates for more."""
    if len(found) == 1:
        return found[0]
    shown = sorted(names)[:CANDIDATES_SHOWN_MAX]
    raise DoorError(409, f"{what} can mean several: {', '.join(shown)}", candidates=shown)
