"""Read-only extended attributes that are worked out when they are asked for. Pure.

They tell a program on the mount what the space knows of a file: bucket, ball id (the path inside
the bucket), size, chunks, where these lie, and a checksum. They are of the content last committed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from mictlanfs.checksums import digest_of
from mictlanfs.model import Node, PeerNumber

PREFIX: Final = b"user.mictlanx."
BUCKET: Final = PREFIX + b"bucket"
BALL_ID: Final = PREFIX + b"ball_id"
CHECKSUM: Final = PREFIX + b"checksum"
SIZE: Final = PREFIX + b"size"
CHUNKS: Final = PREFIX + b"chunks"
PEERS: Final = PREFIX + b"peers"
NAMES: Final = frozenset({BUCKET, BALL_ID, CHECKSUM, SIZE, CHUNKS, PEERS})
# What is asked of the path, and what of the chunks.
OF_PATH: Final = frozenset({BUCKET, BALL_ID})

PeerName = Callable[[PeerNumber], str]


def of_path(name: bytes, path: tuple[bytes, ...]) -> bytes:
    """BUCKET or BALL_ID of the file at `path`, which begins with its bucket."""
    return path[0] if name == BUCKET else b"/".join(path[1:])


def of_content(name: bytes, node: Node, peer_name: PeerName) -> bytes | None:
    """CHECKSUM, CHUNKS or PEERS of a file, from its first extents; None when there is none."""
    if name == CHECKSUM:
        return checksum(node)
    return _text(chunks(node) if name == CHUNKS else peers(node, peer_name))


def checksum(node: Node) -> bytes | None:
    """What identifies the content, as far as digests of chunks do.

    `blake3:` and the digest of the file when it is empty or one whole chunk; `blake3-chunks:` and
    the digests in order when it is several whole chunks without a gap. None for anything else: for
    files with holes, with chunks that are used in part, or with more extents than a page.
    """
    found = {chunk.id: chunk for chunk in node.chunks}
    digests, end = [], 0
    for extent in node.extents:
        chunk = found[extent.chunk_id]
        if extent.offset != end or extent.chunk_offset or extent.length != chunk.length:
            return None
        digests.append(chunk.digest.hex())
        end = extent.end
    if not node.has_all_extents or end != node.attributes.size:
        return None
    if not digests:
        return b"blake3:" + digest_of(()).hex().encode()
    kind = "blake3:" if len(digests) == 1 else "blake3-chunks:"
    return (kind + ",".join(digests)).encode()


def chunks(node: Node) -> dict[str, Any]:
    """The chunks of a file in order, and whether these are all."""
    listed = [
        {"id": chunk.id.hex(), "size": chunk.length, "blake3": chunk.digest.hex()}
        for chunk in node.chunks
    ]
    return {"count": len(listed), "is_complete": node.has_all_extents, "chunks": listed}


def peers(node: Node, peer_name: PeerName) -> dict[str, list[str]]:
    """The names of the peers that hold each chunk, by the id of the chunk."""
    return {chunk.id.hex(): [peer_name(peer) for peer in chunk.peers] for chunk in node.chunks}


def _text(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
