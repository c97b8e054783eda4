"""Access control lists in the metadata: in step with the mode, inherited, one operation each."""

from __future__ import annotations

import pytest

from mictlanfs import acl, wire
from mictlanfs.acl import Acl, Entry, Tag
from mictlanfs.errors import Kind
from mictlanfs.model import ROOT_INODE, Attributes, FileKind, InodeNumber
from tests.unit.server.metadata.space import Space


def minimal(mode: int) -> Acl:
    return Acl(
        (
            Entry(Tag.USER_OWNER, mode >> 6 & 7),
            Entry(Tag.GROUP_OWNER, mode >> 3 & 7),
            Entry(Tag.OTHER, mode & 7),
        )
    )


def extended(owner: int, user: int, group: int, mask: int, other: int) -> Acl:
    return Acl(
        (
            Entry(Tag.USER_OWNER, owner),
            Entry(Tag.USER, user, 1000),
            Entry(Tag.GROUP_OWNER, group),
            Entry(Tag.MASK, mask),
            Entry(Tag.OTHER, other),
        )
    )


def set_acl(space: Space, ino: InodeNumber, name: bytes, some: Acl) -> Attributes:
    (after,) = space.do(wire.SetXattr(ino, name, acl.encode(some), space.tick()))
    return after


def acls(space: Space, ino: InodeNumber) -> dict[bytes, Acl | None]:
    values = space.reads.xattrs(wire.GetXattrs(ino)).values
    return {name: acl.decode(value) for name, value in values.items()}


@pytest.fixture
def file(space: Space, bucket: InodeNumber) -> InodeNumber:
    return space.make(bucket, b"file")


# --- set and remove ---


def test_an_access_list_sets_the_permission_bits(space: Space, file: InodeNumber) -> None:
    space.do(wire.SetAttributes(file, space.tick(), mode=0o4644))
    before = space.attributes(file)
    some = extended(6, 7, 4, 5, 0)
    after = set_acl(space, file, acl.ACCESS_NAME, some)
    assert after.mode == 0o4650
    assert (after.version, after.ctime_ns) == (before.version + 1, space.clock_ns)
    assert after.content_version == before.content_version
    assert after.has_xattrs
    assert acls(space, file) == {acl.ACCESS_NAME: some}


def test_the_set_group_id_bit_goes_when_the_writer_says_so(space: Space, file: InodeNumber) -> None:
    value = acl.encode(extended(7, 7, 7, 7, 5))
    for name, clears, mode in (
        (acl.ACCESS_NAME, False, 0o6775),
        (b"user.a", True, 0o6775),
        (acl.ACCESS_NAME, True, 0o4775),
    ):
        space.do(wire.SetAttributes(file, space.tick(), mode=0o6775))
        op = wire.SetXattr(file, name, value, space.tick(), clear_set_gid=clears)
        assert space.do(op)[0].mode == mode


def test_a_list_that_says_no_more_than_the_mode_is_not_kept(
    space: Space, file: InodeNumber
) -> None:
    set_acl(space, file, acl.ACCESS_NAME, extended(6, 7, 4, 5, 0))
    after = set_acl(space, file, acl.ACCESS_NAME, minimal(0o640))
    assert (after.mode, after.has_xattrs) == (0o640, False)
    assert acls(space, file) == {}


def test_a_default_list_of_three_entries_is_kept(space: Space, bucket: InodeNumber) -> None:
    before = space.attributes(bucket)
    after = set_acl(space, bucket, acl.DEFAULT_NAME, minimal(0o700))
    assert after.mode == before.mode
    assert acls(space, bucket) == {acl.DEFAULT_NAME: minimal(0o700)}


@pytest.mark.parametrize("name", sorted(acl.NAMES))
def test_an_empty_list_is_none(space: Space, bucket: InodeNumber, name: bytes) -> None:
    set_acl(space, bucket, name, extended(7, 7, 7, 7, 7))
    (after,) = space.do(wire.SetXattr(bucket, name, acl.encode(Acl(())), space.tick()))
    assert (after.mode, after.has_xattrs) == (space.attributes(bucket).mode, False)


def test_a_list_can_be_removed_also_when_there_is_none(space: Space, file: InodeNumber) -> None:
    set_acl(space, file, acl.ACCESS_NAME, extended(6, 7, 4, 5, 0))
    (removed,) = space.do(wire.RemoveXattr(file, acl.ACCESS_NAME, space.tick()))
    # The bits stay as the list had set them, as on other file systems.
    assert (removed.mode, removed.has_xattrs) == (0o650, False)
    (again,) = space.do(wire.RemoveXattr(file, acl.ACCESS_NAME, space.tick()))
    assert again == removed


def test_other_extended_attributes_stay(space: Space, file: InodeNumber) -> None:
    space.do(wire.SetXattr(file, b"user.a", b"1", space.tick()))
    set_acl(space, file, acl.ACCESS_NAME, extended(6, 7, 4, 5, 0))
    assert set_acl(space, file, acl.ACCESS_NAME, minimal(0o600)).has_xattrs
    assert space.reads.xattrs(wire.GetXattrs(file)).values == {b"user.a": b"1"}


