"""Which directories are contested, for how long, and how many at most."""

from __future__ import annotations

from mictlanfs.model import InodeNumber
from mictlanfs_mount.contested import CONTESTED_S, COUNT_MAX, ContestedDirectories
from tests.unit.server.router.fakes import FakeClock


def test_a_directory_is_contested_for_a_while_after_the_last_time() -> None:
    clock = FakeClock()
    contested, one, two = ContestedDirectories(clock), InodeNumber(1), InodeNumber(2)
    contested.add(one)
    assert (contested.has(one), contested.has(two)) == (True, False)
    clock.now_s += CONTESTED_S - 1
    assert contested.has(one)
    contested.add(one)
    clock.now_s += CONTESTED_S - 1
    assert contested.has(one)
    clock.now_s += 1
    assert not contested.has(one)


def test_the_one_contested_longest_ago_is_forgotten_when_there_are_too_many() -> None:
    contested = ContestedDirectories(FakeClock())
    for number in (*range(COUNT_MAX), 0, COUNT_MAX):
        contested.add(InodeNumber(number))
    known = [number for number in range(COUNT_MAX + 1) if contested.has(InodeNumber(number))]
    assert known == [0, *range(2, COUNT_MAX + 1)]
