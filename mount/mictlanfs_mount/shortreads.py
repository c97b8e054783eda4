"""Reads that end before the kernel believes the file does, while another mount makes it shorter.

The kernel fills what a READ did not bring with zeros, and cuts the file that it knows to the end
that the answer tells (`fuse_read_update_size`). It does not cut it when it was told attributes, or
to forget them, after it had sent the READ: then zeros up to the size of before reach the program.
Nothing tells us whether it will. But a READ that was sent after an answer of ours is younger than
that answer, and the kernel repeats one that failed: what was read ahead, which nearly every READ
is, is asked for once more, page by page, before the program hears of it. So the first such READ is
refused, and what its repetition is answered is taken note of::

    ends where the kernel may believe --> answered
    ends before --(not refused yet)--> refused --(repeated)--> answered, and believed
                                         +--(told more, or to forget, meanwhile)--> refused again

A READ that begins behind the end is refused each time: an empty answer says that the file ends
where it begins. A program sees a refusal when the kernel had read nothing ahead, as the file had
just become shorter, or when there are two in a row. It gets EINTR, or the bytes before: then most
call again by themselves (Python, Go, Rust, coreutils, git), as they do for pipes.
"""

from __future__ import annotations

import errno
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import trio

from mictlanfs.clock import Clock
from mictlanfs.model import InodeNumber
from mictlanfs_mount.fileends import FileEnds
from mictlanfs_mount.inodes import Inode

# For how long after it was told a smaller size, or to forget one, the kernel may believe in the
# larger: a program that was told may have to wait for a processor before the kernel takes note.
DOUBT_S = 1.0
# The same for the end of an answer to a READ. Nothing is to be forgotten before.
SETTLE_S = 0.01
# Files that are watched at once; that of which the kernel was told longest ago is no more.
WATCHED_MAX = 256


class _Doubt:
    """What the kernel may believe of an open file that becomes shorter.

    Attributes:
        size: the largest that it may believe in.
        until_s: monotonic; from then on it believes what it was told last.
        refused: ranges of reads that were refused since it was last told more, or to forget.
        told_size: the largest that it was told since then.
        settled_s: monotonic; until then it may not have taken note of the end of an answer.
    """

    __slots__ = ("refused", "settled_s", "size", "told_size", "until_s")

    def __init__(self, size: int) -> None:
        self.size = size
        self.until_s = 0.0
        self.settled_s = 0.0
        self.refused: list[tuple[int, int]] = []
        self.told_size = 0