def test_what_is_no_list_or_not_its_place_is_refused(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    link = space.make(bucket, b"link", FileKind.SYMLINK, b"x")
    good = acl.encode(extended(6, 7, 4, 5, 0))
    refusals = [
        (wire.SetXattr(file, acl.ACCESS_NAME, b"no list", 1), Kind.INVALID),
        (wire.SetXattr(file, acl.ACCESS_NAME, b"\3" + good[1:], 1), Kind.UNSUPPORTED),
        (wire.SetXattr(file, acl.DEFAULT_NAME, good, 1), Kind.ACCESS_DENIED),
        (wire.SetXattr(link, acl.ACCESS_NAME, good, 1), Kind.UNSUPPORTED),
        (wire.SetXattr(file, acl.ACCESS_NAME, good, 1, flags=2), Kind.NO_DATA),
    ]
    before = space.attributes(file)
    assert [space.error_of(op) for op, _ in refusals] == [kind for _, kind in refusals]
    assert space.attributes(file) == before


# --- chmod ---


def test_chmod_changes_the_entries_that_stand_for_the_mode(space: Space, file: InodeNumber) -> None:
    set_acl(space, file, acl.ACCESS_NAME, extended(6, 7, 4, 5, 0))
    (after,) = space.do(wire.SetAttributes(file, space.tick(), mode=0o731))
    assert after.mode == 0o731
    assert acls(space, file) == {acl.ACCESS_NAME: extended(7, 7, 4, 3, 1)}


def test_chmod_leaves_the_default_list(space: Space, bucket: InodeNumber) -> None:
    set_acl(space, bucket, acl.DEFAULT_NAME, extended(7, 6, 5, 4, 3))
    space.do(wire.SetAttributes(bucket, space.tick(), mode=0))
    assert acls(space, bucket) == {acl.DEFAULT_NAME: extended(7, 6, 5, 4, 3)}


# --- inheritance ---


def make(
    space: Space, parent: InodeNumber, kind: FileKind, mode: int, masked: int = 0
) -> tuple[Attributes, int]:
    """A node made in one operation: its attributes and the permission bits it was given."""
    target = b"x" if kind is FileKind.SYMLINK else b""
    ino = space.new_inode()
    op = wire.MakeNode(parent, b"new", ino, kind, mode, 1, 2, space.tick(), 0, target, masked)
    made, _ = space.do(op)
    assert made == space.attributes(ino)
    return made, made.mode


def test_a_file_inherits_what_the_mode_lets_it(space: Space, bucket: InodeNumber) -> None:
    set_acl(space, bucket, acl.DEFAULT_NAME, extended(7, 7, 5, 7, 5))
    made, mode = make(space, bucket, FileKind.FILE, 0o4640)
    assert mode == 0o4640
    assert acls(space, made.ino) == {acl.ACCESS_NAME: extended(6, 7, 5, 4, 0)}
    assert made.version == 1


def test_a_default_list_gives_back_what_the_umask_took(space: Space, bucket: InodeNumber) -> None:
    set_acl(space, bucket, acl.DEFAULT_NAME, extended(7, 7, 5, 7, 5))
    made, mode = make(space, bucket, FileKind.FILE, 0o600, masked=0o066)
    assert mode == 0o664
    assert acls(space, made.ino) == {acl.ACCESS_NAME: extended(6, 7, 5, 6, 4)}


def test_without_a_default_list_what_the_umask_took_stays_away(
    space: Space, bucket: InodeNumber
) -> None:
    _, mode = make(space, bucket, FileKind.FILE, 0o600, masked=0o066)
    assert mode == 0o600


def test_a_directory_inherits_the_default_list_too(space: Space, bucket: InodeNumber) -> None:
    default = extended(7, 7, 5, 7, 5)
    set_acl(space, bucket, acl.DEFAULT_NAME, default)
    made, mode = make(space, bucket, FileKind.DIRECTORY, 0o770)
    assert mode == 0o770
    assert acls(space, made.ino) == {
        acl.ACCESS_NAME: extended(7, 7, 5, 7, 0),
        acl.DEFAULT_NAME: default,
    }


def test_a_minimal_default_list_only_limits_the_mode(space: Space, bucket: InodeNumber) -> None:
    set_acl(space, bucket, acl.DEFAULT_NAME, minimal(0o750))
    made, mode = make(space, bucket, FileKind.FILE, 0o666)
    assert (mode, made.has_xattrs) == (0o640, False)


def test_symlinks_inherit_nothing(space: Space, bucket: InodeNumber) -> None:
    set_acl(space, bucket, acl.DEFAULT_NAME, extended(7, 7, 5, 0, 0))
    made, mode = make(space, bucket, FileKind.SYMLINK, 0o777)
    assert (mode, made.has_xattrs) == (0o777, False)


def test_an_access_list_is_not_inherited(space: Space, bucket: InodeNumber) -> None:
    set_acl(space, bucket, acl.ACCESS_NAME, extended(7, 7, 7, 7, 7))
    made, mode = make(space, bucket, FileKind.FILE, 0o644)
    assert (mode, made.has_xattrs) == (0o644, False)


def test_buckets_inherit_from_the_root(space: Space) -> None:
    set_acl(space, ROOT_INODE, acl.DEFAULT_NAME, extended(7, 7, 5, 5, 0))
    made, mode = make(space, ROOT_INODE, FileKind.DIRECTORY, 0o755)
    assert mode == 0o750
    assert set(acls(space, made.ino)) == acl.NAMES


def test_a_removed_node_leaves_no_list(space: Space, bucket: InodeNumber) -> None:
    set_acl(space, bucket, acl.DEFAULT_NAME, extended(7, 7, 5, 7, 5))
    made, _ = make(space, bucket, FileKind.FILE, 0o644)
    space.unlink(bucket, b"new")
    assert space.rows.xattr_sizes(made.ino) == (0, 0)
