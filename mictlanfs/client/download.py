"""Getting an object: extents from the router, chunks from peers, bytes in order into a sink.

Several chunks are under way at once with bounded memory. Holes are not fetched: a file keeps them,
a stream gets zeros.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import trio

from mictlanfs.client.chunks import ChunkStore
from mictlanfs.client.inline import bodies_along
from mictlanfs.client.names import Names
from mictlanfs.client.newfile import NewFile
from mictlanfs.client.pipeline import Budget, in_order
from mictlanfs.client.tree import Tree
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Attributes, Buffer, Chunk, Extent, Node
from mictlanfs.oserrors import translated_os_errors

# Of all gets of a client together: bounds its memory.
IN_FLIGHT_SIZE_BYTES_MAX = 64 * MIB
IN_FLIGHT_COUNT_MAX = 128
ATTEMPTS_MAX = 3
ZEROS_SIZE_BYTES = MIB
# Set-user-id and its like are not taken over: the space is no authority on this machine.
MODE_MASK = 0o777

Progress = Callable[[int], None]


class Sink(Protocol):
    """Where the bytes of an object go. Calls come in order of offset."""

    async def write(self, offset: int, data: Buffer) -> None:
        """Take bytes that belong at `offset`."""
        ...

    async def finish(self, attributes: Attributes) -> None:
        """All bytes are there: the object ends at the size in `attributes`."""
        ...

    def abandon(self) -> None:
        """Undo what can be undone. Harmless after `finish`, and when called again."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    """An extent of the object, its chunk, and the bytes of that when they came along."""

    extent: Extent
    chunk: Chunk
    body: bytes | None


class Downloader:
    """Gets objects out of the space, any number at once."""

    def __init__(self, tree: Tree, chunks: ChunkStore) -> None:
        self._tree = tree
        self._chunks = chunks
        self._budget = Budget(IN_FLIGHT_SIZE_BYTES_MAX, IN_FLIGHT_COUNT_MAX)

    async def get_whole(
        self,
        names: Names,
        node: Node,
        open_sink: Callable[[], Sink],
        progress: Progress | None = None,
    ) -> Attributes:
        """Get the file `names`, last seen as `node`, all of it as of one moment.

        When it changes meanwhile it is looked up and fetched again into a new sink.

        Returns:
            The attributes that belong to the content.

        Raises:
            MictlanError: STALE when it changes each time.
        """
        for _ in range(ATTEMPTS_MAX - 1):
            try:
                await self.get(node, open_sink(), progress)
            except MictlanError as error:
                if error.kind is not Kind.STALE:
                    raise
                found = await self._tree.find_content(names)
                node = found.node
            else:
                return node.attributes
        await self.get(node, open_sink(), progress)
        return node.attributes

    async def get(self, node: Node, sink: Sink, progress: Progress | None = None) -> None:
        """Write the content of the file `node` into `sink`.

        Cancellation: the sink has got some of it and is abandoned.

        Raises:
            MictlanError: STALE when the file changed meanwhile.
        """

        async def fetch(part: _Part) -> Buffer:
            start, end = part.extent.chunk_offset, part.extent.chunk_offset + part.extent.length
            if part.body is not None:
                return memoryview(part.body)[start:end]
            return await self._chunks.fetch(part.chunk, start, end)

        async def fetched(part: _Part, data: Buffer) -> None:
            await sink.write(part.extent.offset, data)
            if progress is not None:
                progress(len(data))

        try:
            await in_order(
                self._parts(node),
                fetch,
                fetched,
                size_of=lambda part: part.extent.length,
                budget=self._budget,
            )
            await sink.finish(node.attributes)
        except BaseException:
            sink.abandon()
            raise

    async def _parts(self, node: Node) -> AsyncGenerator[_Part, None]:
        """Every extent with its chunk, in order of offset."""
        end = 0
        async with aclosing(self._tree.extents(node)) as pages:
            async for page in pages:
                chunks = {chunk.id: chunk for chunk in page.chunks}
                bodies = {c.id: body for c, body in bodies_along(page.chunks, page.inline)}
                for extent in page.extents:
                    chunk = chunks.get(extent.chunk_id)
                    if chunk is None or extent.offset < end:
                        detail = "extents overlap, or name a chunk that is not described"
                        raise MictlanError(Kind.PROTOCOL, "read extents", detail=detail)
                    end = extent.end
                    yield _Part(extent, chunk, bodies.get(chunk.id))


class FileSink(NewFile):
    """A local file with mode and time of an object."""

    def __init__(self, destination: Path) -> None:
        super().__init__(destination, 0o600)

    async def finish(self, attributes: Attributes) -> None:
        """Give the file its size, mode, time and name."""
        assert self.descriptor is not None
        with translated_os_errors("write", str(self.destination)):
            os.truncate(self.descriptor, attributes.size)
            os.fchmod(self.descriptor, attributes.mode & MODE_MASK)
            os.utime(self.descriptor, ns=(attributes.mtime_ns, attributes.mtime_ns))
        self.appear()


class StreamSink:
    """Anything that is written from start to end: standard output, a pipe, a device."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._end = 0

    async def write(self, offset: int, data: Buffer) -> None:
        """Write `data`, after zeros for what is skipped."""
        await self._write_zeros(offset)
        await self._write(data)

    async def _write_zeros(self, end: int) -> None:
        while self._end < end:
            await self._write(bytes(min(ZEROS_SIZE_BYTES, end - self._end)))

    async def _write(self, data: Buffer) -> None:
        # In a thread, since a pipe blocks while nobody reads; a broken one is for the caller.
        await trio.to_thread.run_sync(self._write_all, data, abandon_on_cancel=True)
        self._end += len(data)

    def _write_all(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            view = view[self._stream.write(view) :]

    async def finish(self, attributes: Attributes) -> None:
        """Write the hole at the end, if there is one, and flush."""
        await self._write_zeros(attributes.size)
        await trio.to_thread.run_sync(self._stream.flush, abandon_on_cancel=True)

    def abandon(self) -> None:
        """Nothing: what was written cannot be taken back."""


def open_sink(destination: Path | BinaryIO) -> Sink:
    """The sink that a caller named: a local file to replace, or a stream open for writing.

    A symlink is followed, so that what it names is replaced and not the link. What is there and
    is no regular file (a device, a pipe) is written to.

    Raises:
        MictlanError: the place cannot be written; IS_DIRECTORY.
    """
    if not isinstance(destination, Path):
        return StreamSink(destination)
    with translated_os_errors("write", str(destination)):
        path = destination.resolve()
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return FileSink(path)
        if stat.S_ISREG(mode):
            return FileSink(path)
        return _DeviceSink(path)


class _DeviceSink(StreamSink):
    """A stream that this module opened itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("wb", buffering=0))

    async def finish(self, attributes: Attributes) -> None:
        """Write the rest and close."""
        await super().finish(attributes)
        self.abandon()

    def abandon(self) -> None:
        """Close the stream."""
        self._stream.close()
