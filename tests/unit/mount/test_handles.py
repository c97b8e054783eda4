"""The handle table, and what a directory handle remembers."""

from __future__ import annotations

import errno

import pytest

from mictlanfs import wire
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber, Node
from mictlanfs_mount.handles import DirectoryHandle, FileHandle, HandleNumber, HandleTable
from mictlanfs_mount.inodes import Inode
from tests.support.mount_space import attributes_of

DIRECTORY = InodeNumber(3)


def page(*names: bytes, is_last: bool = False, version: int = 1) -> wire.ListPage:
    entries = tuple(wire.Entry(name, Node(attributes_of(9))) for name in names)
    directory = attributes_of(DIRECTORY, FileKind.DIRECTORY, content_version=version)
    return wire.ListPage(entries, directory, ROOT_INODE, is_last)


def directory_handle(version: int = 1) -> DirectoryHandle:
    return DirectoryHandle(
        Inode(attributes_of(DIRECTORY, FileKind.DIRECTORY, content_version=version))
    )


def test_numbers_are_never_used_again() -> None:
    table = HandleTable()
    numbers = set()
    for _ in range(10):
        number = table.add(FileHandle(Inode(attributes_of(1))))
        table.remove(number)
        numbers.add(number)
    assert len(numbers) == 10
    assert len(table) == 0


def test_handle_is_found_by_its_number_and_kind() -> None:
    table = HandleTable()
    file, directory = FileHandle(Inode(attributes_of(1))), directory_handle()
    file_number, directory_number = table.add(file), table.add(directory)
    assert table.file(file_number) is file
    assert table.directory(directory_number) is directory
    with pytest.raises(OSError, match="open file") as caught:
        table.file(directory_number)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="open directory") as caught:
        table.directory(file_number)
    assert caught.value.errno == errno.EBADF


def test_removed_handle_is_unknown() -> None:
    table = HandleTable()
    handle = FileHandle(Inode(attributes_of(1)))
    number = table.add(handle)
    assert table.remove(number) is handle
    assert table.remove(number) is None
    with pytest.raises(OSError, match="open file"):
        table.file(number)
    assert table.remove(HandleNumber(999)) is None


def test_two_handles_of_one_inode_are_not_the_same() -> None:
    inode = Inode(attributes_of(1))
    assert FileHandle(inode) != FileHandle(inode)


def test_pages_of_a_directory_follow_each_other() -> None:
    handle = directory_handle()
    handle.add_page(page(b"a", b"b"), 1.0)
    assert not handle.is_complete
    handle.add_page(page(b"c", is_last=True), 2.0)
    assert [entry.name for entry in handle.entries] == [b"a", b"b", b"c"]
    assert [handle.valid_until_s(index) for index in range(3)] == [1.0, 1.0, 2.0]
    assert handle.is_complete


def test_page_without_entries_ends_the_directory() -> None:
    handle = directory_handle()
    handle.add_page(page(), 1.0)
    assert handle.is_complete


def test_restarted_handle_knows_nothing() -> None:
    handle = directory_handle()
    handle.add_page(page(b"a", is_last=True), 1.0)
    handle.restart()
    assert handle.entries == []
    assert not handle.is_complete
    handle.add_page(page(b"b"), 3.0)
    assert handle.valid_until_s(0) == 3.0


def test_entries_read_before_the_directory_changed_are_not_to_be_trusted() -> None:
    handle = directory_handle(version=1)
    handle.add_page(page(b"a", version=1), 5.0)
    handle.inode.attributes = attributes_of(DIRECTORY, FileKind.DIRECTORY, content_version=2)
    handle.add_page(page(b"b", version=2), 6.0)
    assert handle.valid_until_s(0) == 0.0
    assert handle.valid_until_s(1) == 6.0
