from dataclasses import dataclass

from mictlanfs.model import InodeNumber
from mictlanfs.wire import LIST_ENTRIES_MAX
from mictlanfs_mount.neighbours import STEP_MAX
from mictlanfs_mount.treewalk import ENTRIES_FIRST, Siblings, TreeWalk


@dataclass(frozen=True)
class Directory:
    ino: InodeNumber


DIRECTORIES = [Directory(InodeNumber(1000 + index)) for index in range(100)]
INOS = [directory.ino for directory in DIRECTORIES]
UNKNOWN = InodeNumber(1)


def test_the_first_directory_begins_a_walk_and_another_one_does_not() -> None:
    assert Siblings(DIRECTORIES).on_read(INOS[0])
    assert not Siblings(DIRECTORIES).on_read(INOS[1])
    assert not Siblings(DIRECTORIES).on_read(INOS[50])


def test_a_walk_goes_on_with_one_of_the_next_directories() -> None:
    siblings = Siblings(DIRECTORIES)
    siblings.on_read(INOS[20])
    assert siblings.on_read(INOS[20 + STEP_MAX])
    assert not siblings.on_read(INOS[20 + 2 * STEP_MAX + 1])
    assert not siblings.on_read(INOS[10])


def test_several_walk_at_different_places() -> None:
    siblings = Siblings(DIRECTORIES)
    starts = (10, 40, 70)
    assert not any(siblings.on_read(INOS[start]) for start in starts)
    for step in range(1, 5):
        assert all(siblings.on_read(INOS[start + step]) for start in starts)


def test_a_directory_that_is_not_known_is_no_part_of_a_walk() -> None:
    siblings = Siblings(DIRECTORIES)
    assert not siblings.knows(UNKNOWN)
    assert not siblings.on_read(UNKNOWN)
    assert list(siblings.behind(UNKNOWN)) == []


def test_what_is_behind_follows_in_order() -> None:
    siblings = Siblings(DIRECTORIES)
    assert list(siblings.behind(None)) == DIRECTORIES
    assert list(siblings.behind(INOS[97])) == DIRECTORIES[98:]
    assert list(siblings.behind(INOS[-1])) == []


def test_more_is_fetched_the_longer_a_walk_goes_on() -> None:
    walk = TreeWalk()
    counts = [walk.next_entries(is_ahead=index > 0) for index in range(6)]
    assert counts[:3] == [ENTRIES_FIRST, 2 * ENTRIES_FIRST, 4 * ENTRIES_FIRST]
    assert counts[-1] == LIST_ENTRIES_MAX
    small = TreeWalk(100)
    assert [small.next_entries(is_ahead=True) for _ in range(3)] == [100, 100, 100]


def test_the_next_tree_is_fetched_when_half_of_the_last_is_read() -> None:
    walk = TreeWalk()
    walk.next_entries(is_ahead=False)
    walk.on_fetched(100)
    assert [walk.on_read(10) for _ in range(5)] == [False] * 4 + [True]
    walk.is_fetching = True
    assert not walk.on_read(10)
    walk.is_fetching = False
    walk.on_fetched(200)
    assert not walk.on_read(10)


def test_nothing_is_fetched_when_there_was_nothing_more() -> None:
    walk = TreeWalk()
    walk.on_fetched(100)
    walk.on_fetched(0)
    assert not any(walk.on_read(10) for _ in range(10))


def test_what_was_passed_by_is_not_waited_for() -> None:
    walk = TreeWalk()
    walk.on_fetched(1000)
    walk.next_entries(is_ahead=False)
    walk.on_fetched(100)
    assert [walk.on_read(10) for _ in range(5)] == [False] * 4 + [True]
