"""What a chunk of copies and a coded one have in common for an operation, and what they have not.

The replicas of a chunk are told apart by rank: of copies it is a place in the order of the writer,
of a coded chunk it says which fragment the peer holds, so it never changes. Nothing is read here
but rows of the chunk itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from mictlanfs.model import (
    DATA_FRAGMENTS_MAX,
    DATA_FRAGMENTS_MIN,
    DIGEST_SIZE_BYTES,
    PARITY_FRAGMENTS_MAX,
    SMALL_CHUNK_SIZE_BYTES,
    Chunk,
    Coding,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mictlanfs.model import PeerNumber
    from mictlanfs_server.metadata.rows import ChunkRecord
    from mictlanfs_server.metadata.transaction import Transaction

# Length and digest of a chunk; fragments that are needed, and their digests, if it is coded.
Content: TypeAlias = tuple[int, bytes, int, bytes | None]


def fault_of(chunk: Chunk, coding: Coding) -> str:
    """What is wrong with a coded chunk as a writer describes it; empty when nothing is."""
    if not DATA_FRAGMENTS_MIN <= coding.data <= DATA_FRAGMENTS_MAX:
        return "has an impossible number of fragments of data"
    if not 1 <= coding.count - coding.data <= PARITY_FRAGMENTS_MAX:
        return "has an impossible number of fragments"
    if len(coding.digests) % DIGEST_SIZE_BYTES:
        return "has a digest of the wrong size"
    if chunk.length < SMALL_CHUNK_SIZE_BYTES:
        return "is too small to be coded"
    if len(coding.indices) != len(chunk.peers) or len(set(coding.indices)) != len(chunk.peers):
        return "has not one fragment on each peer"
    if not all(0 <= index < coding.count for index in coding.indices):
        return "names a fragment that it has not"
    if len(chunk.peers) < coding.data:
        return "has too few fragments to be read"
    return ""


def content_of(chunk: Chunk) -> Content:
    """What a chunk is, wherever it lies."""
    needed, digests = (
        (1, None) if chunk.coding is None else (chunk.coding.data, chunk.coding.digests)
    )
    return chunk.length, chunk.digest, needed, digests


def known_content(record: ChunkRecord) -> Content:
    """The same of a chunk that has a row."""
    return record.length, record.digest, record.needed, record.digests


def with_replicas(chunk: Chunk, other: Chunk) -> Chunk:
    """`chunk` with the replicas that only `other`, of the same content, names."""
    peers, indices = list(chunk.peers), list(chunk.coding.indices if chunk.coding else ())
    for place, peer in enumerate(other.peers):
        index = other.coding.indices[place] if other.coding else -1
        if peer not in peers and index not in indices:
            peers.append(peer)
            if other.coding is not None:
                indices.append(index)
    coding = chunk.coding and Coding(chunk.coding.data, chunk.coding.digests, tuple(indices))
    return Chunk(chunk.id, chunk.length, chunk.digest, tuple(peers), coding)


def without_peers(chunk: Chunk, is_gone: Callable[[PeerNumber], bool]) -> Chunk:
    """`chunk` without the replicas on some peers."""
    coding = chunk.coding
    if coding is None:
        left = tuple([number for number in chunk.peers if not is_gone(number)])
        return Chunk(chunk.id, chunk.length, chunk.digest, left)
    places = zip(coding.indices, chunk.peers, strict=True)
    kept = [(index, number) for index, number in places if not is_gone(number)]
    indices = tuple([index for index, _ in kept])
    peers = tuple([number for _, number in kept])
    left_coding = Coding(coding.data, coding.digests, indices)
    return Chunk(chunk.id, chunk.length, chunk.digest, peers, left_coding)


def is_readable(chunk: Chunk) -> bool:
    """Whether the replicas that a chunk names give it back."""
    return len(chunk.peers) >= (1 if chunk.coding is None else chunk.coding.data)


def add_replicas(tx: Transaction, chunk: Chunk) -> None:
    """Record the replicas of a known chunk that are new."""
    known_peers = tx.rows.replicas(chunk.id)
    # Whoever repeats what was written long ago may name a copy that was given up since.
    passed_over = {*known_peers, *tx.rows.given_up(chunk.id)}
    if chunk.coding is None:
        added = [peer for peer in chunk.peers if peer not in passed_over]
        for peer in added:
            tx.rows.add_replica(chunk.id, peer)
        if added:
            # Who adds a copy wants to have it: it is no surplus.
            tx.rows.raise_wanted(chunk.id, len(known_peers) + len(added))
        return
    taken = set(tx.rows.ranks(chunk.id))
    for index, peer in zip(chunk.coding.indices, chunk.peers, strict=True):
        # A fragment that another peer has already is one too many, and this one an orphan.
        if peer not in passed_over and index not in taken:
            taken.add(index)
            tx.rows.add_replica(chunk.id, peer, index)
