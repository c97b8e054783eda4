"""The inode table: which attributes win, how long an entry lives, whose pages the kernel has."""

from __future__ import annotations

import pytest

from mictlanfs.model import Chunk, ChunkId, Extent, InodeNumber, PeerNumber
from mictlanfs_mount.inodes import Inode, InodeTable
from tests.support.mount_space import attributes_of

INO = InodeNumber(7)
CHUNK = Chunk(ChunkId(bytes(16)), 100, bytes(32), (PeerNumber(1),))


def inode_at(version: int = 1, content_version: int = 1) -> Inode:
    inode = Inode(attributes_of(INO, version=version, content_version=content_version))
    inode.extents.reset(content_version)
    inode.extents.learn(0, None, [Extent(0, 100, CHUNK.id, 0)], [CHUNK])
    return inode


# --- attributes ----------------------------------------------------------------------------------


def test_newer_attributes_are_taken_over() -> None:
    inode = inode_at(version=3)
    newer = attributes_of(INO, version=4, content_version=1, mode=0o600)
    inode.learn(newer, 5.0)
    assert inode.attributes is newer
    assert inode.valid_until_s == 5.0


def test_answer_that_was_overtaken_is_ignored() -> None:
    inode = inode_at(version=3)
    known = inode.attributes
    inode.learn(attributes_of(INO, version=2, size=99), 50.0)
    assert inode.attributes is known
    assert inode.valid_until_s == 0.0


def test_same_attributes_told_again_are_valid_for_longer() -> None:
    inode = inode_at()
    inode.learn(attributes_of(INO, version=1, content_version=1), 5.0)
    inode.learn(attributes_of(INO, version=1, content_version=1), 9.0)
    assert inode.valid_until_s == 9.0


def test_same_attributes_from_an_older_listing_do_not_shorten_their_validity() -> None:
    inode = inode_at()
    inode.learn(attributes_of(INO, version=1, content_version=1), 9.0)
    inode.learn(attributes_of(INO, version=1, content_version=1), 5.0)
    assert inode.valid_until_s == 9.0


def test_new_content_empties_the_extent_map() -> None:
    inode = inode_at(content_version=1)
    inode.learn(attributes_of(INO, version=2, content_version=2), 1.0)
    assert inode.extents.content_version == 2
    assert inode.extents.first_unknown(0, 1) == 0


def test_change_of_anything_but_content_keeps_the_extent_map() -> None:
    inode = inode_at(content_version=1)
    inode.learn(attributes_of(INO, version=2, content_version=1), 1.0)
    assert inode.extents.first_unknown(0, 100) is None


def test_overtaken_answer_keeps_the_extent_map() -> None:
    inode = inode_at(version=5, content_version=4)
    inode.learn(attributes_of(INO, version=3, content_version=3), 1.0)
    assert inode.extents.content_version == 4
    assert inode.extents.first_unknown(0, 100) is None


# --- pages in the kernel -------------------------------------------------------------------------


def test_own_change_keeps_the_pages_of_the_kernel() -> None:
    inode = inode_at(version=4, content_version=4)
    inode.kernel_content_version = 4
    inode.note_own_change(attributes_of(INO, version=5, content_version=5))
    assert inode.kernel_content_version == 5
    assert inode.attributes.version == 5


def test_own_change_after_one_of_somebody_else_does_not_renew_the_pages() -> None:
    inode = inode_at(version=4, content_version=4)
    inode.kernel_content_version = 4
    inode.note_own_change(attributes_of(INO, version=6, content_version=6))
    assert inode.kernel_content_version == 4
    inode.note_own_change(attributes_of(INO, version=7, content_version=7))
    assert inode.kernel_content_version == 4


def test_own_change_answered_late_does_not_bring_old_attributes_back() -> None:
    inode = inode_at(version=9, content_version=9)
    inode.note_own_change(attributes_of(INO, version=8, content_version=8, size=1))
    assert inode.attributes.version == 9


def test_kernel_without_pages_gets_none_by_a_change() -> None:
    inode = inode_at(version=4, content_version=4)
    inode.note_own_change(attributes_of(INO, version=5, content_version=5))
    assert inode.kernel_content_version == -1


# --- the table -----------------------------------------------------------------------------------


def test_learning_twice_gives_the_same_inode() -> None:
    table = InodeTable()
    first = table.learn(attributes_of(INO, version=1), 1.0)
    second = table.learn(attributes_of(INO, version=2, size=5), 2.0)
    assert first is second is table.get(INO)
    assert first.attributes.size == 5
    assert len(table) == 1


def test_refresh_enters_nothing() -> None:
    table = InodeTable()
    table.refresh(attributes_of(INO), 1.0)
    assert table.get(INO) is None


def test_entry_lives_until_the_kernel_forgets_all_references() -> None:
    table = InodeTable()
    table.learn(attributes_of(INO), 1.0).lookup_count = 3
    table.forget(INO, 2)
    assert table.get(INO) is not None
    table.forget(INO, 1)
    assert table.get(INO) is None


def test_open_inode_outlives_the_references_of_the_kernel() -> None:
    table = InodeTable()
    inode = table.learn(attributes_of(INO), 1.0)
    inode.lookup_count = inode.open_count = 1
    table.forget(INO, 1)
    assert table.get(INO) is inode
    inode.open_count = 0
    table.drop_unused(inode)
    assert table.get(INO) is None


@pytest.mark.parametrize("count", [1, 5, 2**63])
def test_forget_of_more_than_is_held_is_harmless(count: int) -> None:
    table = InodeTable()
    table.forget(INO, count)
    inode = table.learn(attributes_of(INO), 1.0)
    inode.lookup_count = 1
    inode.open_count = 1
    table.forget(INO, count)
    assert inode.lookup_count == 0
    assert table.get(INO) is inode


def test_inode_in_use_is_entered_again_after_it_was_dropped() -> None:
    table = InodeTable()
    inode = table.learn(attributes_of(INO), 1.0)
    table.drop_unused(inode)
    assert table.get(INO) is None
    table.keep(inode)
    assert table.get(INO) is inode


def test_dropping_an_inode_that_was_replaced_leaves_the_new_one() -> None:
    table = InodeTable()
    old = table.learn(attributes_of(INO), 1.0)
    table.drop_unused(old)
    new = table.learn(attributes_of(INO), 1.0)
    new.lookup_count = 1
    table.drop_unused(old)
    assert table.get(INO) is new
