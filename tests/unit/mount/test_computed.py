"""Computed extended attributes: what is said of which content, and when nothing is said."""

from __future__ import annotations

import json

import pytest

from mictlanfs.checksums import digest_of
from mictlanfs.model import Attributes, Chunk, ChunkId, Extent, FileKind, InodeNumber, Node
from mictlanfs.model import PeerNumber as Peer
from mictlanfs_mount import computed

ONE = Chunk(ChunkId(b"1" * 16), 10, b"\x01" * 32, (Peer(1), Peer(2)))
TWO = Chunk(ChunkId(b"2" * 16), 4, b"\x02" * 32, (Peer(2),))


def node(size: int, *extents: Extent, has_all: bool = True) -> Node:
    attributes = Attributes(InodeNumber(5), FileKind.FILE, 0o644, 0, 0, size, 0, 0, 0, 1)
    named = {extent.chunk_id for extent in extents}
    found = tuple(chunk for chunk in (ONE, TWO) if chunk.id in named)
    return Node(attributes, b"", extents, found, has_all)


WHOLE_ONE = Extent(0, 10, ONE.id, 0)
THEN_TWO = Extent(10, 4, TWO.id, 0)


def name_of(peer: Peer) -> str:
    return f"peer-{peer}"


def test_bucket_and_ball_id_are_of_the_path() -> None:
    path = (b"bucket", b"a", b"\xff")
    assert computed.of_path(computed.BUCKET, path) == b"bucket"
    assert computed.of_path(computed.BALL_ID, path) == b"a/\xff"


def test_the_checksum_of_one_whole_chunk_is_its_digest() -> None:
    assert computed.checksum(node(10, WHOLE_ONE)) == b"blake3:" + b"01" * 32


def test_the_checksum_of_an_empty_file_is_that_of_nothing() -> None:
    assert computed.checksum(node(0)) == b"blake3:" + digest_of(()).hex().encode()


def test_the_checksum_of_several_chunks_names_each() -> None:
    expected = b"blake3-chunks:" + b"01" * 32 + b"," + b"02" * 32
    assert computed.checksum(node(14, WHOLE_ONE, THEN_TWO)) == expected


@pytest.mark.parametrize(
    "unknown",
    [
        node(1),
        node(12, WHOLE_ONE),
        node(9, Extent(0, 9, ONE.id, 0)),
        node(9, Extent(0, 9, ONE.id, 1)),
        node(11, Extent(1, 10, ONE.id, 0)),
        node(15, WHOLE_ONE, Extent(11, 4, TWO.id, 0)),
        node(10, WHOLE_ONE, has_all=False),
    ],
)
def test_nothing_is_said_of_content_that_digests_of_chunks_do_not_cover(unknown: Node) -> None:
    assert computed.checksum(unknown) is None


def test_chunks_are_counted_and_listed() -> None:
    value = computed.of_content(computed.CHUNKS, node(14, WHOLE_ONE, THEN_TWO), name_of)
    assert value is not None
    assert json.loads(value) == {
        "count": 2,
        "is_complete": True,
        "chunks": [
            {"id": "31" * 16, "size": 10, "blake3": "01" * 32},
            {"id": "32" * 16, "size": 4, "blake3": "02" * 32},
        ],
    }


def test_a_list_of_chunks_says_when_there_are_more() -> None:
    value = computed.of_content(computed.CHUNKS, node(99, WHOLE_ONE, has_all=False), name_of)
    assert value is not None
    assert json.loads(value)["is_complete"] is False


def test_peers_are_named_for_each_chunk() -> None:
    value = computed.of_content(computed.PEERS, node(14, WHOLE_ONE, THEN_TWO), name_of)
    assert value is not None
    assert json.loads(value) == {"31" * 16: ["peer-1", "peer-2"], "32" * 16: ["peer-2"]}


def test_chunk_in_the_metadata_lies_on_no_peer_and_has_its_digest() -> None:
    inline = Chunk(ONE.id, ONE.length, ONE.digest, ())
    found = Node(node(10, WHOLE_ONE).attributes, b"", (WHOLE_ONE,), (inline,), True)
    value = computed.of_content(computed.PEERS, found, name_of)
    assert value is not None
    assert json.loads(value) == {"31" * 16: []}
    assert computed.checksum(found) == computed.checksum(node(10, WHOLE_ONE))


def test_the_longest_lists_fit_an_extended_attribute() -> None:
    chunks = tuple(
        Chunk(ChunkId(n.to_bytes(16, "big")), 2**24, b"\xff" * 32, tuple(map(Peer, range(5))))
        for n in range(256)
    )
    extents = tuple(Extent(n * 2**24, 2**24, chunk.id, 0) for n, chunk in enumerate(chunks))
    attributes = Attributes(InodeNumber(5), FileKind.FILE, 0o644, 0, 0, 2**32, 0, 0, 0, 1)
    longest = Node(attributes, b"", extents, chunks, True)
    for name in (computed.CHECKSUM, computed.CHUNKS, computed.PEERS):
        value = computed.of_content(name, longest, lambda _: "mictlanx-peer-1000")
        assert value is not None
        assert len(value) < 64 * 1024
