"""Access control lists: coding, what is refused, and the arithmetic with modes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs import acl
from mictlanfs.acl import ID_NONE, Acl, Entry, Tag
from mictlanfs.errors import Kind, MictlanError

permissions = st.integers(0, 7)
modes = st.integers(0, 0o777)
ids = st.integers(0, ID_NONE - 1)


@st.composite
def lists(draw: st.DrawFn, *, named_max: int = 4) -> Acl:
    """Any valid list."""

    def named(tag: Tag) -> list[Entry]:
        who = draw(st.lists(ids, max_size=named_max, unique=True))
        return [Entry(tag, draw(permissions), number) for number in who]

    users, groups = named(Tag.USER), named(Tag.GROUP)
    has_mask = bool(users or groups) or draw(st.booleans())
    return Acl(
        (
            Entry(Tag.USER_OWNER, draw(permissions)),
            *users,
            Entry(Tag.GROUP_OWNER, draw(permissions)),
            *groups,
            *([Entry(Tag.MASK, draw(permissions))] if has_mask else []),
            Entry(Tag.OTHER, draw(permissions)),
        )
    )


def minimal(mode: int) -> Acl:
    return Acl(
        (
            Entry(Tag.USER_OWNER, mode >> 6 & 7),
            Entry(Tag.GROUP_OWNER, mode >> 3 & 7),
            Entry(Tag.OTHER, mode & 7),
        )
    )


# user::rw- user:1000:rwx group::r-- mask::rw- other::--- as setfacl(1) writes it.
WRITTEN = bytes.fromhex(
    "0200000001000600ffffffff02000700e803000004000400ffffffff10000600ffffffff20000000ffffffff"
)
READ = Acl(
    (
        Entry(Tag.USER_OWNER, 6),
        Entry(Tag.USER, 7, 1000),
        Entry(Tag.GROUP_OWNER, 4),
        Entry(Tag.MASK, 6),
        Entry(Tag.OTHER, 0),
    )
)


# --- coding ---


def test_the_coding_is_that_of_linux() -> None:
    assert acl.decode(WRITTEN) == READ
    assert acl.encode(READ) == WRITTEN


@given(lists())
def test_what_is_encoded_is_decoded(some: Acl) -> None:
    assert acl.decode(acl.encode(some)) == some


@given(st.binary(max_size=120))
def test_bytes_are_a_list_or_refused(value: bytes) -> None:
    found = None
    refused: MictlanError | None = None
    try:
        found = acl.decode(value)
    except MictlanError as error:
        refused = error
    assert refused is None or refused.kind in {Kind.INVALID, Kind.UNSUPPORTED}
    assert found is None or acl.decode(acl.encode(found)) == found


def test_a_list_without_entries_is_none() -> None:
    assert acl.decode(struct.pack("<I", 2)) is None


def test_the_id_of_an_entry_that_names_nobody_is_ignored() -> None:
    written_as_zero = acl.encode(minimal(0o640)).replace(b"\xff" * 4, b"\0" * 4)
    assert acl.decode(written_as_zero) == minimal(0o640)


def packed(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *e) for e in entries)


OWNER, GROUP, OTHER = (0x01, 7, ID_NONE), (0x04, 5, ID_NONE), (0x20, 5, ID_NONE)
MASK, USER_5 = (0x10, 7, ID_NONE), (0x02, 7, 5)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"", Kind.INVALID),
        (b"\2\0\0", Kind.INVALID),
        (packed(OWNER, GROUP, OTHER)[:-1], Kind.INVALID),
        (packed(OWNER, GROUP, OTHER, version=1), Kind.UNSUPPORTED),
        (packed(OWNER, GROUP), Kind.INVALID),
        (packed(GROUP, OTHER), Kind.INVALID),
        (packed(OWNER, OTHER), Kind.INVALID),
        (packed(OWNER, OTHER, GROUP), Kind.INVALID),
        (packed(OWNER, OWNER, GROUP, OTHER), Kind.INVALID),
        (packed(OWNER, GROUP, MASK, MASK, OTHER), Kind.INVALID),
        (packed(OWNER, USER_5, GROUP, OTHER), Kind.INVALID),
        (packed(OWNER, GROUP, USER_5, MASK, OTHER), Kind.INVALID),
        (packed(OWNER, (0x02, 7, ID_NONE), GROUP, MASK, OTHER), Kind.INVALID),
        (packed((0x01, 8, ID_NONE), GROUP, OTHER), Kind.INVALID),
        (packed(OWNER, (0x40, 1, ID_NONE), GROUP, OTHER), Kind.INVALID),
        (packed(OWNER, *[USER_5] * 600, GROUP, MASK, OTHER), Kind.TOO_LARGE),
    ],
)
def test_what_is_no_list_is_refused(value: bytes, kind: Kind) -> None:
    with pytest.raises(MictlanError) as caught:
        acl.decode(value)
    assert caught.value.kind is kind


def test_a_list_may_fill_a_page() -> None:
    users = [(0x02, 7, number) for number in range((acl.SIZE_BYTES_MAX - 4) // 8 - 4)]
    value = packed(OWNER, *users, GROUP, MASK, OTHER)
    found = acl.decode(value)
    assert found is not None
    assert len(found.entries) == 511


# --- modes ---


def test_the_mask_stands_in_the_groups_place() -> None:
    assert READ.mode == 0o660
    assert not READ.is_mode_only


@given(modes)
def test_a_minimal_list_says_no_more_than_its_mode(mode: int) -> None:
    assert minimal(mode).mode == mode
    assert minimal(mode).is_mode_only


@given(lists(), modes)
def test_chmod_shows_in_the_mode_and_leaves_named_entries(some: Acl, mode: int) -> None:
    changed = some.after_chmod(mode)
    assert changed.mode == mode
    assert named_of(changed) == named_of(some)
    assert [e.tag for e in changed.entries] == [e.tag for e in some.entries]
    assert changed.after_chmod(some.mode) == some


def test_chmod_sets_the_mask_and_not_the_group() -> None:
    changed = {e.tag: e.permissions for e in READ.after_chmod(0o754).entries}
    assert changed == {
        Tag.USER_OWNER: 7,
        Tag.USER: 7,
        Tag.GROUP_OWNER: 4,
        Tag.MASK: 5,
        Tag.OTHER: 4,
    }


def named_of(some: Acl) -> list[Entry]:
    return [e for e in some.entries if e.tag in {Tag.USER, Tag.GROUP}]


# --- inheritance ---


@given(lists(), modes)
def test_a_new_node_is_granted_what_both_default_list_and_mode_grant(some: Acl, mode: int) -> None:
    access = some.inherited(mode)
    assert access.mode == some.mode & mode
    assert named_of(access) == named_of(some)
    assert access.is_mode_only == some.is_mode_only


def test_a_file_gets_no_right_to_execute_from_a_mode_without_it() -> None:
    access = {e.tag: e.permissions for e in READ.inherited(0o666).entries}
    assert access == {
        Tag.USER_OWNER: 6,
        Tag.USER: 7,
        Tag.GROUP_OWNER: 4,
        Tag.MASK: 6,
        Tag.OTHER: 0,
    }


def test_an_error_tells_what_is_missing() -> None:
    with pytest.raises(MictlanError, match="without an entry for group owner, other"):
        acl.decode(packed(OWNER))
