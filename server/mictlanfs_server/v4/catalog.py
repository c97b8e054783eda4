"""Which file, and which range of it, a bucket and a key of the v4 interface stand for.

Names are taken exactly first; then as the public client strips them, when that leaves one answer.
Owns no state: all is read from the space, through the leases, when it is asked for.

Source of the rules: the wire interface of MictlanX v4, section 9.1, and `docs/mictlanx-v4.md`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeVar

from mictlanfs import wire
from mictlanfs.client.names import TEMPORARY_NAME_PREFIX
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import BucketPolicy, FileKind, InodeNumber, Node
from mictlanfs_server.v4 import records
from mictlanfs_server.v4.failures import DoorError, invalid, missing
from mictlanfs_server.v4.records import Names, Piece

if TYPE_CHECKING:
    from mictlanfs_server.v4.space import SpaceAccess

T = TypeVar("T")

# Files of a bucket that are looked at for a name that is not there exactly, or listed.
FILES_MAX: Final = 1_000_000
CANDIDATES_SHOWN_MAX: Final = 10
# Extents that come with each file of many: enough to tell which peers hold it, mostly.
LISTED_EXTENTS_MAX: Final = 16
# How many pieces a file has at most that nobody put as a ball.
MADE_PIECES_MAX: Final = 16_384
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
        checksum = first.tags.get(records.TAG_CHECKSUM, "")
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

    # --- buckets ---------------------------------------------------------------------------------

    async def bucket(self, name: str) -> Bucket:
        """The bucket called so. Raises 404; 409 when the stripped name fits several."""
        found = await self.exact_bucket(name)
        if found is not None:
            return found
        buckets = await self.buckets()
        short = records.stripped(name)
        fitting = [b for b in buckets if short and records.stripped(b.name) == short]
        if not fitting:
            raise missing(f"there is no bucket {name}")
        return _only(fitting, [bucket.name for bucket in fitting], f"bucket {name}")

    async def exact_bucket(self, name: str) -> Bucket | None:
        """The bucket of exactly that name, if there is one."""
        names = records.names_of(name)
        if names is None or len(names) != 1:
            return None
        nodes = await self._resolve(names, is_brief=True)
        if len(nodes) < 2 or nodes[1].policy is None:
            return None
        return Bucket(name, names[0], nodes[1].attributes.ino, nodes[1].policy)

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
        if file is not None:
            return Target(file, None)
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
            file = File(bucket, names, nodes[-2].attributes.ino, nodes[-1])
            [with_record] = await self.with_records([file])
            if with_record is not None:
                return with_record
        raise MictlanError(Kind.BUSY, "read", path, "the file changes all the time")

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
        short = records.stripped(ball_id)
        if not short or file is not None:
            return []
        fitting: dict[str, list[Target]] = {}
        async for target in self.all(bucket, LISTED_EXTENTS_MAX):
            name = target.piece.ball_id
            if records.stripped(name) == short:
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
        short = records.stripped(key)
        split = records.split_part_key(short)
        fitting: list[Target] = []
        async for file in self.files(bucket, LISTED_EXTENTS_MAX):
            if short and records.stripped(file.path) == short:
                fitting.append(Target(file, None))
                continue
            pieces = file.pieces if file.record is not None or split is not None else []
            for index, piece in enumerate(pieces):
                if piece.key == key:
                    return Target(file, index)
                if short and records.stripped(piece.key) == short:
                    fitting.append(Target(file, index))
        if not fitting:
            return None
        return _only(fitting, [target.piece.key for target in fitting], key)

    async def _resolve(self, names: Names, *, is_brief: bool = False) -> tuple[Node, ...]:
        extents_max, inline_max = (
            (0, 0) if is_brief else (wire.EXTENTS_PAGE_MAX, _INLINE_SIZE_BYTES)
        )
        request = wire.Resolve(names, extents_max, inline_max)
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
        index = target.piece.tags.get(records.TAG_INDEX, "")
        return (not index.isdecimal(), int(index) if index.isdecimal() else 0)

    return sorted(targets, key=place)


def _only(found: Sequence[T], names: Sequence[str], what: str) -> T:
    """The one that was found. Raises 409 with the candidates for more."""
    if len(found) == 1:
        return found[0]
    shown = sorted(names)[:CANDIDATES_SHOWN_MAX]
    raise DoorError(409, f"{what} can mean several: {', '.join(shown)}", candidates=shown)
