"""Which fragments of a coded chunk to ask for, and when there are enough: decisions, no waiting.

::

    read --> the fragments that hold the bytes --all there--> join
                 |                 |
               failed          they let wait
                 +--> others, until any `data` are there --> decode

Fragments are asked for in this order: wanted ones whose peers work, others whose peers work, wanted
ones of peers in doubt, the others. Used by `coded` for trio and by the door of the v4 API for
asyncio, each with tasks of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mictlanfs import fragments, wire
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer, Chunk, Coding, PeerInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

# A fragment that takes longer is asked for no less, but others are asked for as well.
HEDGE_S: Final = 0.5

Asked = tuple[int, PeerInfo]


class Gathering:
    """A read of the bytes `[start, end)` of the fragments wanted, or of enough others.

    Attributes:
        have: the bytes that came, by fragment.
    """

    def __init__(
        self,
        directory: PeerDirectory,
        chunk: Chunk,
        coding: Coding,
        wanted: Iterable[int],
        start: int,
        end: int,
    ) -> None:
        self._directory = directory
        self._chunk = chunk
        self._coding = coding
        self._wanted = tuple(wanted)
        self.start = start
        self.end = end
        self.have: dict[int, Buffer] = {}
        self._size = fragments.fragment_size(chunk.length, coding.data)
        self._untried = self._ordered()
        self._running: dict[int, PeerInfo] = {}
        self._slow: set[int] = set()
        self._errors: list[MictlanError] = []

    def _ordered(self) -> list[Asked]:
        places = zip(self._coding.indices, self._chunk.peers, strict=True)
        known = [(i, peer) for i, number in places if (peer := self._directory.get(number))]

        def key(place: Asked) -> tuple[bool, bool]:
            index, peer = place
            return (self._directory.is_doubtful(peer.number), index not in self._wanted)

        return sorted(known, key=key)

    # --- what there is ---------------------------------------------------------------------------

    @property
    def is_enough(self) -> bool:
        """Whether the bytes can be had from what came."""
        return len(self.have) >= self._coding.data or all(i in self.have for i in self._wanted)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.is_enough or not self._running

    @property
    def is_cheap(self) -> bool:
        """Whether `result` takes no longer than handing it to a thread would."""
        if all(index in self.have for index in self._wanted):
            return True
        return (self.end - self.start) * self._coding.data <= fragments.IN_LOOP_SIZE_BYTES_MAX

    def framed(self, index: int) -> wire.FrameChunk:
        """What a peer holds of a fragment."""
        return wire.FrameChunk(self._chunk.id, self._size, self._coding.digest(index))

    def result(self) -> list[Buffer]:
        """The bytes of the fragments wanted, decoded where they did not come.

        Raises:
            MictlanError: too few fragments came: CORRUPT, UNAVAILABLE, TIMED_OUT.
        """
        if not self.is_enough:
            raise self._shortage()
        return fragments.decode(self.have, self._coding, self._wanted)

    # --- what to do ------------------------------------------------------------------------------

    def first(self) -> list[Asked]:
        """What to ask for at once."""
        best = self._untried[: len(self._wanted)]
        is_direct = all(
            index in self._wanted and not self._directory.is_doubtful(peer.number)
            for index, peer in best
        )
        return self._take(len(self._wanted) if is_direct else self._coding.data)

    def came(self, index: int, body: Buffer) -> None:
        """Bytes of a fragment are there."""
        self._running.pop(index, None)
        self.have[index] = body

    def failed(self, index: int, error: MictlanError) -> None:
        """A fragment cannot be had."""
        self._running.pop(index, None)
        self._errors.append(error)

    def waited(self) -> None:
        """Nothing came for `HEDGE_S`: those that are under way are not counted on any more."""
        self._slow.update(self._running)

    def further(self) -> list[Asked]:
        """What to ask for besides, now that something came, failed or let wait."""
        if self.is_enough or not (self._slow or self._errors):
            return []
        hoped = len(self._running.keys() - self._slow)
        return self._take(self._coding.data - len(self.have) - hoped)

    def end_well(self) -> None:
        """Tell the directory which peers were waited for in vain."""
        if self.is_enough:
            for index in self._slow & self._running.keys():
                self._directory.failed(self._running[index].number)

    def _take(self, count: int) -> list[Asked]:
        count = max(count, 0)
        taken, self._untried = self._untried[:count], self._untried[count:]
        self._running.update(taken)
        return taken

    def _shortage(self) -> MictlanError:
        for error in self._errors:
            if error.is_retryable:
                return error
        detail = f"only {len(self.have)} of {self._coding.data} fragments can be read"
        if self._errors:
            detail += f": {self._errors[0]}"
        kind = Kind.CORRUPT if self._errors else Kind.UNAVAILABLE
        return MictlanError(kind, "get chunk", self._chunk.id.hex(), detail)


def requests_of(chunk: Chunk, start: int, end: int) -> Sequence[tuple[Sequence[int], int, int]]:
    """What to gather for the bytes `[start, end)` of a coded chunk, to be joined in order.

    Each is fragments wanted and the range in them. A whole chunk is one, so that what is missing is
    decoded once; a range is one for each fragment that it touches.
    """
    assert chunk.coding is not None
    data = chunk.coding.data
    if end - start == chunk.length:
        return [(range(data), 0, fragments.fragment_size(chunk.length, data))]
    parts = fragments.parts_of(start, end, chunk.length, data)
    return [([part.index], part.start, part.end) for part in parts]
