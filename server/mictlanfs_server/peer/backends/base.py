"""The protocol of a back end: a place for immutable chunks.

A back end keeps whole chunks by id and digest. It never knows small chunks, capacity or who asks:
the store above it does. A chunk is *staged* (uploaded and verified, visible to nobody), then
*published* (durable and visible, whole). Every operation is idempotent: doing it twice is doing it
once, and removing what is not there is no error.

`tests/contract/backends` runs one suite over every form.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import msgspec

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer, ChunkId

Give: TypeAlias = Callable[[int], Awaitable[None]]


class StoredChunk(msgspec.Struct, frozen=True, gc=False):
    """What names a chunk and proves it.

    Attributes:
        id: made by the writer.
        length: bytes, at least 1.
        digest: BLAKE3 of the bytes.
    """

    id: ChunkId
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Traits:
    """What a back end can do, so that nobody asks for its class.

    Attributes:
        name: for logs and status.
        is_persistent: whether published chunks outlive the process.
    """

    name: str
    is_persistent: bool


class Staged(Protocol):
    """A chunk that was uploaded and verified. Ends by `publish` or `discard`."""

    @property
    def sums(self) -> bytes:
        """The checksums of its blocks; see `mictlanfs.blocksums`."""
        ...

    async def publish(self) -> None:
        """Make the chunk durable and visible; an equal one that is there is replaced.

        Cancellation: the chunk may become visible all the same.

        Raises:
            MictlanError: NO_SPACE, INTERNAL; the chunk may be visible, but need not be durable.
        """
        ...

    async def discard(self) -> None:
        """Forget the chunk; nothing happens once it is published. Never fails."""
        ...


class Backend(Protocol):
    """A place for chunks. Used from one event loop; `chunks` and `close` in any thread."""

    @property
    def traits(self) -> Traits:
        """What this back end can do."""
        ...

    async def stage(self, chunk: StoredChunk, pieces: AsyncIterable[Buffer]) -> Staged:
        """Upload and verify. The buffers may be used until this returns.

        What `pieces` raises is passed on. Whatever the failure, nothing is left behind.

        Cancellation: as a failure.

        Raises:
            MictlanError: CORRUPT (length or digest do not match), NO_SPACE, INTERNAL.
        """
        ...

    async def stage_file(self, chunk: StoredChunk, give: Give) -> Staged:
        """Have another process write the bytes to a file, then verify them.

        `give` is awaited with a descriptor for writing to it, which stays the back end's, and
        returns when all is written. What it raises is passed on. Whatever the failure, nothing is
        left behind.

        Cancellation: as a failure.

        Raises:
            MictlanError: as `stage`; UNSUPPORTED where chunks are no files, or nobody can tell
                whether somebody still writes to one.
        """
        ...

    async def read(self, chunk: StoredChunk, start: int, end: int) -> Buffer:
        """Bytes `[start, end)`; 0 <= start < end <= length.

        Raises:
            MictlanError: NOT_FOUND, CORRUPT (it is shorter than that), INTERNAL.
        """
        ...

    def open_file(self, chunk: StoredChunk) -> int | None:
        """A new descriptor for reading a chunk that is a file of its own; None in every other case.

        The caller closes it. Waits for no more than a name of the file system.
        """
        ...

    async def delete(self, chunk: StoredChunk) -> None:
        """Remove a chunk; one that is not there counts as removed. Need not be durable.

        Cancellation: the chunk may be removed all the same.

        Raises:
            MictlanError: INTERNAL.
        """
        ...

    async def check(self, chunk: StoredChunk) -> bytes:
        """Read all of a chunk, from the disk where that can be; the checksums of its blocks.

        Raises:
            MictlanError: NOT_FOUND; CORRUPT (it is not what its digest says, or the disk cannot
                give it); INTERNAL (no telling).
        """
        ...

    async def set_aside(self, chunk: StoredChunk) -> bool:
        """Take a chunk out of service, durably, and keep its bytes; False when it is not there.

        One that is aside already is replaced.

        Cancellation: it may be done all the same.

        Raises:
            MictlanError: NO_SPACE, INTERNAL.
        """
        ...

    async def drop_aside(self, chunk: StoredChunk) -> None:
        """Remove what was set aside; what is not there counts as removed.

        Raises:
            MictlanError: INTERNAL.
        """
        ...

    def chunks_aside(self) -> Iterator[StoredChunk]:
        """Every chunk that is set aside, in no order. Blocks."""
        ...

    def sweep_aside(self, kept: Collection[StoredChunk]) -> None:
        """Remove what is set aside but for `kept`. Blocks.

        Raises:
            OSError: something cannot be removed.
        """
        ...

    def chunks(self) -> Iterator[StoredChunk]:
        """Every published chunk, in no order. Blocks, without reading contents."""
        ...

    def free_bytes(self) -> int | None:
        """Bytes that may still be written, None where there is no telling. Does not block."""
        ...

    def close(self) -> None:
        """Let go of everything; nothing may be staged any more. Blocks; twice is once."""
        ...


def is_same(one: StoredChunk, other: StoredChunk) -> bool:
    """Whether both name the same bytes by the same id."""
    return (one.id, one.length, one.digest) == (other.id, other.length, other.digest)


def corrupt(chunk: StoredChunk, detail: str) -> MictlanError:
    """The error for bytes that are not those of `chunk`."""
    return MictlanError(Kind.CORRUPT, "chunk", chunk.id.hex(), detail)


@contextmanager
def translated_errors(operation: str, chunk: StoredChunk) -> Iterator[None]:
    """Turn errors of the operating system into NO_SPACE or INTERNAL."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        kind = Kind.NO_SPACE if full else Kind.INTERNAL
        raise MictlanError(kind, operation, chunk.id.hex(), str(error)) from error
