"""When set-ids end, in the cases that the kernel leaves to the mount."""

from __future__ import annotations

import pytest

from mictlanfs.model import Attributes, FileKind, InodeNumber
from mictlanfs_mount.setids import after_change, after_open_truncating, in_every_group

OWNER, GROUP = 7, 8


def node(mode: int, kind: FileKind = FileKind.FILE) -> Attributes:
    return Attributes(InodeNumber(2), kind, mode, OWNER, GROUP, 0, 0, 0, 0, 1)


def in_none(gid: int) -> bool:
    assert gid == GROUP
    return False


@pytest.mark.parametrize(
    ("mode", "wanted", "after"),
    [
        (0o644, None, None),
        (0o2755, None, None),  # The kernel sends the mode that is to be.
        (0o2755, 0o755, 0o755),
        (0o2644, None, 0o644),
        (0o6644, 0o2644, 0o644),
    ],
)
def test_a_change_from_outside_of_the_group(mode: int, wanted: int | None, after: int) -> None:
    assert after_change(node(mode), wanted, in_none) == after


def test_a_change_by_a_member_and_one_of_a_directory_leave_the_mode() -> None:
    assert after_change(node(0o2644), None, in_every_group) is None
    assert after_change(node(0o2644, FileKind.DIRECTORY), None, in_none) is None


@pytest.mark.parametrize(
    ("mode", "wanted", "after"),
    [
        (0o755, None, None),
        (0o6755, None, 0o755),
        (0o2755, 0o2700, 0o700),
        (0o6644, None, 0o2644),
        (0o1777, None, None),
    ],
)
def test_a_change_by_a_member_when_the_kernel_leaves_it_to_us(
    mode: int, wanted: int | None, after: int | None
) -> None:
    assert after_change(node(mode), wanted, in_every_group, is_kept=False) == after


def test_a_change_from_outside_when_the_kernel_leaves_it_to_us() -> None:
    assert after_change(node(0o6644), None, in_none, is_kept=False) == 0o644
    assert after_change(node(0o6644, FileKind.DIRECTORY), None, in_none, is_kept=False) is None


@pytest.mark.parametrize(
    ("mode", "is_member", "after"),
    [
        (0o755, False, None),
        (0o6755, True, 0o755),
        (0o6755, False, 0o755),
        (0o6644, True, 0o2644),
        (0o6644, False, 0o644),
        (0o2644, True, None),
    ],
)
def test_an_open_that_truncates(mode: int, is_member: bool, after: int | None) -> None:
    member = in_every_group if is_member else in_none
    assert after_open_truncating(node(mode), is_root=False, is_member=member) == after


def test_root_ends_nothing_by_truncating() -> None:
    assert after_open_truncating(node(0o6755), is_root=True, is_member=in_every_group) is None
