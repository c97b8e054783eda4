"""Which leases an operation needs, and which an answer is covered by.

The key of a directory, and of what has not exactly one name, is its own number; that of anything
else is the number of the directory that names it. Pure functions; what they cannot know without
the database they leave in a `Wanted`, which the store turns into keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mictlanfs import wire
from mictlanfs.model import FileKind, InodeNumber, Node

if TYPE_CHECKING:
    from mictlanfs_server.metadata.base import KeysFound

Place = tuple[InodeNumber, bytes]


@dataclass(slots=True)
class Wanted:
    """What a batch touches.

    Attributes:
        keys: known without asking.
        inodes: whose keys are to be found.
        places: names of which what they stand for is to be found, if anything.
        removed: those of `places` that may lose the name.
        made: inodes that the batch makes: there is nothing to find.
    """

    keys: set[InodeNumber] = field(default_factory=set)
    inodes: set[InodeNumber] = field(default_factory=set)
    places: set[Place] = field(default_factory=set)
    removed: set[Place] = field(default_factory=set)
    made: set[InodeNumber] = field(default_factory=set)


def _make(wanted: Wanted, op: wire.MakeNode) -> None:
    wanted.keys.add(op.parent)
    wanted.made.add(op.ino)


def _link(wanted: Wanted, op: wire.Link) -> None:
    # From now on it is its own key.
    wanted.keys.update((op.parent, op.ino))
    wanted.inodes.add(op.ino)


def _remove(wanted: Wanted, op: wire.Unlink | wire.RemoveDirectory) -> None:
    wanted.keys.add(op.parent)
    wanted.removed.add((op.parent, op.name))


def _rename(wanted: Wanted, op: wire.Rename) -> None:
    wanted.keys.update((op.parent, op.new_parent))
    wanted.places.add((op.parent, op.name))
    wanted.removed.add((op.new_parent, op.new_name))


def _change(
    wanted: Wanted,
    op: wire.SetAttributes
    | wire.SetXattr
    | wire.RemoveXattr
    | wire.WriteExtents
    | wire.SetBucketPolicy,
) -> None:
    wanted.inodes.add(op.ino)


def _record(wanted: Wanted, op: wire.SetRecord) -> None:
    # What it says of a certain content stays true, or is refused, whoever changes the file.
    if op.content_version == 0:
        wanted.inodes.add(op.ino)


def _part(wanted: Wanted, op: wire.PutPart) -> None:
    # The other parts that lose their names have no other, so the directory is their key too.
    wanted.keys.add(op.parent)
    wanted.inodes.add(op.ino)
    wanted.made.add(op.ball_ino)


def _restore(wanted: Wanted, op: wire.Restore) -> None:
    # The item has no name: nobody else can look at it.
    wanted.keys.add(op.parent)
    wanted.made.add(op.ino)


def _nothing(wanted: Wanted, op: wire.Release) -> None:
    """What a session sustained has no name: nobody else can look at it."""


TOUCHED: Final[dict[type[Any], Callable[[Wanted, Any], None]]] = {
    wire.MakeNode: _make,
    wire.Link: _link,
    wire.Unlink: _remove,
    wire.RemoveDirectory: _remove,
    wire.Rename: _rename,
    wire.SetAttributes: _change,
    wire.SetXattr: _change,
    wire.RemoveXattr: _change,
    wire.WriteExtents: _change,
    wire.Release: _nothing,
    wire.SetBucketPolicy: _change,
    wire.SetRecord: _record,
    wire.PutPart: _part,
    wire.Restore: _restore,
}


def touched_by(ops: Iterable[wire.Operation]) -> Wanted:
    """What a batch touches, each operation applied to the space as it is before the batch.

    That is enough: what a later operation finds under a name was there before the batch, under
    this or another name that the batch also names, or is made by the batch.
    """
    wanted = Wanted()
    for op in ops:
        TOUCHED[type(op)](wanted, op)
    wanted.inodes -= wanted.made
    return wanted


def keys_of_batch(wanted: Wanted, found: KeysFound) -> frozenset[InodeNumber]:
    """All keys of a batch, when the store has found what it wanted."""
    keys = set(wanted.keys)
    for inode in found.inodes.values():
        keys.add(inode.key)
    for place, inode in found.places.items():
        keys.add(inode.key)
        if place in wanted.removed:
            # The number itself: what has no name any more is its own key, and so was what had
            # several. The directories of its other names: one of them becomes its key.
            keys.add(inode.ino)
            keys.update(inode.parents)
    return frozenset(keys)


# --- answers -------------------------------------------------------------------------------------


def of_lookup(request: wire.Lookup, answer: Node) -> list[InodeNumber]:
    """The directory; what was found."""
    return [request.parent, answer.key]


def of_node(_: wire.GetNode, answer: Node) -> list[InodeNumber]:
    """The inode."""
    return [answer.key]


def of_list(request: wire.ListDirectory, page: wire.ListPage) -> list[InodeNumber]:
    """The directory; each of the page's entries that is its own key."""
    return _of_page(request.ino, page)


def of_listing(listing: wire.Listing) -> list[InodeNumber]:
    """The directory; each of its entries that is its own key."""
    return _of_page(listing.ino, listing.page)


def of_tree(_: wire.ListTree, answer: wire.TreePage) -> list[InodeNumber]:
    """Those of each listing."""
    found = {key: None for listing in answer.listings for key in of_listing(listing)}
    return list(found)


def _of_page(ino: InodeNumber, page: wire.ListPage) -> list[InodeNumber]:
    keys = [ino]
    for entry in page.entries:
        attributes = entry.node.attributes
        if attributes.kind is FileKind.DIRECTORY or attributes.nlink != 1:
            keys.append(entry.node.key)
    return keys


def of_resolved(_: wire.Resolve, answer: wire.Resolved) -> list[InodeNumber]:
    """Every directory on the way; what was found."""
    return list(dict.fromkeys(node.key for node in answer.nodes))


def directories_made(ops: Iterable[wire.Operation]) -> list[InodeNumber]:
    """The directories that operations make: each is a key of its own."""
    return [op.ino for op in ops if type(op) is wire.MakeNode and op.kind is FileKind.DIRECTORY]
