"""What a snapshot of the metadata is made of, as objects of peers. Pure: bytes in, bytes out.

A snapshot is the database, cut into *pieces* of 256 KiB, and a *manifest* that names them::

    piece-<BLAKE3 of the piece>               its bytes, compressed
    meta-<moment, 20 digits>-<BLAKE3 of the manifest>

Pieces are named by what they hold, so a snapshot stores only those that have changed since the last
one, and several snapshots share the rest. A manifest is stored when all of its pieces are durable:
a peer that has a manifest has the whole snapshot. Both names tell whether the bytes are right.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from mictlanfs.checksums import DIGEST_SIZE_BYTES, digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, Buffer, Struct
from mictlanfs.wirecoding import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT: Final = 1
# Smaller pieces are more objects and compress worse (64 KiB: to 0.32), larger ones are sent again
# for one page that changed.
PIECE_SIZE_BYTES: Final = 256 * KIB
MANIFEST_PREFIX: Final = "meta-"
PIECE_PREFIX: Final = "piece-"
# Measured on metadata of 30,000 files: 1 takes 0.8 ms a piece and leaves 0.306 of it, 3 takes
# 1.8 ms and leaves 0.305; zlib takes 3.7 ms and leaves 0.344. Most of the rest are digests.
_LEVEL: Final = 1
_MANIFEST_NAME: Final = re.compile(rf"{MANIFEST_PREFIX}(\d{{20}})-([0-9a-f]{{64}})")

HOUR_NS: Final = 3600 * 10**9
DAY_NS: Final = 24 * HOUR_NS
KEPT_NEWEST: Final = 3
KEPT_HOURS: Final = 24
KEPT_DAYS: Final = 7


class Manifest(Struct, frozen=True):
    """What a snapshot consists of.

    Attributes:
        moment_ns: everything committed before is in it; the router's clock.
        schema: version of the database.
        size: bytes of the database.
        piece_size: bytes of each piece but the last.
        digests: BLAKE3 of the pieces, one behind the other.
        version: of the program that made it, for people.
    """

    format: int
    space_id: str
    moment_ns: int
    schema: int
    size: int
    piece_size: int
    digests: bytes
    version: str

    @property
    def pieces(self) -> list[bytes]:
        """The digests one by one."""
        step = DIGEST_SIZE_BYTES
        return [self.digests[start : start + step] for start in range(0, len(self.digests), step)]

    def length_of(self, index: int) -> int:
        """Bytes of the piece `index`."""
        return min(self.piece_size, self.size - index * self.piece_size)


class ManifestName(NamedTuple):
    """What the name of a manifest says."""

    name: str
    moment_ns: int
    digest: bytes


def piece_name(digest: bytes) -> str:
    """The name of the object that holds a piece."""
    return PIECE_PREFIX + digest.hex()


def manifest_name(moment_ns: int, body: bytes) -> str:
    """The name of the object that holds a manifest."""
    return f"{MANIFEST_PREFIX}{moment_ns:020d}-{digest_of([body]).hex()}"


def parse_manifest_name(name: str) -> ManifestName | None:
    """The parts of such a name; None for any other."""
    match = _MANIFEST_NAME.fullmatch(name)
    if match is None:
        return None
    return ManifestName(name, int(match[1]), bytes.fromhex(match[2]))


def encode_manifest(manifest: Manifest) -> bytes:
    """The body of a manifest."""
    return encode(manifest)


def decode_manifest(name: ManifestName, body: Buffer) -> Manifest:
    """The manifest of that name.

    Raises:
        MictlanError: CORRUPT: the bytes are not those of the name; UNSUPPORTED: of a newer program.
    """
    if digest_of([body]) != name.digest:
        raise MictlanError(Kind.CORRUPT, "read snapshot", name.name, "the manifest is damaged")
    manifest = decode(body, Manifest)
    if manifest.format > FORMAT:
        detail = f"it has format {manifest.format}, this program knows {FORMAT}: use a newer one"
        raise MictlanError(Kind.UNSUPPORTED, "read snapshot", name.name, detail)
    counted = -(-manifest.size // manifest.piece_size) if manifest.piece_size > 0 else -1
    if len(manifest.digests) != counted * DIGEST_SIZE_BYTES:
        raise MictlanError(
            Kind.CORRUPT, "read snapshot", name.name, "the manifest contradicts itself"
        )
    return manifest


def pack(piece: Buffer) -> bytes:
    """The object that holds a piece."""
    # Imported by whoever makes or restores snapshots, and by no other process.
    import zstandard

    return zstandard.ZstdCompressor(_LEVEL).compress(piece)


def unpack(body: Buffer, digest: bytes, length: int) -> bytes:
    """The piece in an object.

    Raises:
        MictlanError: CORRUPT: these are not the bytes of that digest.
    """
    import zstandard

    name = piece_name(digest)
    try:
        piece = zstandard.ZstdDecompressor().decompress(body, max_output_size=length)
    except zstandard.ZstdError as error:
        raise MictlanError(Kind.CORRUPT, "read snapshot", name, str(error)) from error
    if len(piece) != length or digest_of([piece]) != digest:
        raise MictlanError(
            Kind.CORRUPT, "read snapshot", name, "the bytes are not those of its name"
        )
    return piece


def kept(moments_ns: Iterable[int], now_ns: int) -> set[int]:
    """Which snapshots are kept, by their moments: fewer the older they are.

    The newest 3; of the last 24 hours the newest of each; of the last 7 days the newest of each.
    """
    newest_first = sorted(set(moments_ns), reverse=True)
    chosen = set(newest_first[:KEPT_NEWEST])
    for step_ns, count in ((HOUR_NS, KEPT_HOURS), (DAY_NS, KEPT_DAYS)):
        chosen.update(_newest_of_each(newest_first, step_ns, now_ns // step_ns - count))
    return chosen


def _newest_of_each(newest_first: Iterable[int], step_ns: int, after: int) -> Iterator[int]:
    seen = set()
    for moment_ns in newest_first:
        number = moment_ns // step_ns
        if number > after and number not in seen:
            seen.add(number)
            yield moment_ns
