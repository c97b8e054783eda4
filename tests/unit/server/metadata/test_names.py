import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import LINK_COUNT_MAX, ROOT_INODE, BucketPolicy, FileKind, InodeNumber
from tests.unit.server.metadata.space import Space, new_chunk

NO_REPLACE, EXCHANGE = wire.RenameMode.NO_REPLACE, wire.RenameMode.EXCHANGE
DIRECTORY = FileKind.DIRECTORY
MISSING = InodeNumber(9_999)

# --- make ---


def test_make_returns_the_node_then_its_parent(space: Space, bucket: InodeNumber) -> None:
    op = space.make_op(bucket, b"file")
    node, parent = space.do(op)
    assert (node.ino, node.kind, node.mode, node.uid, node.gid) == (op.ino, 8, 0o644, 1, 2)
    assert (node.size, node.nlink, node.allocated, node.has_xattrs) == (0, 1, 0, False)
    assert node.atime_ns == node.mtime_ns == node.ctime_ns == op.time_ns
    assert (parent.ino, parent.size, parent.nlink) == (bucket, 1, 2)
    assert parent.mtime_ns == parent.ctime_ns == op.time_ns
    assert space.attributes(op.ino) == node


def test_make_counts_in_the_versions_of_the_parent(space: Space, bucket: InodeNumber) -> None:
    before = space.attributes(bucket)
    space.make(bucket, b"file")
    after = space.attributes(bucket)
    assert after.version > before.version
    assert after.content_version > before.content_version


def test_directory_starts_with_two_links_and_gives_one_to_its_parent(
    space: Space, bucket: InodeNumber
) -> None:
    directory = space.mkdir(bucket, b"directory")
    assert space.attributes(directory).nlink == 2
    assert space.attributes(bucket).nlink == 3


def test_symlink_keeps_its_target(space: Space, bucket: InodeNumber) -> None:
    ino = space.make(bucket, b"link", FileKind.SYMLINK, b"../\xff")
    assert space.node(ino).target == b"../\xff"
    assert space.attributes(ino).size == 4


def test_device_keeps_its_number_and_others_have_none(space: Space, bucket: InodeNumber) -> None:
    numbers = {}
    for kind in FileKind:
        if kind is not FileKind.SYMLINK:
            op = wire.MakeNode(bucket, bytes([kind]), space.new_inode(), kind, 0, 0, 0, 1, 259)
            (node, _) = space.do(op)
            numbers[kind] = node.rdev
    devices = {FileKind.BLOCK_DEVICE, FileKind.CHARACTER_DEVICE}
    assert {kind for kind, number in numbers.items() if number == 259} == devices
    assert {number for kind, number in numbers.items() if kind not in devices} == {0}


def test_directory_in_the_root_is_a_bucket_with_the_default_policy(space: Space) -> None:
    ino = space.bucket(b"one")
    (bucket,) = space.reads.buckets().buckets
    assert (bucket.name, bucket.attributes.ino, bucket.policy) == (b"one", ino, BucketPolicy())


@pytest.mark.parametrize("kind", set(FileKind) - {DIRECTORY})
def test_nothing_but_a_directory_is_made_in_the_root(space: Space, kind: FileKind) -> None:
    target = b"target" if kind is FileKind.SYMLINK else b""
    assert space.error_of(space.make_op(ROOT_INODE, b"x", kind, target)) is Kind.NOT_PERMITTED
    assert space.names(ROOT_INODE) == {}


def test_refusal_in_the_root_says_why(space: Space) -> None:
    (result,) = space.commit(space.batch(space.make_op(ROOT_INODE, b"x"))).results
    assert result.error is not None
    assert "buckets only" in result.error.detail


@pytest.mark.parametrize("target", [b"", b"x" * 4096, b"a\0b"])
def test_symlink_needs_a_possible_target(space: Space, bucket: InodeNumber, target: bytes) -> None:
    kind = space.error_of(space.make_op(bucket, b"link", FileKind.SYMLINK, target))
    assert kind is (Kind.NAME_TOO_LONG if len(target) > 4095 else Kind.INVALID)


