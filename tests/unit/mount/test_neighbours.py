from dataclasses import dataclass

from mictlanfs.model import InodeNumber
from mictlanfs_mount.neighbours import AHEAD_FIRST, AHEAD_MAX, STEP_MAX, Neighbours


@dataclass(frozen=True)
class File:
    ino: InodeNumber


FILES = [File(InodeNumber(1000 + index)) for index in range(500)]


def test_one_open_fetches_nothing_and_the_next_in_order_fetches_ahead() -> None:
    neighbours = Neighbours(FILES)
    assert list(neighbours.on_open(FILES[10])) == []
    assert not neighbours.is_going_on
    assert list(neighbours.on_open(FILES[11])) == FILES[12 : 12 + AHEAD_FIRST]
    assert neighbours.is_going_on


def test_a_reader_in_order_gets_every_file_once_and_more_at_a_time() -> None:
    neighbours = Neighbours(FILES)
    fetched: list[File] = []
    counts = []
    for file in FILES:
        ahead = list(neighbours.on_open(file))
        counts.append(len(ahead))
        fetched += ahead
    assert fetched == FILES[1:]
    assert max(counts) <= AHEAD_MAX
    assert sum(count > 0 for count in counts) < len(FILES) / AHEAD_FIRST / 4


def test_a_few_files_left_out_do_not_end_it() -> None:
    neighbours = Neighbours(FILES)
    neighbours.on_open(FILES[100])
    assert list(neighbours.on_open(FILES[100 + STEP_MAX]))


def test_a_jump_or_a_step_back_begins_anew() -> None:
    for index in (100 + STEP_MAX + 1, 99, 100):
        neighbours = Neighbours(FILES)
        neighbours.on_open(FILES[99])
        neighbours.on_open(FILES[100])
        assert list(neighbours.on_open(FILES[index])) == []
        assert not neighbours.is_going_on


def test_nothing_lies_behind_the_last_and_a_stranger_is_unknown() -> None:
    neighbours = Neighbours(FILES[:3])
    assert list(neighbours.on_open(FILES[0])) == FILES[1:3], "who begins at the start goes on"
    assert list(neighbours.on_open(FILES[1])) == []
    assert list(neighbours.on_open(FILES[2])) == []
    assert neighbours.knows(FILES[2])
    assert not neighbours.knows(FILES[3])
    assert list(neighbours.on_open(FILES[3])) == []


def test_a_walk_that_read_files_goes_on_with_as_many() -> None:
    neighbours = Neighbours(FILES, AHEAD_MAX)
    assert list(neighbours.on_listed()) == FILES[:AHEAD_MAX]
    assert list(neighbours.on_listed()) == []
    assert list(neighbours.on_open(FILES[0])) == []
    fetched = [file for file in FILES[1:100] for file in neighbours.on_open(file)]
    assert fetched == FILES[AHEAD_MAX : AHEAD_MAX + len(fetched)]
    assert neighbours.ahead == AHEAD_MAX


def test_nothing_is_fetched_for_a_walk_that_read_no_files_in_order() -> None:
    assert list(Neighbours(FILES).on_listed()) == []
    neighbours = Neighbours(FILES, AHEAD_MAX)
    neighbours.on_open(FILES[10])
    neighbours.on_open(FILES[100])
    assert neighbours.ahead == AHEAD_FIRST
