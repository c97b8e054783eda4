"""Messages about objects that peers keep for a router; see `mictlanfs.wire`.

An *object* is a named run of bytes that is no chunk: nothing in the metadata refers to it, because
it is the metadata. Whoever collects orphans never sees objects.
"""

from __future__ import annotations

from typing import Final

from mictlanfs.model import Struct

OBJECT_SIZE_BYTES_MAX: Final = 16 * 1024 * 1024
OBJECT_NAME_LENGTH_MAX: Final = 128
# Of one page: about 300 KB of names.
OBJECTS_PAGE_MAX: Final = 4096


class ListObjects(Struct, frozen=True):
    """Ask a peer for the objects whose names begin with `prefix` and lie behind `after`.

    In order of names, at most `OBJECTS_PAGE_MAX`. Errors: INVALID. Answer: `ObjectPage`.
    """

    prefix: str = ""
    after: str = ""


class ObjectInfo(Struct, frozen=True):
    """An object of a peer: its name, bytes, and seconds since it was stored."""

    name: str
    size: int
    age_s: float


class ObjectPage(Struct, frozen=True):
    """Some objects; none: there are no more."""

    objects: tuple[ObjectInfo, ...]


class MetadataSnapshot(Struct, frozen=True):
    """A snapshot of the metadata that is complete on peers.

    Attributes:
        moment_ns: everything committed before is in it; by the router's clock.
        size: bytes of the database.
        sent: bytes that the peers did not have yet, all peers together.
        peers: ids of those that have all of it.
    """

    moment_ns: int
    size: int
    sent: int
    peers: tuple[str, ...]