def test_only_a_symlink_has_a_target(space: Space, bucket: InodeNumber) -> None:
    assert space.error_of(space.make_op(bucket, b"x", FileKind.FILE, b"target")) is Kind.INVALID


def test_reserved_name_of_the_root_is_free_elsewhere(space: Space, bucket: InodeNumber) -> None:
    assert space.error_of(space.make_op(ROOT_INODE, b".mictlanfs", DIRECTORY)) is Kind.NOT_PERMITTED
    assert space.error_of(space.make_op(bucket, b".mictlanfs", DIRECTORY)) is None
    rename = space.rename_op(ROOT_INODE, b"bucket", ROOT_INODE, b".mictlanfs")
    assert space.error_of(rename) is Kind.NOT_PERMITTED


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"\0"])
def test_impossible_name_is_invalid_everywhere(
    space: Space, bucket: InodeNumber, name: bytes
) -> None:
    ino = space.make(bucket, b"file")
    ops: list[wire.Operation] = [
        space.make_op(bucket, name),
        wire.Link(ino, bucket, name, 1),
        wire.Unlink(bucket, name, 1),
        wire.RemoveDirectory(bucket, name, 1),
        space.rename_op(bucket, name, bucket, b"new"),
        space.rename_op(bucket, b"file", bucket, name),
    ]
    assert [space.error_of(op) for op in ops] == [Kind.INVALID] * len(ops)


def test_name_has_at_most_255_bytes(space: Space, bucket: InodeNumber) -> None:
    assert space.error_of(space.make_op(bucket, b"n" * 255)) is None
    assert space.error_of(space.make_op(bucket, b"n" * 256)) is Kind.NAME_TOO_LONG
    rename = space.rename_op(bucket, b"n" * 255, bucket, b"m" * 256)
    assert space.error_of(rename) is Kind.NAME_TOO_LONG


def test_name_may_be_any_other_bytes(space: Space, bucket: InodeNumber) -> None:
    name = bytes(set(range(1, 256)) - {0x2F})
    ino = space.make(bucket, name)
    assert space.lookup(bucket, name) == ino


def test_make_refuses_what_is_there_already(space: Space, bucket: InodeNumber) -> None:
    space.make(bucket, b"file")
    assert space.error_of(space.make_op(bucket, b"file", DIRECTORY)) is Kind.EXISTS
    # EEXIST, not EPERM: open(2) with O_CREAT of a bucket's name must find the bucket.
    assert space.error_of(space.make_op(ROOT_INODE, b"bucket")) is Kind.EXISTS


def test_make_needs_a_directory_to_be_in(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    assert space.error_of(space.make_op(file, b"x")) is Kind.NOT_DIRECTORY
    for number in (0, -1, MISSING, 2**63, 2**64 - 1):
        assert space.error_of(space.make_op(number, b"x")) is Kind.NOT_FOUND


def test_make_in_a_removed_directory_that_is_open_is_stale(
    space: Space, bucket: InodeNumber
) -> None:
    directory = space.mkdir(bucket, b"directory")
    space.rmdir(bucket, b"directory", sustain=True)
    assert space.error_of(space.make_op(directory, b"x")) is Kind.STALE
    file = space.make(bucket, b"file")
    assert space.error_of(wire.Link(file, directory, b"x", 1)) is Kind.STALE
    assert space.error_of(space.rename_op(bucket, b"file", directory, b"x")) is Kind.STALE


def test_inode_number_must_have_been_handed_out_and_be_free(
    space: Space, bucket: InodeNumber
) -> None:
    used = space.make(bucket, b"used")
    next_ino = InodeNumber(space.rows.counter("next_ino"))
    for ino in (used, bucket, ROOT_INODE, InodeNumber(0), InodeNumber(-5), next_ino):
        op = wire.MakeNode(bucket, b"x", ino, FileKind.FILE, 0, 0, 0, 1)
        assert space.error_of(op) is Kind.INVALID
    last = wire.MakeNode(bucket, b"x", InodeNumber(next_ino - 1), FileKind.FILE, 0, 0, 0, 1)
    assert space.error_of(last) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", -1),
        ("mode", 0o10000),
        ("uid", -1),
        ("uid", 2**32 - 1),
        ("gid", 2**40),
        ("rdev", -1),
        ("rdev", 2**63),
        ("time_ns", 2**63),
        ("time_ns", -(2**63) - 1),
    ],
)
def test_make_refuses_numbers_out_of_range(
    space: Space, bucket: InodeNumber, field: str, value: int
) -> None:
    fields: dict[str, int] = {"mode": 0, "uid": 0, "gid": 0, "time_ns": 0, "rdev": 0, field: value}
    op = wire.MakeNode(bucket, b"x", space.new_inode(), FileKind.FILE, **fields)  # type: ignore[arg-type] # no bytes
    assert space.error_of(op) is Kind.INVALID
    assert space.names(bucket) == {}


