"""Bringing one copy of the database to peers, piece by piece, and taking away what is too old.

Order of durability on each peer: all pieces, then the manifest. On the way back: the manifest, then
the pieces that no other manifest names. So a manifest that can be read names pieces that are there,
whatever is killed in between; pieces that are left over are found by the next one who looks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB
from mictlanfs_server.metasnapshots.form import (
    MANIFEST_PREFIX,
    PIECE_PREFIX,
    PIECE_SIZE_BYTES,
    Manifest,
    ManifestName,
    decode_manifest,
    encode_manifest,
    kept,
    manifest_name,
    pack,
    parse_manifest_name,
    piece_name,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mictlanfs_server.metasnapshots.peerobjects import PeerObjects

log = logging.getLogger(__name__)

# Of all peers together: a tenth of what loopback carries, and a few per cent of a processor.
SEND_BYTES_PER_S: Final = 32 * MIB
# 16 MiB are hashed in about 8 ms; then others have their turn.
_HASHED_AT_ONCE: Final = 64
_HASH_PAUSE_S: Final = 0.02
# How many of the pieces that a peer has already are read again each time.
CHECKED_COUNT: Final = 4
# A piece that no manifest names may belong to one that is still to come.
LEFT_OVER_AGE_S: Final = 600.0


@dataclass(eq=False, slots=True)
class Target:
    """A peer that is to have the snapshot.

    Attributes:
        missing: pieces that it does not have yet.
        error: why it will not have it.
    """

    id: str
    objects: PeerObjects
    missing: set[bytes] = field(default_factory=set)
    error: MictlanError | None = None


class CopyFile:
    """The copy of the database in a file, read piece by piece in threads."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    async def digests(self) -> bytes:
        """The digests of all pieces, one behind the other."""
        count = -(-self.size // PIECE_SIZE_BYTES)
        parts = []
        for start in range(0, count, _HASHED_AT_ONCE):
            stop = min(start + _HASHED_AT_ONCE, count)
            parts.append(await asyncio.to_thread(self._hash, start, stop))
            await asyncio.sleep(_HASH_PAUSE_S)
        return b"".join(parts)

    async def packed(self, index: int) -> bytes:
        """The object that holds a piece."""
        return await asyncio.to_thread(lambda: pack(self._read(index)))

    def _hash(self, start: int, stop: int) -> bytes:
        return b"".join(digest_of([self._read(index)]) for index in range(start, stop))

    def _read(self, index: int) -> bytes:
        return os.pread(self._fd, PIECE_SIZE_BYTES, index * PIECE_SIZE_BYTES)


async def send(copy: CopyFile, manifest: Manifest, targets: Sequence[Target]) -> int:
    """Store a snapshot on every target, or note in it why not. Returns the bytes sent.

    Cancellation: a target has the whole snapshot or does not count; the pieces stay for the next.
    """
    pieces = manifest.pieces
    await asyncio.gather(*(_survey(target, manifest) for target in targets))
    sent = 0
    for digest, index in {digest: index for index, digest in enumerate(pieces)}.items():
        lacking = [t for t in targets if t.error is None and digest in t.missing]
        if not lacking:
            continue
        body = await copy.packed(index)
        await asyncio.gather(*(_put(target, digest, body) for target in lacking))
        sent += len(body) * len(lacking)
        await asyncio.sleep(len(body) * len(lacking) / SEND_BYTES_PER_S)
    await asyncio.gather(*(_complete(target, manifest) for target in targets))
    return sent


async def _survey(target: Target, manifest: Manifest) -> None:
    """Find out which pieces a target lacks; a few of the others are looked at more closely."""
    try:
        held = await _held_pieces(target.objects)
        pieces = dict.fromkeys(manifest.pieces)
        target.missing = {digest for digest in pieces if piece_name(digest) not in held}
        there = [digest for digest in pieces if digest not in target.missing]
        for digest in random.sample(there, min(CHECKED_COUNT, len(there))):
            if not await _is_good(target, digest, manifest):
                target.missing.add(digest)
    except MictlanError as error:
        target.error = error


async def _is_good(target: Target, digest: bytes, manifest: Manifest) -> bool:
    length = manifest.length_of(manifest.pieces.index(digest))
    try:
        unpack(await target.objects.get(piece_name(digest)), digest, length)
    except MictlanError as error:
        if error.kind not in {Kind.CORRUPT, Kind.NOT_FOUND}:
            raise
        log.error("peer %s has a damaged piece of the metadata: %s", target.id, error)  # noqa: TRY400
        return False
    return True


async def _held_pieces(objects: PeerObjects) -> set[str]:
    return {found.name async for found in objects.list(PIECE_PREFIX)}


async def _put(target: Target, digest: bytes, body: bytes) -> None:
    try:
        await target.objects.put(piece_name(digest), body)
    except MictlanError as error:
        target.error = error
    else:
        target.missing.discard(digest)


async def _complete(target: Target, manifest: Manifest) -> None:
    """Store the manifest, if all pieces are there: also those that were there before."""
    if target.error is not None:
        return
    body = encode_manifest(manifest)
    try:
        held = await _held_pieces(target.objects)
        if any(piece_name(digest) not in held for digest in manifest.pieces):
            detail = "pieces that were stored are gone: does another router use this peer?"
            raise MictlanError(Kind.CONFLICT, "store snapshot", target.id, detail)
        await target.objects.put(manifest_name(manifest.moment_ns, body), body)
    except MictlanError as error:
        target.error = error


async def thin_out(objects: PeerObjects, *, looks_for_left_over: bool) -> None:
    """Take away the snapshots of a peer that are too old, and pieces that none of the rest names.

    Raises:
        MictlanError: the peer does not answer, or has snapshots of a newer program.
    """
    found = [parse_manifest_name(info.name) async for info in objects.list(MANIFEST_PREFIX)]
    names = [name for name in found if name is not None]
    moments = [name.moment_ns for name in names]
    chosen = kept(moments, max(moments, default=0))
    old = [name for name in names if name.moment_ns not in chosen]
    for name in old:
        await objects.delete(name.name)
    if old or looks_for_left_over:
        await _delete_unnamed(objects, [name for name in names if name.moment_ns in chosen])


async def _delete_unnamed(objects: PeerObjects, names: Sequence[ManifestName]) -> None:
    unnamed = {
        info.name async for info in objects.list(PIECE_PREFIX) if info.age_s >= LEFT_OVER_AGE_S
    }
    for name in names:
        try:
            manifest = decode_manifest(name, await objects.get(name.name))
        except MictlanError as error:
            if error.kind is not Kind.CORRUPT:
                raise
            log.error("a snapshot of the metadata on %s is of no use: %s", objects.url, error)  # noqa: TRY400
            await objects.delete(name.name)
            continue
        unnamed.difference_update(map(piece_name, manifest.pieces))
    for piece in sorted(unnamed):
        await objects.delete(piece)
