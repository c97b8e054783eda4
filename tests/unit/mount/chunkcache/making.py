"""Chunks to cache, and a space that gives them and can be held up or made to fail."""

import errno
import os
import random
from pathlib import Path

import pytest
import trio

from mictlanfs.checksums import digest_of
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import Buffer, Chunk


def make_chunk(length: int, seed: int = 0) -> tuple[Chunk, bytes]:
    """A chunk and its bytes, which repeat no block."""
    body = random.Random(seed).randbytes(length)
    return Chunk(new_chunk_id(), length, digest_of([body]), ()), body


class FakeSpace:
    """Gives ranges of the chunks it was told of.

    Attributes:
        fetched: the ranges asked for, in order.
        gate: fetches wait for it.
        error: raised by fetches, when set.
    """

    def __init__(self) -> None:
        self.fetched: list[tuple[Chunk, int, int]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.bodies: dict[bytes, bytes] = {}

    def add(self, length: int, seed: int = 0) -> tuple[Chunk, bytes]:
        chunk, body = make_chunk(length, seed)
        self.bodies[chunk.id] = body
        return chunk, body

    def close_gate(self) -> None:
        self.gate = trio.Event()

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return [(start, end) for _, start, end in self.fetched]

    async def fetch(self, chunk: Chunk, start: int, end: int) -> Buffer:
        self.fetched.append((chunk, start, end))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.bodies[chunk.id][start:end]


def content(found: Buffer | None) -> bytes | None:
    """What a level gave, in a form that can be compared."""
    return None if found is None else bytes(found)


def skip_unless_read_without_waiting(directory: Path) -> None:
    """Skip a test of hits on disk where the file system (tmpfs, say) has no RWF_NOWAIT."""
    directory.mkdir(exist_ok=True)
    fd = os.open(directory, os.O_RDWR | os.O_TMPFILE)
    try:
        os.write(fd, b"x")
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip(f"{directory} cannot be read without waiting")
        raise
    finally:
        os.close(fd)