# --- link and unlink ---


def test_link_gives_one_more_name(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    inode, parent = space.link(file, bucket, b"other")
    assert (inode.ino, inode.nlink, inode.ctime_ns) == (file, 2, space.clock_ns)
    assert inode.mtime_ns < inode.ctime_ns
    assert (parent.ino, parent.size, parent.mtime_ns) == (bucket, 2, space.clock_ns)
    assert space.names(bucket) == {b"file": file, b"other": file}


def test_link_refusals(space: Space, bucket: InodeNumber) -> None:
    file, directory = space.make(bucket, b"file"), space.mkdir(bucket, b"directory")
    refusals = [
        (wire.Link(file, bucket, b"directory", 1), Kind.EXISTS),
        (wire.Link(file, bucket, b"file", 1), Kind.EXISTS),
        (wire.Link(MISSING, bucket, b"x", 1), Kind.NOT_FOUND),
        (wire.Link(file, MISSING, b"x", 1), Kind.NOT_FOUND),
        (wire.Link(file, file, b"x", 1), Kind.NOT_DIRECTORY),
        (wire.Link(directory, bucket, b"x", 1), Kind.NOT_PERMITTED),
        (wire.Link(file, ROOT_INODE, b"x", 1), Kind.NOT_PERMITTED),
    ]
    assert [space.error_of(op) for op, _ in refusals] == [kind for _, kind in refusals]


def test_inode_has_at_most_so_many_links(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    sql = "UPDATE inode SET nlink = ? WHERE ino = ?"
    space.connection.execute(sql, (LINK_COUNT_MAX, file))
    assert space.error_of(wire.Link(file, bucket, b"x", 1)) is Kind.TOO_MANY_LINKS
    space.connection.execute(sql, (1, file))


def test_unlinked_file_cannot_be_linked_again(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    space.unlink(bucket, b"file", sustain=True)
    assert space.error_of(wire.Link(file, bucket, b"again", 1)) is Kind.NOT_FOUND


def test_unlink_of_the_last_name_removes_the_inode(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    inode, parent = space.unlink(bucket, b"file")
    assert (inode.ino, inode.nlink, inode.ctime_ns) == (file, 0, space.clock_ns)
    assert (parent.ino, parent.size, parent.mtime_ns) == (bucket, 0, space.clock_ns)
    assert not space.exists(file)


def test_unlink_of_one_of_two_names_keeps_the_inode(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    space.link(file, bucket, b"other")
    inode, _ = space.unlink(bucket, b"file")
    assert inode.nlink == 1
    assert space.names(bucket) == {b"other": file}


def test_unlink_and_rmdir_refusals(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    full = space.mkdir(bucket, b"full")
    space.make(full, b"x")
    refusals: list[tuple[wire.Operation, Kind]] = [
        (wire.Unlink(bucket, b"none", 1), Kind.NOT_FOUND),
        (wire.Unlink(bucket, b"full", 1), Kind.IS_DIRECTORY),
        (wire.Unlink(file, b"x", 1), Kind.NOT_DIRECTORY),
        (wire.Unlink(MISSING, b"x", 1), Kind.NOT_FOUND),
        (wire.RemoveDirectory(bucket, b"none", 1), Kind.NOT_FOUND),
        (wire.RemoveDirectory(bucket, b"file", 1), Kind.NOT_DIRECTORY),
        (wire.RemoveDirectory(bucket, b"full", 1), Kind.NOT_EMPTY),
        (wire.RemoveDirectory(ROOT_INODE, b"bucket", 1), Kind.NOT_EMPTY),
    ]
    assert [space.error_of(op) for op, _ in refusals] == [kind for _, kind in refusals]


def test_rmdir_takes_a_link_from_the_parent(space: Space, bucket: InodeNumber) -> None:
    directory = space.mkdir(bucket, b"directory")
    inode, parent = space.rmdir(bucket, b"directory")
    assert (inode.ino, inode.nlink) == (directory, 0)
    assert (parent.nlink, parent.size) == (2, 0)
    assert not space.exists(directory)


def test_removed_bucket_is_no_bucket_any_more(space: Space, bucket: InodeNumber) -> None:
    space.rmdir(ROOT_INODE, b"bucket", sustain=True)
    assert space.reads.buckets().buckets == ()
    assert space.attributes(bucket).nlink == 0


# --- rename ---


def test_rename_moves_a_name(space: Space, bucket: InodeNumber) -> None:
    one, two = space.mkdir(bucket, b"one"), space.mkdir(bucket, b"two")
    file = space.make(one, b"file")
    before = space.attributes(file)
    moved, old, new = space.rename(one, b"file", two, b"new")
    assert (moved.ino, old.ino, new.ino) == (file, one, two)
    assert (old.size, new.size) == (0, 1)
    assert old.mtime_ns == new.mtime_ns == moved.ctime_ns == space.clock_ns
    assert moved.mtime_ns == before.mtime_ns
    assert space.names(one) == {}
    assert space.names(two) == {b"new": file}


def test_rename_within_a_directory_keeps_its_size(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"a")
    moved, old, new = space.rename(bucket, b"a", bucket, b"b")
    assert moved.ino == file
    assert old == new
    assert new.size == 1


def test_rename_of_a_directory_moves_a_link_and_its_parent(
    space: Space, bucket: InodeNumber
) -> None:
    one, two = space.mkdir(bucket, b"one"), space.mkdir(bucket, b"two")
    moved = space.mkdir(one, b"moved")
    space.rename(one, b"moved", two, b"moved")
    assert (space.attributes(one).nlink, space.attributes(two).nlink) == (2, 3)
    assert space.lookup(moved, b"..") == two


def test_rename_replaces_a_file(space: Space, bucket: InodeNumber) -> None:
    source, target = space.make(bucket, b"source"), space.make(bucket, b"target")
    chunk = new_chunk()
    space.write(target, 0, chunk)
    touched = space.rename(bucket, b"source", bucket, b"target")
    assert [inode.ino for inode in touched] == [source, bucket, bucket, target]
    assert touched[3].nlink == 0
    assert space.names(bucket) == {b"target": source}
    assert not space.exists(target)
    assert space.references(chunk) == 0


def test_rename_over_an_open_file_sustains_it(space: Space, bucket: InodeNumber) -> None:
    space.make(bucket, b"source")
    target = space.make(bucket, b"target")
    space.do(space.rename_op(bucket, b"source", bucket, b"target", sustain=True))
    assert space.attributes(target).nlink == 0


def test_rename_replaces_an_empty_directory(space: Space, bucket: InodeNumber) -> None:
    source, target = space.mkdir(bucket, b"source"), space.mkdir(bucket, b"target")
    space.make(source, b"inside")
    space.rename(bucket, b"source", bucket, b"target")
    assert space.names(bucket) == {b"target": source}
    assert space.attributes(bucket).nlink == 3
    assert not space.exists(target)


def test_rename_refuses_kinds_that_do_not_fit(space: Space, bucket: InodeNumber) -> None:
    space.make(bucket, b"file")
    space.mkdir(bucket, b"empty")
    full = space.mkdir(bucket, b"full")
    space.make(full, b"x")
    refusals = [
        (space.rename_op(bucket, b"file", bucket, b"empty"), Kind.IS_DIRECTORY),
        (space.rename_op(bucket, b"empty", bucket, b"file"), Kind.NOT_DIRECTORY),
        (space.rename_op(bucket, b"empty", bucket, b"full"), Kind.NOT_EMPTY),
        (space.rename_op(bucket, b"none", bucket, b"x"), Kind.NOT_FOUND),
        (space.rename_op(bucket, b"file", MISSING, b"x"), Kind.NOT_FOUND),
        (space.rename_op(MISSING, b"file", bucket, b"x"), Kind.NOT_FOUND),
        (space.rename_op(bucket, b"file", bucket, b"x", 3), Kind.INVALID),
    ]
    assert [space.error_of(op) for op, _ in refusals] == [kind for _, kind in refusals]


def test_rename_without_replacing(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    space.make(bucket, b"target")
    refused = space.rename_op(bucket, b"file", bucket, b"target", NO_REPLACE)
    assert space.error_of(refused) is Kind.EXISTS
    space.rename(bucket, b"file", bucket, b"free", NO_REPLACE)
    assert space.lookup(bucket, b"free") == file


@pytest.mark.parametrize("mode", [wire.RenameMode.REPLACE, EXCHANGE])
def test_rename_between_names_of_one_inode_does_nothing(
    space: Space, bucket: InodeNumber, mode: int
) -> None:
    file = space.make(bucket, b"file")
    space.link(file, bucket, b"other")
    before = space.attributes(bucket)
    touched = space.rename(bucket, b"file", bucket, b"other", mode)
    assert [inode.ino for inode in touched] == [file, bucket, bucket]
    assert space.names(bucket) == {b"file": file, b"other": file}
    assert space.attributes(bucket) == before


def test_rename_to_itself_does_nothing_to_a_directory(space: Space, bucket: InodeNumber) -> None:
    directory = space.mkdir(bucket, b"directory")
    space.rename(bucket, b"directory", bucket, b"directory")
    space.rename(ROOT_INODE, b"bucket", ROOT_INODE, b"bucket")
    assert space.names(bucket) == {b"directory": directory}


def test_directory_cannot_go_below_itself(space: Space, bucket: InodeNumber) -> None:
    top = space.mkdir(bucket, b"top")
    middle = space.mkdir(top, b"middle")
    bottom = space.mkdir(middle, b"bottom")
    for parent in (top, middle, bottom):
        assert space.error_of(space.rename_op(bucket, b"top", parent, b"x")) is Kind.INVALID
    # Upwards and sidewards is no loop.
    space.rename(middle, b"bottom", bucket, b"bottom")
    space.rename(bucket, b"top", bottom, b"top")


def test_exchange_cannot_put_a_directory_below_itself(space: Space, bucket: InodeNumber) -> None:
    top = space.mkdir(bucket, b"top")
    middle = space.mkdir(top, b"middle")
    space.make(middle, b"file")
    inwards = space.rename_op(bucket, b"top", middle, b"file", EXCHANGE)
    outwards = space.rename_op(middle, b"file", bucket, b"top", EXCHANGE)
    assert space.error_of(inwards) is Kind.INVALID
    assert space.error_of(outwards) is Kind.INVALID


def test_exchange_swaps_a_file_and_a_directory(space: Space, bucket: InodeNumber) -> None:
    one, two = space.mkdir(bucket, b"one"), space.mkdir(bucket, b"two")
    file, directory = space.make(one, b"a"), space.mkdir(two, b"b")
    touched = space.rename(one, b"a", two, b"b", EXCHANGE)
    assert [inode.ino for inode in touched] == [file, one, two, directory]
    assert {inode.ctime_ns for inode in touched} == {space.clock_ns}
    assert (space.names(one), space.names(two)) == ({b"a": directory}, {b"b": file})
    assert (space.attributes(one).nlink, space.attributes(two).nlink) == (3, 2)
    assert space.lookup(directory, b"..") == one


def test_exchange_needs_both_names(space: Space, bucket: InodeNumber) -> None:
    space.make(bucket, b"file")
    op = space.rename_op(bucket, b"file", bucket, b"none", EXCHANGE)
    assert space.error_of(op) is Kind.NOT_FOUND


def test_bucket_is_renamed_within_the_root_only(space: Space, bucket: InodeNumber) -> None:
    other = space.bucket(b"other")
    space.make(bucket, b"file")
    space.mkdir(bucket, b"directory")
    refused = [
        space.rename_op(ROOT_INODE, b"other", bucket, b"x"),
        space.rename_op(bucket, b"file", ROOT_INODE, b"x"),
        space.rename_op(bucket, b"directory", ROOT_INODE, b"x"),
        space.rename_op(bucket, b"directory", ROOT_INODE, b"other", EXCHANGE),
    ]
    assert [space.error_of(op) for op in refused] == [Kind.NOT_PERMITTED] * len(refused)
    space.rename(ROOT_INODE, b"other", ROOT_INODE, b"new")
    assert space.names(ROOT_INODE) == {b"bucket": bucket, b"new": other}


def test_buckets_can_be_exchanged_and_keep_their_policies(
    space: Space, bucket: InodeNumber
) -> None:
    space.bucket(b"other")
    policy = BucketPolicy(replicas=3)
    space.do(wire.SetBucketPolicy(bucket, policy, 1))
    space.rename(ROOT_INODE, b"bucket", ROOT_INODE, b"other", EXCHANGE)
    policies = {info.name: info.policy for info in space.reads.buckets().buckets}
    assert policies == {b"bucket": BucketPolicy(), b"other": policy}


# --- the bucket an inode lies in ---


@pytest.fixture
def triple(space: Space) -> InodeNumber:
    """A second bucket, whose policy can be recognised."""
    ino = space.bucket(b"triple")
    space.do(wire.SetBucketPolicy(ino, BucketPolicy(replicas=3), 1))
    return ino


def replicas(space: Space, ino: int) -> int:
    policy = space.node(ino).policy
    assert policy is not None
    return policy.replicas


def test_tree_moved_to_another_bucket_follows_its_policy(
    space: Space, bucket: InodeNumber, triple: InodeNumber
) -> None:
    directory = space.mkdir(space.mkdir(bucket, b"a"), b"b")
    file = space.make(directory, b"file")
    assert [replicas(space, ino) for ino in (directory, file)] == [2, 2]
    space.rename(bucket, b"a", triple, b"a")
    assert [replicas(space, ino) for ino in (directory, file)] == [3, 3]


def test_moved_file_follows_the_policy_of_its_new_bucket(
    space: Space, bucket: InodeNumber, triple: InodeNumber
) -> None:
    file = space.make(bucket, b"file")
    space.rename(bucket, b"file", triple, b"file")
    assert replicas(space, file) == 3


def test_exchanged_trees_follow_the_policies_of_their_new_buckets(
    space: Space, bucket: InodeNumber, triple: InodeNumber
) -> None:
    one, two = space.mkdir(bucket, b"one"), space.mkdir(triple, b"two")
    space.rename(bucket, b"one", triple, b"two", EXCHANGE)
    assert (replicas(space, one), replicas(space, two)) == (3, 2)


def test_file_with_links_in_two_buckets_keeps_a_bucket_that_names_it(
    space: Space, bucket: InodeNumber, triple: InodeNumber
) -> None:
    file = space.make(bucket, b"file")
    space.link(file, triple, b"file")
    space.unlink(bucket, b"file")
    assert replicas(space, file) == 3


def test_open_file_of_a_removed_bucket_has_the_default_policy(
    space: Space, triple: InodeNumber
) -> None:
    file = space.make(triple, b"file")
    space.unlink(triple, b"file", sustain=True)
    assert replicas(space, file) == 3
    space.rmdir(ROOT_INODE, b"triple")
    assert replicas(space, file) == BucketPolicy().replicas


def test_root_lies_in_no_bucket(space: Space) -> None:
    assert space.node(ROOT_INODE).policy is None
