import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import (
    FILE_SIZE_BYTES_MAX,
    ROOT_INODE,
    BucketPolicy,
    FileKind,
    InodeNumber,
)
from mictlanfs_server.metadata.attributes import (
    XATTR_CREATE,
    XATTR_REPLACE,
    XATTR_VALUES_SIZE_BYTES_MAX,
)
from tests.unit.server.metadata.space import Space

MISSING = InodeNumber(9_999)


@pytest.fixture
def file(space: Space, bucket: InodeNumber) -> InodeNumber:
    return space.make(bucket, b"file")


# --- setattr ---


def test_setattr_changes_what_is_given_and_ctime(space: Space, file: InodeNumber) -> None:
    before = space.attributes(file)
    (after,) = space.do(wire.SetAttributes(file, space.tick(), mode=0o4755, gid=7))
    assert (after.mode, after.uid, after.gid) == (0o4755, before.uid, 7)
    assert (after.mtime_ns, after.atime_ns) == (before.mtime_ns, before.atime_ns)
    assert after.ctime_ns == space.clock_ns
    assert after.version == before.version + 1
    assert after.content_version == before.content_version
    assert space.attributes(file) == after


def test_setattr_sets_times_as_given(space: Space, file: InodeNumber) -> None:
    low, high = -(2**63), 2**63 - 1
    (after,) = space.do(wire.SetAttributes(file, 5, atime_ns=low, mtime_ns=high))
    assert (after.atime_ns, after.mtime_ns, after.ctime_ns) == (low, high, 5)


def test_setattr_of_size_makes_a_hole_and_changes_mtime(space: Space, file: InodeNumber) -> None:
    before = space.attributes(file)
    after = space.truncate(file, 10_000)
    assert (after.size, after.allocated) == (10_000, 0)
    assert after.mtime_ns == after.ctime_ns == space.clock_ns
    assert after.content_version > before.content_version


def test_setattr_of_size_keeps_an_mtime_that_is_given(space: Space, file: InodeNumber) -> None:
    (after,) = space.do(wire.SetAttributes(file, 5, size=1, mtime_ns=3))
    assert (after.mtime_ns, after.ctime_ns) == (3, 5)


def test_size_belongs_to_files(space: Space, bucket: InodeNumber, file: InodeNumber) -> None:
    link = space.make(bucket, b"link", FileKind.SYMLINK, b"x")
    fifo = space.make(bucket, b"fifo", FileKind.FIFO)
    refusals = [
        (wire.SetAttributes(bucket, 1, size=0), Kind.IS_DIRECTORY),
        (wire.SetAttributes(link, 1, size=0), Kind.INVALID),
        (wire.SetAttributes(fifo, 1, size=0), Kind.INVALID),
        (wire.SetAttributes(file, 1, size=-1), Kind.INVALID),
        (wire.SetAttributes(file, 1, size=FILE_SIZE_BYTES_MAX + 1), Kind.TOO_LARGE),
        (wire.SetAttributes(MISSING, 1, size=0), Kind.NOT_FOUND),
    ]
    assert [space.error_of(op) for op, _ in refusals] == [kind for _, kind in refusals]
    assert space.truncate(file, FILE_SIZE_BYTES_MAX).size == FILE_SIZE_BYTES_MAX


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": 0o10000},
        {"mode": -1},
        {"uid": 2**32},
        {"gid": -1},
        {"atime_ns": 2**63},
        {"mtime_ns": -(2**64)},
        {"time_ns": 2**63},
    ],
)
def test_setattr_refuses_numbers_out_of_range(
    space: Space, file: InodeNumber, changes: dict[str, int]
) -> None:
    before = space.attributes(file)
    time_ns = changes.pop("time_ns", 1)
    assert space.error_of(wire.SetAttributes(file, time_ns, **changes)) is Kind.INVALID
    assert space.attributes(file) == before


def test_root_has_attributes_to_set(space: Space) -> None:
    (after,) = space.do(wire.SetAttributes(ROOT_INODE, 9, mode=0o1777, uid=5))
    assert (after.mode, after.uid) == (0o1777, 5)


# --- extended attributes ---


def xattrs(space: Space, ino: InodeNumber) -> dict[bytes, bytes]:
    return space.reads.xattrs(wire.GetXattrs(ino)).values


def test_xattr_is_set_replaced_and_removed(space: Space, file: InodeNumber) -> None:
    assert space.attributes(file).has_xattrs is False
    (after,) = space.do(wire.SetXattr(file, b"user.a", b"1", space.tick()))
    assert (after.has_xattrs, after.ctime_ns) == (True, space.clock_ns)
    assert after.mtime_ns < after.ctime_ns
    space.do(wire.SetXattr(file, b"user.a", b"", 1))
    space.do(wire.SetXattr(file, b"user.b", b"\0\xff", 1))
    assert xattrs(space, file) == {b"user.a": b"", b"user.b": b"\0\xff"}
    space.do(wire.RemoveXattr(file, b"user.a", 1))
    (after,) = space.do(wire.RemoveXattr(file, b"user.b", space.tick()))
    assert (after.has_xattrs, after.ctime_ns) == (False, space.clock_ns)
    assert xattrs(space, file) == {}


