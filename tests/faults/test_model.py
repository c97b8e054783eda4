"""That the model allows what the semantics allow, and sees what it looks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.journal import Journal, Step, body, read_steps
from tests.faults.model import Expected, FileNode, FolderNode, Names, Promise, content_difference

ENDED_NS = 1


def steps_of(*told: tuple[object, ...]) -> list[Step]:
    """Steps that were done, from (verb, path, target, offset, length)."""
    found = []
    for number, words in enumerate(told):
        verb, path, target, offset, length = [*words, *["", 0, 0][len(words) - 2 :]]
        assert isinstance(verb, str)
        assert isinstance(path, str)
        assert isinstance(target, str)
        assert isinstance(offset, int)
        assert isinstance(length, int)
        found.append(
            Step(number, verb, path, target, offset, length, seed=number, ended_ns=ENDED_NS)
        )
    return found


def in_flight(steps: list[Step]) -> list[Step]:
    """The same, the last one not ended."""
    return [*steps[:-1], replace(steps[-1], ended_ns=0)]


def file(content: bytes = b"") -> FileNode:
    return FileNode(content=bytearray(content))


def is_allowed(steps: list[Step], promise: Promise, actual: Names) -> bool:
    return Expected(steps, promise).difference(actual) is None


def test_after_a_crash_names_are_as_after_some_step_since_the_last_sync() -> None:
    steps = steps_of(
        ("create", "a"), ("fsync", "a"), ("mkdir", "d"), ("rename", "a", "d/a"), ("create", "b")
    )
    assert is_allowed(steps, Promise.SYNCED, {"a": file()})
    assert is_allowed(steps, Promise.SYNCED, {"a": file(), "d": FolderNode()})
    assert is_allowed(steps, Promise.SYNCED, {"d": FolderNode(), "d/a": file()})
    assert not is_allowed(steps, Promise.SYNCED, {})
    assert not is_allowed(steps, Promise.SYNCED, {"d": FolderNode(), "d/a": file(), "a": file()})
    assert not is_allowed(steps, Promise.SYNCED, {"a": file(), "b": file()})


def test_without_a_crash_all_is_there_but_for_the_step_under_way() -> None:
    steps = steps_of(("create", "a"), ("mkdir", "d"), ("create", "b"))
    names: Names = {"a": file(), "d": FolderNode(), "b": file()}
    assert is_allowed(steps, Promise.ALL, names)
    assert not is_allowed(steps, Promise.ALL, {"a": file(), "d": FolderNode()})
    assert is_allowed(in_flight(steps), Promise.ALL, {"a": file(), "d": FolderNode()})
    assert is_allowed(in_flight(steps), Promise.ALL, names)


def test_what_asked_the_router_is_sure_when_only_the_mount_is_killed() -> None:
    steps = steps_of(("create", "a"), ("write", "a", "", 0, 10), ("truncate", "a", "", 5))
    half: Names = {"a": file(body(1, 10)[:5])}
    assert is_allowed(steps, Promise.COMMITTED, half)
    assert not is_allowed(steps, Promise.COMMITTED, {"a": file()})
    assert not is_allowed(steps, Promise.COMMITTED, {})
    assert is_allowed(steps, Promise.SYNCED, {})


def test_synced_content_is_there_and_of_later_writes_any_part() -> None:
    steps = steps_of(
        ("create", "a"),
        ("write", "a", "", 0, 10_000),
        ("fsync", "a"),
        ("write", "a", "", 4_000, 9_000),
    )
    old, new = body(1, 10_000), body(3, 9_000)
    assert is_allowed(steps, Promise.SYNCED, {"a": file(old)})
    assert is_allowed(steps, Promise.SYNCED, {"a": file(old[:4_000] + new)})
    tail_only = old + bytes(1_000) + new[7_000:]
    assert is_allowed(steps, Promise.SYNCED, {"a": file(tail_only)})
    assert not is_allowed(steps, Promise.SYNCED, {"a": file(old[:-1])})
    assert not is_allowed(steps, Promise.SYNCED, {"a": file(bytes(4_000) + new)})
    assert not is_allowed(steps, Promise.SYNCED, {"a": file(old + bytes(3_001))})


def test_a_file_that_was_replaced_without_sync_may_be_either() -> None:
    steps = steps_of(
        ("create", "a"), ("write", "a", "", 0, 5), ("fsync", "a"),
        ("create", "b"), ("write", "b", "", 0, 7), ("rename", "b", "a"),
    )  # fmt: skip
    assert is_allowed(steps, Promise.SYNCED, {"a": file(body(1, 5))})
    assert is_allowed(steps, Promise.SYNCED, {"a": file(body(4, 7))})
    assert is_allowed(steps, Promise.SYNCED, {"a": file()})
    assert not is_allowed(steps, Promise.SYNCED, {"a": file(body(1, 5)), "b": file(b"x" * 7)})


def test_bytes_of_no_step_are_seen() -> None:
    base, later = b"a" * 100, Step(0, "write", "a", offset=50, length=10, seed=4)
    written = bytearray(base)
    written[50:60] = body(4, 10)
    assert content_difference(bytes(written), base, [later]) is None
    written[55] ^= 1
    # One flipped bit may make it the byte that was there before, but not this one.
    assert written[55] != base[55]
    assert content_difference(bytes(written), base, [later]) is not None


@pytest.mark.parametrize("lost", [0, 1, 9])
def test_a_journal_gives_back_its_steps_but_for_a_torn_line(tmp_path: Path, lost: int) -> None:
    journal = Journal(tmp_path / "journal")
    for step in steps_of(("create", "a"), ("fsync", "a")):
        journal.begin(replace(step, ended_ns=0))
        journal.end(step, size=3, digest="abc")
    path = tmp_path / "journal"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - lost])
    first, second = read_steps(path)
    assert (first.verb, first.is_done, first.size) == ("create", True, 3)
    assert (second.verb, second.is_done) == ("fsync", lost == 0)
