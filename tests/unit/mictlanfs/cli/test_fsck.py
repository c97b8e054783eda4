import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.fsck import Verdict, lines
from mictlanfs.wireverify import CheckState, DamagedFile

LOST = DamagedFile("ab" * 16, ("bucket/a", "bucket/b"))


@pytest.mark.parametrize(
    ("check", "bad_count", "is_repairing", "code"),
    [
        (CheckState(), 0, False, Exit.OK),
        (CheckState(orphan_count=3, surplus_count=1), 0, False, Exit.OK),
        (CheckState(missing_count=2), 0, False, Exit.FAILED),
        (CheckState(missing_count=2, repaired_count=2), 0, True, Exit.OK),
        (CheckState(), 1, False, Exit.FAILED),
        (CheckState(), 1, True, Exit.OK),
        (CheckState(peers_skipped=("p",)), 0, True, Exit.FAILED),
        (CheckState(broken=("x",)), 0, True, Exit.CORRUPT),
        (CheckState(damaged=(LOST,), missing_count=1), 0, True, Exit.CORRUPT),
    ],
)
def test_the_exit_code_says_whether_anything_is_left_to_do(
    check: CheckState, bad_count: int, is_repairing: bool, code: Exit
) -> None:
    assert Verdict(check, bad_count, is_repairing).exit_code is code


def test_what_was_found_is_said_in_a_line_each() -> None:
    check = CheckState(
        broken=("not true that x",),
        peers_checked=("one", "two"),
        peers_skipped=("three",),
        copies_count=7,
        missing_count=2,
        repaired_count=1,
        orphan_count=4,
        damaged=(LOST, DamagedFile("cd" * 16, ())),
    )
    assert list(lines(Verdict(check, 3, True))) == [
        "broken    not true that x",
        f"damaged   bucket/a, bucket/b (chunk {'ab' * 16})",
        f"damaged   a file without a name (chunk {'cd' * 16})",
        "copies    7 on 2 peers, 2 missing or bad",
        "scrub     3 copies found bad, out of service",
        "repaired  1 copy will be made again",
        "orphans   4; see 'mictlanfs gc'",
        "skipped   peer three does not answer",
        "DAMAGED",
    ]
