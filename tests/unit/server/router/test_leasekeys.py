from typing import get_args

import pytest

from mictlanfs import wire
from mictlanfs.model import BucketPolicy, FileKind, InodeNumber
from mictlanfs_server.metadata.base import KeyedInode, KeysFound
from mictlanfs_server.router.leasekeys import TOUCHED, Wanted, keys_of_batch, touched_by

P, Q, D, F, G = (InodeNumber(number) for number in range(10, 15))
# The space before each batch: `P` holds the file `F`, which has another name in `Q`, the directory
# `D` and the file `G`.
FOUND = {
    (P, b"linked"): KeyedInode(F, F, (P, Q)),
    (P, b"folder"): KeyedInode(D, D),
    (P, b"file"): KeyedInode(G, P),
    (Q, b"other"): KeyedInode(InodeNumber(20), Q),
}
BY_NUMBER = {inode.ino: inode for inode in FOUND.values()}


def keys_of(*ops: wire.Operation) -> set[int]:
    wanted = touched_by(ops)
    places = {p: FOUND[p] for p in wanted.places | wanted.removed if p in FOUND}
    inodes = {ino: BY_NUMBER[ino] for ino in wanted.inodes if ino in BY_NUMBER}
    return set(keys_of_batch(wanted, KeysFound(inodes, places)))


def test_every_operation_says_what_it_touches() -> None:
    assert set(TOUCHED) == set(get_args(wire.Operation))


@pytest.mark.parametrize(
    ("op", "keys"),
    [
        (wire.MakeNode(P, b"new", InodeNumber(99), FileKind.FILE, 0, 0, 0, 1), {P}),
        (wire.Link(G, Q, b"new", 1), {Q, P, G}),
        (wire.Unlink(P, b"file", 1), {P, G}),
        (wire.Unlink(P, b"linked", 1), {P, F, Q}),
        (wire.Unlink(P, b"none", 1), {P}),
        (wire.RemoveDirectory(P, b"folder", 1), {P, D}),
        (wire.Rename(P, b"file", Q, b"new", 1), {P, Q}),
        (wire.Rename(P, b"folder", Q, b"new", 1), {P, Q, D}),
        (wire.Rename(P, b"folder", Q, b"other", 1), {P, Q, D, 20}),
        (wire.SetAttributes(G, 1), {P}),
        (wire.SetAttributes(F, 1), {F}),
        (wire.SetXattr(G, b"user.x", b"", 1), {P}),
        (wire.RemoveXattr(D, b"user.x", 1), {D}),
        (wire.WriteExtents(G, (), (), 0, 1), {P}),
        (wire.Release(G), set()),
        (wire.SetBucketPolicy(D, BucketPolicy(), 1), {D}),
        (wire.SetRecord(G, 0, ()), {P}),
        (wire.SetRecord(G, 3, ()), set()),
        (wire.PutPart(G, P, b"file", b"ball", InodeNumber(99), 0, 2, b"", 1), {P}),
        (wire.PutPart(F, P, b"linked", b"ball", InodeNumber(99), 0, 2, b"", 1), {P, F}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_operation_needs_the_keys_of_what_it_changes(op: wire.Operation, keys: set[int]) -> None:
    assert keys_of(op) == keys


def test_what_the_batch_makes_itself_is_not_looked_for() -> None:
    ino = InodeNumber(99)
    made = wire.MakeNode(P, b"new", ino, FileKind.FILE, 0, 0, 0, 1)
    wanted = touched_by([made, wire.SetAttributes(ino, 1), wire.WriteExtents(ino, (), (), 0, 1)])
    assert wanted == Wanted(keys={P}, made={ino})
