"""Messages about the fragments of coded chunks; see `wire.Path`."""

from __future__ import annotations

from mictlanfs.model import ChunkId, Coding, Struct
from mictlanfs.wirecoding import WireError


class MakeFragment(Struct, frozen=True):
    """Ask a peer to get a fragment of a chunk that it has none of. Answer: `FragmentMade`.

    It fetches the fragment from a peer that has it, or else enough others, and computes it. What it
    stores has the digest that `coding` says. A fragment that it has already counts as made; another
    one of the chunk, which the metadata do not count, gives way.

    Errors of the request: INVALID.

    Attributes:
        length: of the chunk, bytes.
        coding: of the chunk; `indices` says which fragments others have.
        sources: URLs of peers that have these, in their order.
        index: of the fragment wanted.
    """

    id: ChunkId
    length: int
    coding: Coding
    sources: tuple[str, ...]
    index: int


class FragmentMade(Struct, frozen=True):
    """What became of it.

    Attributes:
        error: None: the fragment is there, durably.
        bad: indices of fragments that their peers do not have, or have damaged.
    """

    error: WireError | None = None
    bad: tuple[int, ...] = ()
