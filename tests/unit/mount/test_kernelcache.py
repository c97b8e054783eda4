"""How the kernel is made to forget names: one by one, or all at once when that takes too long."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from mictlanfs.model import InodeNumber
from mictlanfs_mount.kernelcache import (
    EXPIRED_COUNT_MAX,
    EXPIRED_PER_WAIT,
    PRUNED_COUNT_MAX,
    NotifiedKernel,
)
from mictlanfs_mount.notify import KernelInode, KernelNotifier

ONE, TWO = InodeNumber(1), InodeNumber(2)


@dataclass
class Notifier:
    """What the kernel was told. A lock that is held lets nobody expire a name."""

    has_epoch: bool = True
    has_prune: bool = True
    epochs: int = 0
    expired: list[tuple[int, bytes]] = field(default_factory=list)
    dropped: list[tuple[int, bytes]] = field(default_factory=list)
    pruned: list[list[int]] = field(default_factory=list)
    attributes: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    lock: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.lock.set()

    def increment_epoch(self) -> None:
        self.epochs += 1

    def expire_entry(self, parent: KernelInode, name: bytes) -> bool:
        self.lock.wait(10)
        self.expired.append((parent, name))
        return True

    def drop_entry(self, parent: KernelInode, name: bytes) -> bool:
        self.dropped.append((parent, name))
        return True

    def prune(self, inodes: Sequence[KernelInode]) -> None:
        self.pruned.append(list(inodes))

    def invalidate_attributes(self, ino: KernelInode) -> bool:
        self.attributes.append(ino)
        return True

    def invalidate_pages(self, ino: KernelInode) -> bool:
        self.lock.wait(10)
        self.pages.append(ino)
        return True


@pytest.fixture
def notifier() -> Iterator[Notifier]:
    notifier = Notifier()
    yield notifier
    notifier.lock.set()


def kernel_of(notifier: Notifier) -> NotifiedKernel:
    return NotifiedKernel(cast("KernelNotifier", notifier), lambda ino: KernelInode(ino + 100))


async def test_a_few_names_are_expired_one_by_one(notifier: Notifier) -> None:
    await kernel_of(notifier).forget([(ONE, b"a"), (TWO, b"b")], [ONE, TWO])
    assert notifier.expired == [(101, b"a"), (102, b"b")]
    assert (notifier.attributes, notifier.epochs) == ([101, 102], 0)


async def test_a_lock_that_is_held_is_not_waited_for(notifier: Notifier) -> None:
    notifier.lock.clear()
    await kernel_of(notifier).forget([(ONE, b"a")], [])
    assert (notifier.expired, notifier.epochs) == ([], 1)


async def test_many_threads_that_wait_for_locks_keep_nobody_waiting(notifier: Notifier) -> None:
    notifier.lock.clear()
    kernel = kernel_of(notifier)
    for count in range(1, 11):
        await kernel.forget([(ONE, b"a")], [])
        assert notifier.epochs == count


async def test_many_names_are_forgotten_all_at_once(notifier: Notifier) -> None:
    names = [(ONE, b"%d" % number) for number in range(EXPIRED_COUNT_MAX + 1)]
    await kernel_of(notifier).forget(names, [])
    assert (notifier.expired, notifier.epochs) == ([], 1)


async def test_a_long_row_of_names_takes_as_long_as_it_takes_unless_a_lock_is_held(
    notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = EXPIRED_PER_WAIT * 2 + 1
    names = [(ONE, b"%d" % number) for number in range(count)]
    await kernel_of(notifier).forget(names, [])
    assert (len(notifier.expired), notifier.epochs) == (count, 0)

    def expire_entry(parent: KernelInode, name: bytes) -> bool:
        # Somebody takes the lock in the middle.
        if name == b"%d" % (EXPIRED_PER_WAIT + 5):
            notifier.lock.wait(10)
        return True

    notifier.lock.clear()
    monkeypatch.setattr(notifier, "expire_entry", expire_entry)
    await kernel_of(notifier).forget(names, [])
    assert notifier.epochs == 1


async def test_a_kernel_without_epochs_is_told_no_names(notifier: Notifier) -> None:
    notifier.has_epoch = False
    kernel = kernel_of(notifier)
    assert not kernel.keeps_names
    await kernel.forget([(ONE, b"a")], [TWO])
    assert (notifier.expired, notifier.epochs, notifier.attributes) == ([], 0, [102])


async def test_pages_that_are_being_read_are_not_waited_for(notifier: Notifier) -> None:
    kernel = kernel_of(notifier)
    await kernel.forget_pages([ONE])
    assert notifier.pages == [101]
    notifier.lock.clear()
    await kernel.forget_pages([TWO])
    assert notifier.pages == [101]


async def test_names_that_nobody_waits_for_are_expired_however_many_they_are(
    notifier: Notifier,
) -> None:
    names = [(ONE, b"%d" % number) for number in range(EXPIRED_COUNT_MAX + 1)]
    await kernel_of(notifier).forget(names, [], is_awaited=False)
    assert notifier.expired == [(101, name) for _, name in names]
    assert notifier.epochs == 0


async def test_lock_that_is_known_to_be_held_is_not_waited_for(notifier: Notifier) -> None:
    await kernel_of(notifier).forget([(ONE, b"a")], [TWO], is_locked=True)
    assert (notifier.expired, notifier.epochs, notifier.attributes) == ([], 1, [102])


async def test_names_that_take_memory_are_dropped(notifier: Notifier) -> None:
    await kernel_of(notifier).drop([(ONE, b"a"), (TWO, b"b")])
    assert (notifier.dropped, notifier.expired) == ([(101, b"a"), (102, b"b")], [])


def test_changed_attributes_are_told_at_once(notifier: Notifier) -> None:
    kernel_of(notifier).attributes_changed(ONE)
    assert notifier.attributes == [101]


async def test_inodes_are_pruned_in_messages_of_a_bounded_length(notifier: Notifier) -> None:
    inodes = [InodeNumber(n) for n in range(PRUNED_COUNT_MAX + 2)]
    await kernel_of(notifier).prune(inodes)
    assert [len(part) for part in notifier.pruned] == [PRUNED_COUNT_MAX, 2]
    assert [n for part in notifier.pruned for n in part] == [ino + 100 for ino in inodes]


async def test_a_kernel_that_cannot_prune_is_not_asked_to(notifier: Notifier) -> None:
    notifier.has_prune = False
    await kernel_of(notifier).prune([ONE])
    assert notifier.pruned == []
