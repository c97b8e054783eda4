"""SHA-256 of files that nobody put as a ball: worked out when asked for, kept with the version.

Whoever asks for a file whose checksums are being worked out waits for them.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber
from mictlanfs_server.v4 import records
from mictlanfs_server.v4.peers import HASHED_AT_ONCE_SIZE_BYTES

if TYPE_CHECKING:
    from mictlanfs.model import Buffer
    from mictlanfs_server.v4.catalog import File
    from mictlanfs_server.v4.fetching import Fetching
    from mictlanfs_server.v4.space import Changes

_Version = tuple[InodeNumber, int]


class Checksums:
    """Gives files the records that they have not got. Belongs to one event loop."""

    def __init__(self, fetching: Fetching, changes: Changes) -> None:
        self._fetching = fetching
        self._changes = changes
        self._under_way: dict[_Version, asyncio.Task[tuple[wire.RecordPiece, ...]]] = {}

    async def ensure(self, file: File) -> File:
        """The file with a record: its own, or one with checksums that are worked out now.

        Reads the whole file. Cancellation: it goes on while others wait for it.

        Raises:
            MictlanError: STALE when the file changes meanwhile, and as reading it does.
        """
        if file.record is not None:
            return file
        version = (file.ino, file.node.attributes.content_version)
        task = self._under_way.get(version)
        if task is None:
            task = asyncio.create_task(self._make(file), name="v4-checksums")
            self._under_way[version] = task
            task.add_done_callback(lambda _: self._under_way.pop(version, None))
        pieces = await asyncio.shield(task)
        return replace(file, record=wire.FileRecord(version[1], pieces))

    async def _make(self, file: File) -> tuple[wire.RecordPiece, ...]:
        sizes, sums = file.sizes(), _Sums()
        async with aclosing(self._fetching.read(file.node, 0, file.size)) as body:
            left = list(reversed(sizes))
            async for buffer in body:
                rest = memoryview(buffer)
                while rest:
                    taken = rest[: left[-1]]
                    await sums.add(taken)
                    rest = rest[len(taken) :]
                    left[-1] -= len(taken)
                    if not left[-1]:
                        left.pop()
                        sums.cut()
        if left:
            # The one piece of an empty file.
            sums.cut()
        mtime_ns = file.node.attributes.mtime_ns
        pieces = tuple(records.made_pieces(sizes, sums.pieces, sums.whole, mtime_ns))
        await self._keep(file, pieces)
        return pieces

    async def _keep(self, file: File, pieces: tuple[wire.RecordPiece, ...]) -> None:
        op = wire.SetRecord(file.ino, file.node.attributes.content_version, pieces)
        try:
            await self._changes.apply([op])
        except MictlanError as error:
            # Too large a record is worked out again the next time.
            if error.kind in {Kind.CONFLICT, Kind.NOT_FOUND}:
                detail = "the file changed meanwhile"
                raise MictlanError(Kind.STALE, "read", file.path, detail) from error
            if error.kind is not Kind.INVALID:
                raise

    async def close(self) -> None:
        """End what is under way."""
        for task in list(self._under_way.values()):
            task.cancel()
        if self._under_way:
            await asyncio.wait(list(self._under_way.values()))


class _Sums:
    """SHA-256 of a file and of its pieces."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._piece = hashlib.sha256()
        self.pieces: list[str] = []

    async def add(self, data: Buffer) -> None:
        """Add bytes, in a thread when it takes long."""
        if len(data) <= HASHED_AT_ONCE_SIZE_BYTES:
            self._add(data)
        else:
            await asyncio.to_thread(self._add, data)

    def _add(self, data: Buffer) -> None:
        self._whole.update(data)
        self._piece.update(data)

    def cut(self) -> None:
        """The piece ends here."""
        self.pieces.append(self._piece.hexdigest())
        self._piece = hashlib.sha256()

    @property
    def whole(self) -> str:
        """Of all bytes so far."""
        return self._whole.hexdigest()
