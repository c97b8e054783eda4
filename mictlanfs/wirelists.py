"""The messages that list directories, one or many at once; `mictlanfs.wire` offers all of it."""

from __future__ import annotations

from typing import Final

from mictlanfs.model import Attributes, InodeNumber, Node, Struct

LIST_ENTRIES_MAX: Final = 2000
TREE_ROOTS_MAX: Final = 64


class ListDirectory(Struct, frozen=True):
    """Read a page of a directory in order of names (as bytes). Answer: `ListPage`.

    Attributes:
        after: the last name of the page before; empty for the first.
        extents_max: extents to send with each file, 0 to 256.
        inline_max: bytes of inline chunks to send with each file; a page carries at most 4 MiB.

    Errors: NOT_FOUND, NOT_DIRECTORY.
    """

    ino: InodeNumber
    after: bytes = b""
    entries_max: int = LIST_ENTRIES_MAX
    extents_max: int = 0
    inline_max: int = 0


class Entry(Struct, frozen=True):
    """A name and what it names."""

    name: bytes
    node: Node


class ListPage(Struct, frozen=True):
    """Entries in order of names.

    Attributes:
        directory: attributes of the directory itself, from the same moment.
        parent: the inode `..` names.
        is_last: whether nothing follows.
    """

    entries: tuple[Entry, ...]
    directory: Attributes
    parent: InodeNumber
    is_last: bool


class ListTree(Struct, frozen=True):
    """Read directories and what is below them, for a walk over a tree. Answer: `TreePage`.

    The order is that in which a walk visits them: each of `roots` in turn, and behind a directory
    those in it by name, each with what is below it. One that has more than `entries_max` entries
    is passed over; the answer ends before the first that does not fit into what is left.

    Nobody waits for what may not be read or leased at once, nothing is recalled for it: it is left
    out, with all below it, as is a root that is gone or is no directory. The first root is another
    matter, unless `is_ahead`: it is what is wanted, and answered as `ListDirectory` is, with its
    errors.

    Attributes:
        roots: at most 64.
        entries_max: of the directories together; each counts as one more.
        extents_max: extents to send with each file, 0 to 256.
        inline_max: bytes of inline chunks to send with each file; the answer carries at most 4 MiB,
            and ends when a file might not get what it should.
        is_ahead: whether also the first root is wanted only later, if at all.
    """

    roots: tuple[InodeNumber, ...]
    entries_max: int = LIST_ENTRIES_MAX
    extents_max: int = 0
    inline_max: int = 0
    is_ahead: bool = False


class Listing(Struct, frozen=True):
    """A directory with all of its entries; of the first root of a tree perhaps only a page."""

    ino: InodeNumber
    page: ListPage


class TreePage(Struct, frozen=True):
    """Directories in the order of a walk, all from the same moment."""

    listings: tuple[Listing, ...]