def test_xattr_flags_decide_about_what_exists(space: Space, file: InodeNumber) -> None:
    def attempt(flags: int, value: bytes) -> Kind | None:
        return space.error_of(wire.SetXattr(file, b"user.a", value, 1, flags))

    assert attempt(XATTR_REPLACE, b"1") is Kind.NO_DATA
    assert attempt(XATTR_CREATE, b"2") is None
    assert attempt(XATTR_CREATE, b"3") is Kind.EXISTS
    assert attempt(XATTR_REPLACE, b"4") is None
    assert attempt(XATTR_CREATE | XATTR_REPLACE, b"5") is Kind.INVALID
    assert attempt(8, b"6") is Kind.INVALID
    assert xattrs(space, file) == {b"user.a": b"4"}


def test_xattr_refusals(space: Space, file: InodeNumber) -> None:
    refusals: list[tuple[wire.Operation, Kind]] = [
        (wire.SetXattr(MISSING, b"user.a", b"", 1), Kind.NOT_FOUND),
        (wire.SetXattr(file, b"", b"", 1), Kind.RANGE),
        (wire.SetXattr(file, b"n" * 256, b"", 1), Kind.RANGE),
        (wire.SetXattr(file, b"user.\0", b"", 1), Kind.INVALID),
        (wire.SetXattr(file, b"user.a", b"v" * (64 * 1024 + 1), 1), Kind.TOO_LARGE),
        (wire.SetXattr(file, b"user.a", b"", 2**63), Kind.INVALID),
        (wire.RemoveXattr(MISSING, b"user.a", 1), Kind.NOT_FOUND),
        (wire.RemoveXattr(file, b"user.a", 1), Kind.NO_DATA),
    ]
    assert [space.error_of(op) for op, _ in refusals] == [kind for _, kind in refusals]


def test_names_of_xattrs_together_are_bounded(space: Space, file: InodeNumber) -> None:
    ops = [wire.SetXattr(file, b"%0255d" % index, b"", 1) for index in range(256)]
    assert {space.error_of(op) for op in ops} == {None}
    assert space.error_of(wire.SetXattr(file, b"x", b"", 1)) is Kind.NO_SPACE
    # Replacing one needs no room.
    assert space.error_of(wire.SetXattr(file, b"%0255d" % 0, b"new", 1)) is None


def test_values_of_xattrs_together_are_bounded(space: Space, file: InodeNumber) -> None:
    value = b"v" * (64 * 1024)
    count = XATTR_VALUES_SIZE_BYTES_MAX // len(value)
    for index in range(count):
        space.do(wire.SetXattr(file, b"user.%d" % index, value, 1))
    assert space.error_of(wire.SetXattr(file, b"user.more", b"v", 1)) is Kind.NO_SPACE
    assert space.error_of(wire.SetXattr(file, b"user.0", value, 1)) is None


# --- policies ---


def test_policy_is_changed_for_what_lies_in_the_bucket(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    assert space.node(file).policy == BucketPolicy()
    policy = BucketPolicy(replicas=3, replicas_min=2, chunk_size=64 * 1024)
    (after,) = space.do(wire.SetBucketPolicy(bucket, policy, space.tick()))
    assert (after.ino, after.ctime_ns) == (bucket, space.clock_ns)
    assert space.node(file).policy == policy
    assert space.node(bucket).policy == policy


def test_only_a_bucket_has_a_policy_to_change(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    directory = space.mkdir(bucket, b"directory")
    for ino in (directory, file, ROOT_INODE, MISSING):
        assert space.error_of(wire.SetBucketPolicy(ino, BucketPolicy(), 1)) is Kind.NOT_FOUND


@pytest.mark.parametrize(
    "policy",
    [
        BucketPolicy(replicas=0),
        BucketPolicy(replicas=6),
        BucketPolicy(replicas=2, replicas_min=3),
        BucketPolicy(replicas_min=0),
        BucketPolicy(chunk_size=64 * 1024 - 1),
        BucketPolicy(chunk_size=16 * 1024 * 1024 + 1),
    ],
)
def test_policy_that_cannot_be_kept_is_invalid(
    space: Space, bucket: InodeNumber, policy: BucketPolicy
) -> None:
    assert space.error_of(wire.SetBucketPolicy(bucket, policy, 1)) is Kind.INVALID
    assert space.node(bucket).policy == BucketPolicy()
