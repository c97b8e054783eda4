"""Makes fragments of coded chunks: has a peer fetch or compute one, and records that it has it.

Order of durability, as for copies: the fragment durable on its peer, then its row, in the place of
the row of the peer that had it. What that one still holds is deleted when nobody can look for it
any more. A source that has not its fragment, or a bad one, loses its row once another fragment is
made, unless the chunk could not be read without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Coding
from mictlanfs.wirefragments import FragmentMade, MakeFragment
from mictlanfs_server.router.peerrequests import delete_on_peer, make_fragment

if TYPE_CHECKING:
    from mictlanfs.model import PeerNumber
    from mictlanfs_server.metadata.copies import ChunkCopies, CopyStore
    from mictlanfs_server.router.peerrequests import Transport
    from mictlanfs_server.router.upkeep.standing import Standing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a fragment.

    Attributes:
        is_made: it is there.
        reason: why not, for people.
        is_silent: its peer does not answer, or takes nothing.
    """

    is_made: bool
    reason: str = ""
    is_silent: bool = False


class FragmentMaker:
    """Makes one fragment after the other.

    Args:
        give_up_at_ns: when a fragment that is given up now may be deleted.
    """

    def __init__(
        self, store: CopyStore, transport: Transport, give_up_at_ns: Callable[[], int]
    ) -> None:
        self._store = store
        self._transport = transport
        self._give_up_at_ns = give_up_at_ns

    async def make(
        self,
        chunk: ChunkCopies,
        index: int,
        target: PeerNumber,
        standing: Standing,
        silent: Collection[PeerNumber],
        *,
        is_check: bool,
    ) -> Outcome:
        """Have `target` get a fragment; with `is_check` it has a row already."""
        coding = chunk.coding
        assert coding is not None
        places = {
            number: i
            for i, number in zip(coding.indices, chunk.peers, strict=True)
            if number in standing.sources and number not in silent and number != target
        }
        request = MakeFragment(
            chunk.id,
            chunk.length,
            Coding(coding.data, coding.digests, tuple(places.values())),
            tuple([standing.peers[number].url for number in places]),
            index,
        )
        peer = standing.peers[target]
        try:
            made = await make_fragment(self._transport, peer.url, request)
        except MictlanError as error:
            log.info("%s makes no fragment: %s", peer.id, error)
            return Outcome(is_made=False, reason=f"{peer.id}: {error}", is_silent=True)
        if made.error is not None:
            failure = made.error.to_error()
            is_full = failure.kind is Kind.NO_SPACE
            return Outcome(is_made=False, reason=f"{peer.id}: {failure}", is_silent=is_full)
        if is_check:
            return Outcome(is_made=True)
        refused = await self._store.move_fragments(
            [(chunk.id, index, target)], delete_at_ns=self._give_up_at_ns()
        )
        await self._drop_bad(chunk, coding, made)
        if refused:
            # The chunk died and was forgotten meanwhile: nobody else would ever delete it.
            await delete_on_peer(self._transport, peer.url, [chunk.id])
        return Outcome(is_made=not refused, reason=f"{peer.id}: the chunk is gone" * bool(refused))

    async def _drop_bad(self, chunk: ChunkCopies, coding: Coding, made: FragmentMade) -> None:
        held = dict(zip(coding.indices, chunk.peers, strict=True))
        bad = [held[index] for index in made.bad if index in held]
        if bad:
            log.warning("fragments of %s are missing or bad on %s", chunk.id.hex(), bad)
            await self._store.drop_replicas({chunk.id: bad})
