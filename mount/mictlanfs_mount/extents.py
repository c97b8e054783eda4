"""What the mount knows of a file's committed content: which chunk holds which range.

Pure data, no I/O. Invariants: entries are sorted and never overlap; within a known range, what no
entry covers is a hole; outside the known ranges nothing is claimed. The map belongs to one content
version of the file; when the file changes behind this mount, the map is emptied and read again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

import msgspec

from mictlanfs.intervals import merge
from mictlanfs.model import Chunk, ChunkId, Extent

END_OF_FILE = 2**63
_offset_of = attrgetter("offset")


class Segment(msgspec.Struct, frozen=True, gc=False):
    """Bytes `[offset, end)` of a file, as committed.

    Attributes:
        chunk: where the bytes are; None for a hole.
        chunk_offset: of the first byte in the chunk.
    """

    offset: int
    end: int
    chunk: Chunk | None = None
    chunk_offset: int = 0

    @property
    def is_inline(self) -> bool:
        """Whether the bytes are in the metadata."""
        return self.chunk is not None and not self.chunk.peers

    def cut(self, start: int, end: int) -> Segment:
        """The part of the segment within `[start, end)`, which must not be empty."""
        start, end = max(start, self.offset), min(end, self.end)
        return Segment(start, end, self.chunk, self.chunk_offset + start - self.offset)


class ExtentMap:
    """The known part of a file's extents.

    Attributes:
        content_version: of the file that the map describes.
    """

    __slots__ = ("_entries", "_known", "content_version")

    def __init__(self, content_version: int = -1) -> None:
        self.content_version = content_version
        # Most maps of a large tree are empty, and an empty tuple takes no memory.
        self._entries: list[Segment] | tuple[()] = ()
        self._known: list[tuple[int, int]] | tuple[()] = ()

    def __len__(self) -> int:
        """Pieces of chunks that are known; holes are none."""
        return len(self._entries)

    def reset(self, content_version: int) -> None:
        """Forget everything: the file has another content now."""
        self.content_version = content_version
        self._entries = ()
        self._known = ()

    def learn(
        self,
        start: int,
        end: int | None,
        extents: Iterable[Extent],
        chunks: Iterable[Chunk],
    ) -> None:
        """Take over what the router says of `[start, end)`; None: up to the end of the file."""
        known: Mapping[ChunkId, Chunk] = {chunk.id: chunk for chunk in chunks}
        if start == 0 and end is None and not self._known:
            # So it is with each file of a listing, and what takes longest of learning one.
            self._entries = [
                Segment(e.offset, e.offset + e.length, known[e.chunk_id], e.chunk_offset)
                for e in extents
            ]
            if len(self._entries) > 1:
                self._entries.sort(key=_offset_of)
            self._known = [(0, END_OF_FILE)]
            return
        stop = END_OF_FILE if end is None else end
        self._cut_out(start, stop)
        fresh = [
            Segment(e.offset, e.end, known[e.chunk_id], e.chunk_offset).cut(start, stop)
            for e in extents
            if e.end > start and e.offset < stop
        ]
        if fresh:
            entries = self._entries = self._entries or []
            index = bisect_right(entries, start, key=_offset_of)
            entries[index:index] = sorted(fresh, key=_offset_of)
        self._known = merge([*self._known, (start, stop)])

    def replace(self, segments: Sequence[Segment], content_version: int) -> None:
        """This mount committed `segments`, which made `content_version`.

        When the version is not the next one, somebody else changed the file too: all is forgotten.
        An answer that was overtaken by a newer one says nothing new.
        """
        if not self._follows(content_version):
            return
        for segment in segments:
            self._cut_out(segment.offset, segment.end)
            entries = self._entries = self._entries or []
            index = bisect_right(entries, segment.offset, key=_offset_of)
            entries.insert(index, segment)
        self._known = merge([*self._known, *((s.offset, s.end) for s in segments)])

    def truncate(self, size: int, content_version: int) -> None:
        """This mount set the file's size, which made `content_version`; see `replace`."""
        if not self._follows(content_version):
            return
        self._cut_out(size, END_OF_FILE)
        # Behind the new size there is nothing, and growing later makes a hole.
        self._known = merge([*self._known, (size, END_OF_FILE)])

    def _follows(self, content_version: int) -> bool:
        """Go on to a version; whether what is known of the one before still holds."""
        is_next = content_version == self.content_version + 1
        if is_next:
            self.content_version = content_version
        elif content_version > self.content_version:
            self.reset(content_version)
        return is_next

    def first_unknown(self, start: int, end: int) -> int | None:
        """The first offset in `[start, end)` that nothing is known of; None when all is known."""
        for known_start, known_end in self._known:
            if known_start <= start < known_end:
                return None if end <= known_end else known_end
        return start

    def count(self, start: int, end: int) -> int:
        """How many pieces of chunks are known to begin in `[start, end)`."""
        return bisect_left(self._entries, end, key=_offset_of) - bisect_left(
            self._entries, start, key=_offset_of
        )

    def around(self, start: int, end: int) -> Segment | None:
        """The one segment that covers all of `[start, end)`; None when several do, or a hole."""
        entries = self._entries
        index = bisect_right(entries, start, key=_offset_of) - 1
        if index < 0 or entries[index].end < end:
            return None
        return entries[index]

    def segments(self, start: int, end: int) -> list[Segment]:
        """The range `[start, end)`, which must be known, in order and without gaps."""
        found: list[Segment] = []
        index = max(bisect_right(self._entries, start, key=_offset_of) - 1, 0)
        position = start
        while position < end:
            entry = self._entries[index] if index < len(self._entries) else None
            index += 1
            if entry is None or entry.offset >= end:
                found.append(Segment(position, end))
                break
            if entry.end <= position:
                continue
            if entry.offset > position:
                found.append(Segment(position, entry.offset))
            found.append(entry.cut(start, end))
            position = entry.end
        return found

    def inline_segments(self, size_max: int) -> list[Segment]:
        """The first segments whose bytes are in the metadata, of at most `size_max` bytes."""
        found: list[Segment] = []
        size = 0
        for entry in self._entries:
            if entry.is_inline:
                size += entry.end - entry.offset
                if size > size_max:
                    break
                found.append(entry)
        return found

    def _cut_out(self, start: int, end: int) -> None:
        """Remove what the entries say of `[start, end)`."""
        if not self._entries:
            return
        first = max(bisect_right(self._entries, start, key=_offset_of) - 1, 0)
        last = first
        kept: list[Segment] = []
        while last < len(self._entries) and self._entries[last].offset < end:
            entry = self._entries[last]
            last += 1
            if entry.offset < start:
                kept.append(entry.cut(entry.offset, start) if entry.end > start else entry)
            if entry.end > end:
                kept.append(entry.cut(end, entry.end))
        self._entries[first:last] = kept
