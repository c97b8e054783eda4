"""The short form of `history`, and that it would see what it looks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stateful.history import MOUNTS, Call, is_linearizable, run_histories, shortened
from tests.support.spaces import running_space, several_mounted

SEED = 2026
ROUNDS = 16


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
        found = run_histories(mounts, "bucket", ROUNDS, SEED)
    assert found.calls > ROUNDS * MOUNTS * 20
    assert found.wrong == [], "\n".join(found.wrong)
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
