"""The short form of `history`, and that it would see what it looks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.stateful.history import (
    MOUNTS,
    Call,
    is_linearizable,
    judge,
    parts_of,
    run_history,
    shortened,
)
from tests.support.spaces import running_space, several_mounted

SEED = 2026
# Of the 140 of the long form.
STRETCHES = 16


def call(begun_ns: int, ended_ns: int, result: object, verb: str, *words: str) -> Call:
    return Call(verb, words, result, begun_ns, ended_ns)


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_calls_on_three_mounts_can_be_put_into_an_order(tmp_path: Path) -> None:
    with (
        running_space(tmp_path / "data") as space,
        several_mounted(space.uri, tmp_path, MOUNTS) as mounts,
    ):
        found = run_history(mounts, "bucket", STRETCHES, SEED)
    assert found.calls > STRETCHES * MOUNTS * 20
    assert found.verdict.parts >= STRETCHES
    assert found.verdict.wrong is None, found.wrong
    assert found.stale < found.calls / 100


def test_history_in_some_order_is_told_from_one_in_none() -> None:
    created = [call(0, 9, "ok", "create", "p/a"), call(10, 12, 8, "write", "12345678")]
    assert is_linearizable([created, [call(5, 8, "ENOENT", "stat", "p/a")]])
    assert is_linearizable([created, [call(5, 8, "file", "stat", "p/a")]])
    assert is_linearizable([created, [call(5, 20, ("a",), "list", "p")]])
    assert not is_linearizable([created, [call(10, 11, "ENOENT", "stat", "p/a")]])
    assert not is_linearizable([created, [call(10, 11, (), "list", "p")]])
    assert not is_linearizable([created, [call(10, 11, "ok", "create", "p/a")]])
    seen = call(13, 14, "ok", "open", "p/a")
    assert is_linearizable([created, [seen, call(15, 16, "12345678", "read")]])
    assert not is_linearizable([created, [seen, call(15, 16, "", "read")]])
    seen_before = call(10, 11, "ok", "open", "p/a")
    assert is_linearizable([created, [seen_before, call(11, 13, "", "read")]])


def test_of_two_who_create_or_remove_one_wins() -> None:
    both = [[call(0, 9, "ok", "create", "p/a")], [call(0, 9, "ok", "create", "p/a")]]
    assert not is_linearizable(both)
    one = [call(0, 1, "ok", "mkdir", "p/d"), call(2, 9, "ok", "rmdir", "p/d")]
    assert not is_linearizable([one, [call(2, 9, "ok", "rmdir", "p/d")]])
    assert is_linearizable([one, [call(2, 9, "ENOENT", "rmdir", "p/d")]])


def test_what_is_shown_ends_with_what_cannot_be() -> None:
    one = [call(0, 1, "ok", "create", "p/a"), call(20, 21, "ok", "close")]
    two = [call(2, 3, "ENOENT", "unlink", "p/a"), call(4, 5, (), "list", "q")]
    assert [len(calls) for calls in shortened([one, two])] == [1, 1]


def long_history(parts: int) -> tuple[list[Call], list[Call], list[Call]]:
    """Two processes that write one after the other, and one that looks at it, many times."""
    one = [call(0, 1, "ok", "create", "p/a"), call(2, 3, "ok", "close")]
    two: list[Call] = []
    three: list[Call] = []
    for index in range(1, parts):
        at = 100 * index
        writer, other = (one, two) if index % 2 else (two, one)
        text = f"{index:08d}"
        writer += [
            call(at, at + 1, "ok", "open", "p/a"),
            call(at + 2, at + 50, 8, "write", text),
            call(at + 51, at + 52, "ok", "close"),
        ]
        # Two that nobody looks at: which one came first?
        other += [call(at + 60, at + 65, "ok", "mkdir", "p/d")]
        three += [
            call(at + 61, at + 64, "EEXIST", "mkdir", "p/d"),
            call(at + 70, at + 71, "ok", "rmdir", "p/d"),
            call(at + 72, at + 73, "ok", "open", "p/a"),
            call(at + 74, at + 75, text, "read"),
            call(at + 76, at + 77, "ok", "close"),
        ]
    return one, two, three


def changed(calls: list[Call], index: int, result: object) -> list[Call]:
    return [*calls[:index], replace(calls[index], result=result), *calls[index + 1 :]]


def test_long_history_is_judged_as_one() -> None:
    histories = long_history(1_100)
    assert sum(map(len, histories)) > 9_500
    found = judge(histories)
    assert found.wrong is None
    assert found.parts > 1_100


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_one_wrong_result_in_a_long_history_is_found_where_it_is(share: float) -> None:
    one, two, three = long_history(500)
    wrong = int(len(three) * share) // 5 * 5
    for index, result in [
        (wrong + 3, "00000000"),
        (wrong, "ok"),
        (wrong + 1, "ENOENT"),
        (wrong + 2, "ENOENT"),
    ]:
        found = judge([one, two, changed(three, index, result)])
        assert found.wrong is not None
        assert any(call.begun_ns == three[index].begun_ns for call in found.wrong[2])
        assert sum(map(len, found.wrong)) < 10


def test_what_was_done_before_a_cut_is_known_behind_it() -> None:
    created = [call(0, 9, "ok", "create", "p/a"), call(20, 21, 8, "write", "12345678")]
    for text, is_right in [("12345678", True), ("", False), ("87654321", False)]:
        seen = [call(30, 31, "ok", "open", "p/a"), call(40, 41, text, "read")]
        assert len(list(parts_of([created, seen]))) == 4
        assert (judge([created, seen]).wrong is None) == is_right


def test_of_what_is_not_known_at_a_cut_everything_is_possible_behind_it() -> None:
    writes = [
        [call(0, 1, "ok", "create", "p/a"), call(10, 20, 8, "write", "11111111")],
        [call(2, 3, "ok", "open", "p/a"), call(11, 19, 8, "write", "22222222")],
    ]
    for text, is_right in [("11111111", True), ("22222222", True), ("", False)]:
        seen = [call(30, 31, "ok", "open", "p/a"), call(40, 41, text, "read")]
        found = judge([*writes, seen])
        assert (found.wrong is None) == is_right
        assert found.states_max == 2
    # Once somebody has looked it is known.
    seen_twice = [
        call(30, 31, "ok", "open", "p/a"),
        call(40, 41, "11111111", "read"),
        call(50, 51, "22222222", "read"),
    ]
    assert judge([*writes, seen_twice]).wrong is not None


def test_read_beside_a_write_on_the_same_mount_may_come_early_and_no_other() -> None:
    writing = [
        call(0, 1, "ok", "create", "p/a"),
        call(2, 3, 8, "write", "00000000"),
        call(10, 50, 8, "write", "11111111"),
    ]
    late = [call(4, 5, "ok", "open", "p/a"), call(30, 31, "00000000", "read")]
    early = [call(4, 5, "ok", "open", "p/a"), call(20, 21, "11111111", "read")]
    nobody: list[Call] = []
    # Processes 0 and 3 are on one mount, 1 and 2 each on another.
    assert judge([writing, late, nobody, early]).wrong is None
    assert judge([writing, late, early, nobody]).wrong is not None
    after_it = [call(4, 5, "ok", "open", "p/a"), call(60, 61, "00000000", "read")]
    assert judge([writing, nobody, nobody, after_it]).wrong is not None