class ShortReads:
    """Which reads of all files must be refused.

    Attributes:
        refused_count: how many were.
        ends: where else the kernel may believe that files end.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._doubts: OrderedDict[InodeNumber, _Doubt] = OrderedDict()
        # Files whose pages a thread has forgotten: somewhere in there the kernel's version changes.
        self._forgetting: Counter[InodeNumber] = Counter()
        self._under_way: dict[InodeNumber, set[trio.Event]] = {}
        self.refused_count = 0
        self.ends = FileEnds()

    # --- what the kernel hears -------------------------------------------------------------------

    def on_told(self, inode: Inode, size: int) -> None:
        """The kernel is told a size."""
        former = inode.kernel_size
        if size == former and not self._doubts:
            return
        inode.kernel_size = size
        if size != former and inode.open_count:
            self.ends.note(inode.ino, former)
            if size < former:
                self._doubt(inode, former)
        self._grow(inode, size)

    def on_written(self, inode: Inode, end: int) -> None:
        """The kernel has bytes of a file written up to an offset."""
        if self.ends.is_contested(inode.ino):
            self.ends.note(inode.ino, end)
        if end > inode.kernel_size:
            self._grow(inode, end)

    def _grow(self, inode: Inode, size: int) -> None:
        inode.kernel_size = size
        doubt = self._doubts.get(inode.ino)
        if doubt is not None:
            doubt.size = max(doubt.size, size)
            doubt.told_size = max(doubt.told_size, size)

    def on_cut(self, inode: Inode, size: int) -> None:
        """The kernel itself gives the file a size, for a program."""
        inode.kernel_size = size
        self._doubts.pop(inode.ino, None)
        self.ends.forget((inode.ino,))

    def on_forgotten(self, inode: Inode) -> None:
        """The kernel is told to forget attributes: what it was told just before it may not take."""
        if inode.open_count:
            self._doubt(inode, inode.kernel_size).refused.clear()

    @contextmanager
    def forgetting_pages(self, inodes: Iterable[InodeNumber]) -> Iterator[None]:
        """A thread has the kernel forget pages, and with them attributes, at some time inside."""
        found = tuple(inodes)
        self._forgetting.update(found)
        try:
            yield
        finally:
            self._forgetting -= Counter(found)

    def _doubt(self, inode: Inode, size: int) -> _Doubt:
        now_s = self._clock.monotonic_s()
        doubt = self._doubts.pop(inode.ino, None)
        if doubt is None or doubt.until_s < now_s:
            doubt = _Doubt(size)
        self._doubts[inode.ino] = doubt
        if len(self._doubts) > WATCHED_MAX:
            self._doubts.popitem(last=False)
        doubt.size = max(doubt.size, size)
        doubt.until_s = now_s + DOUBT_S
        return doubt

    # --- answers ---------------------------------------------------------------------------------

    def check(self, inode: Inode, offset: int, end: int, body_size: int, size: int) -> None:
        """See whether a READ of `[offset, end)` of a file of `size` bytes may be answered so short.

        Nothing may be awaited from here to the answer.

        Raises:
            InterruptedError: it must be repeated.
        """
        answer_end = offset + body_size
        doubt = self._doubts.get(inode.ino)
        believed = inode.kernel_size
        if doubt is not None and doubt.until_s < self._clock.monotonic_s():
            del self._doubts[inode.ino]
            if offset > size and doubt.refused:
                # Nobody is refused for ever.
                return
            doubt = None
        # The kernel would not ask for what it does not believe in.
        is_behind = offset > size and (doubt is not None or offset < believed)
        if doubt is not None:
            believed = max(believed, doubt.size)
        if answer_end >= min(end, believed) and not is_behind:
            return
        if doubt is None:
            doubt = self._doubt(inode, believed)
        is_repeated = any(start <= offset and end <= stop for start, stop in doubt.refused)
        is_heard = is_repeated and doubt.told_size <= answer_end
        if is_heard and not is_behind and inode.ino not in self._forgetting:
            inode.kernel_size = doubt.size = answer_end
            doubt.refused.clear()
            doubt.settled_s = self._clock.monotonic_s() + SETTLE_S
            return
        if doubt.told_size > answer_end:
            doubt.refused.clear()
            doubt.told_size = 0
        doubt.refused.append((offset, end))
        self.refused_count += 1
        raise InterruptedError(errno.EINTR, "the file was cut short elsewhere")

    def unsettled_s(self, inodes: Iterable[InodeNumber]) -> float:
        """For how long nothing of these files should be forgotten."""
        if not self._doubts:
            return 0.0
        found = [doubt.settled_s for ino in inodes if (doubt := self._doubts.get(ino)) is not None]
        return max(0.0, max(found, default=0.0) - self._clock.monotonic_s())

    # --- reads under way -------------------------------------------------------------------------

    @contextmanager
    def reading(self, ino: InodeNumber) -> Iterator[None]:
        """A READ of a file is under way, and may be answered with another state of it."""
        done = trio.Event()
        under_way = self._under_way.setdefault(ino, set())
        under_way.add(done)
        try:
            yield
        finally:
            done.set()
            under_way.discard(done)
            if not under_way:
                self._under_way.pop(ino, None)

    async def until_read(self, ino: InodeNumber) -> None:
        """Wait for the READs of a file that are under way now."""
        for done in tuple(self._under_way.get(ino, ())):
            await done.wait()
