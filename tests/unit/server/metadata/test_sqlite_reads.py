import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, BucketPolicy, Extent, FileKind, InodeNumber, Node
from mictlanfs_server.metadata import sqlite_reads
from tests.unit.server.metadata.space import Space, new_chunk

MISSING = InodeNumber(9_999)


@pytest.fixture
def file(space: Space, bucket: InodeNumber) -> InodeNumber:
    return space.make(bucket, b"file")


def write_many(space: Space, ino: InodeNumber, count: int) -> None:
    """Extents at 0, 2, 4, ... of one byte each."""
    chunks = tuple(new_chunk(1) for _ in range(count))
    extents = tuple(Extent(2 * index, 1, chunk.id, 0) for index, chunk in enumerate(chunks))
    space.write_all(ino, extents, chunks)


def lookup_error(space: Space, parent: int, name: bytes) -> Kind:
    with pytest.raises(MictlanError) as raised:
        space.reads.lookup(wire.Lookup(InodeNumber(parent), name))
    return raised.value.kind


def list_page(
    space: Space, ino: int, after: bytes = b"", entries_max: int = 2000, extents_max: int = 0
) -> wire.ListPage:
    request = wire.ListDirectory(InodeNumber(ino), after, entries_max, extents_max)
    return space.reads.list_directory(request)


# --- lookup ---


def test_lookup_gives_the_node_with_extents_chunks_and_policy(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    chunk = new_chunk(10)
    space.write(file, 0, chunk)
    node = space.reads.lookup(wire.Lookup(bucket, b"file", 16))
    expected = Node(
        space.attributes(file),
        b"",
        (Extent(0, 10, chunk.id, 0),),
        (chunk,),
        True,
        BucketPolicy(),
        key=bucket,
    )
    assert node == expected


def test_lookup_sends_no_extents_unless_asked(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    space.write(file, 0, new_chunk(10))
    node = space.reads.lookup(wire.Lookup(bucket, b"file"))
    assert (node.extents, node.chunks, node.has_all_extents) == ((), (), False)


def test_file_without_extents_has_all_of_them(space: Space, file: InodeNumber) -> None:
    space.truncate(file, 100)
    assert space.node(file, 0).has_all_extents


def test_extents_of_a_node_are_limited_to_the_first(space: Space, file: InodeNumber) -> None:
    write_many(space, file, 5)
    node = space.node(file, 3)
    assert [extent.offset for extent in node.extents] == [0, 2, 4]
    assert {chunk.id for chunk in node.chunks} == {extent.chunk_id for extent in node.extents}
    assert not node.has_all_extents
    assert space.node(file, 5).has_all_extents


@pytest.mark.parametrize("extents_max", [-5, 0, 2**40])
def test_number_of_extents_asked_is_bounded(
    space: Space, file: InodeNumber, extents_max: int
) -> None:
    write_many(space, file, 300)
    expected = wire.EXTENTS_PAGE_MAX if extents_max > 0 else 0
    assert len(space.node(file, extents_max).extents) == expected


@pytest.mark.parametrize(
    ("extents_max", "expected"),
    [(-5, 1), (0, 1), (7, 7), (2**40, wire.EXTENTS_LONG_PAGE_MAX)],
)
def test_a_page_of_extents_is_as_long_as_asked_up_to_a_bound(
    space: Space, file: InodeNumber, extents_max: int, expected: int
) -> None:
    write_many(space, file, wire.EXTENTS_LONG_PAGE_MAX + 5)
    page = space.reads.extents(wire.GetExtents(file, 4, extents_max))
    assert [e.offset for e in page.extents] == [4 + 2 * index for index in range(expected)]
    assert page.end == 4 + 2 * expected
    rest = space.reads.extents(wire.GetExtents(file, page.end or 0, extents_max))
    assert rest.extents[0].offset == page.end


def test_dots_are_names_of_every_directory(space: Space, bucket: InodeNumber) -> None:
    directory = space.mkdir(bucket, b"directory")
    assert space.lookup(directory, b".") == directory
    assert space.lookup(directory, b"..") == bucket
    assert space.lookup(bucket, b"..") == ROOT_INODE
    assert space.lookup(ROOT_INODE, b"..") == ROOT_INODE
    assert space.lookup(ROOT_INODE, b".") == ROOT_INODE


def test_lookup_refusals(space: Space, bucket: InodeNumber, file: InodeNumber) -> None:
    assert lookup_error(space, bucket, b"none") is Kind.NOT_FOUND
    assert lookup_error(space, file, b"none") is Kind.NOT_DIRECTORY
    assert lookup_error(space, file, b".") is Kind.NOT_DIRECTORY
    assert lookup_error(space, bucket, b"n" * 256) is Kind.NAME_TOO_LONG
    for number in (0, -1, MISSING, 2**63, 2**64 - 1):
        assert lookup_error(space, number, b"x") is Kind.NOT_FOUND


def test_parent_of_a_removed_directory_may_be_gone(space: Space, bucket: InodeNumber) -> None:
    upper = space.mkdir(bucket, b"upper")
    lower = space.mkdir(upper, b"lower")
    space.rmdir(upper, b"lower", sustain=True)
    space.rmdir(bucket, b"upper")
    assert lookup_error(space, lower, b"..") is Kind.NOT_FOUND


@pytest.mark.parametrize("number", [0, -1, MISSING, 2**63, 2**64 - 1])
def test_reads_of_what_is_not_there_are_not_found(space: Space, number: int) -> None:
    ino = InodeNumber(number)
    reads = (
        lambda: space.reads.node(wire.GetNode(ino)),
        lambda: space.reads.extents(wire.GetExtents(ino, 0)),
        lambda: space.reads.list_directory(wire.ListDirectory(ino)),
        lambda: space.reads.xattrs(wire.GetXattrs(ino)),
        lambda: space.reads.path(wire.GetPath(ino)),
    )
    for read in reads:
        with pytest.raises(MictlanError) as raised:
            read()
        assert raised.value.kind is Kind.NOT_FOUND


# --- path ---


def path_of(space: Space, ino: int) -> tuple[bytes, ...]:
    return space.reads.path(wire.GetPath(InodeNumber(ino))).names


def test_path_leads_from_the_root_to_the_inode(space: Space, bucket: InodeNumber) -> None:
    upper = space.mkdir(bucket, b"upper")
    file = space.make(upper, b"\xff file")
    assert path_of(space, ROOT_INODE) == ()
    assert path_of(space, bucket) == (b"bucket",)
    assert path_of(space, file) == (b"bucket", b"upper", b"\xff file")


def test_path_of_a_file_with_several_names_is_in_the_bucket_it_belongs_to(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    name = path_of(space, file)[-1]
    other = space.bucket(b"another")
    space.link(file, other, b"a")
    space.link(file, bucket, b"0")
    assert path_of(space, file) == (b"bucket", b"0")
    space.unlink(bucket, b"0")
    space.unlink(bucket, name)
    assert path_of(space, file) == (b"another", b"a")


def test_an_inode_without_a_name_has_no_path(space: Space, bucket: InodeNumber) -> None:
    upper = space.mkdir(bucket, b"upper")
    space.rmdir(bucket, b"upper", sustain=True)
    with pytest.raises(MictlanError) as raised:
        path_of(space, upper)
    assert raised.value.kind is Kind.NOT_FOUND


def test_a_path_of_too_many_names_is_refused(space: Space, bucket: InodeNumber) -> None:
    here = bucket
    for _ in range(wire.RESOLVE_DEPTH_MAX - 1):
        here = space.mkdir(here, b"d")
    assert len(path_of(space, here)) == wire.RESOLVE_DEPTH_MAX
    deeper = space.mkdir(here, b"d")
    with pytest.raises(MictlanError) as raised:
        path_of(space, deeper)
    assert raised.value.kind is Kind.NAME_TOO_LONG


# --- resolve ---


def test_resolve_walks_as_far_as_names_exist(
    space: Space, bucket: InodeNumber, file: InodeNumber
) -> None:
    def walk(*names: bytes) -> list[int]:
        nodes = space.reads.resolve(wire.Resolve(names, 4)).nodes
        return [node.attributes.ino for node in nodes]

    assert walk() == [ROOT_INODE]
    assert walk(b"bucket", b"file") == [ROOT_INODE, bucket, file]
    assert walk(b"bucket", b"none", b"x") == [ROOT_INODE, bucket]
    assert walk(b"bucket", b"file", b"x") == [ROOT_INODE, bucket, file]
    assert walk(b"bucket", b"..") == [ROOT_INODE, bucket]
    assert walk(b"n" * 5000) == [ROOT_INODE]


def test_resolve_does_not_follow_symlinks(space: Space, bucket: InodeNumber) -> None:
    link = space.make(bucket, b"link", FileKind.SYMLINK, b".")
    nodes = space.reads.resolve(wire.Resolve((b"bucket", b"link", b"link"))).nodes
    assert [node.attributes.ino for node in nodes] == [ROOT_INODE, bucket, link]
    assert nodes[-1].target == b"."


def test_resolve_refuses_a_path_too_deep(space: Space) -> None:
    assert space.reads.resolve(wire.Resolve((b"x",) * wire.RESOLVE_DEPTH_MAX)).nodes
    with pytest.raises(MictlanError) as raised:
        space.reads.resolve(wire.Resolve((b"x",) * (wire.RESOLVE_DEPTH_MAX + 1)))
    assert raised.value.kind is Kind.NAME_TOO_LONG


# --- extents ---


def pages(space: Space, ino: InodeNumber, offset: int, count_max: int) -> list[list[int]]:
    """Offsets of the extents of each page, following `end`."""
    found, start = [], offset
    while True:
        page = space.reads.extents(wire.GetExtents(ino, start, count_max))
        named = {extent.chunk_id for extent in page.extents}
        assert {chunk.id for chunk in page.chunks} == named
        found.append([extent.offset for extent in page.extents])
        if page.end is None:
            return found
        start = page.end


def test_pages_of_extents_follow_each_other(space: Space, file: InodeNumber) -> None:
    write_many(space, file, 5)
    assert pages(space, file, 0, 2) == [[0, 2], [4, 6], [8]]
    assert pages(space, file, 0, 5) == [[0, 2, 4, 6, 8]]
    assert pages(space, file, 3, 256) == [[4, 6, 8]]
    assert pages(space, file, 100, 2) == [[]]


def test_page_begins_with_the_extent_that_holds_its_offset(space: Space, file: InodeNumber) -> None:
    space.write(file, 0, new_chunk(100))
    space.write(file, 100, new_chunk(100))
    assert pages(space, file, 99, 9) == [[0, 100]]
    assert pages(space, file, 100, 9) == [[100]]
    assert pages(space, file, 199, 9) == [[100]]
    assert pages(space, file, 200, 9) == [[]]


@pytest.mark.parametrize(("offset", "count"), [(-1, 2), (2**70, 0)])
def test_offset_out_of_range_is_taken_as_the_nearest(
    space: Space, file: InodeNumber, offset: int, count: int
) -> None:
    write_many(space, file, 2)
    assert sum(map(len, pages(space, file, offset, 5))) == count


@pytest.mark.parametrize("count_max", [0, -3])
def test_page_makes_progress_however_little_is_asked(
    space: Space, file: InodeNumber, count_max: int
) -> None:
    write_many(space, file, 3)
    assert pages(space, file, 0, count_max) == [[0], [2], [4]]


def test_page_tells_the_version_of_the_content(space: Space, file: InodeNumber) -> None:
    page = space.reads.extents(wire.GetExtents(file, 0))
    space.write(file, 0, new_chunk())
    later = space.reads.extents(wire.GetExtents(file, 0))
    assert page.content_version < later.content_version
    assert later.content_version == space.attributes(file).content_version


# --- directories ---


def test_pages_of_a_directory_are_in_order_of_bytes(space: Space, bucket: InodeNumber) -> None:
    names = [b"a", b"B", b"\xff", b"aa", b"z", b"\x01"]
    for name in names:
        space.make(bucket, name)
    seen: list[bytes] = []
    while True:
        page = list_page(space, bucket, seen[-1] if seen else b"", 4)
        seen += [entry.name for entry in page.entries]
        if page.is_last:
            break
        assert len(page.entries) == 4
    assert seen == sorted(names)


def test_page_that_fills_exactly_is_the_last(space: Space, bucket: InodeNumber) -> None:
    for name in (b"a", b"b"):
        space.make(bucket, name)
    assert list_page(space, bucket, entries_max=2).is_last
    assert not list_page(space, bucket, entries_max=1).is_last


def test_page_tells_of_the_directory_and_its_parent(space: Space, bucket: InodeNumber) -> None:
    directory = space.mkdir(bucket, b"directory")
    page = list_page(space, directory)
    assert (page.entries, page.is_last) == ((), True)
    assert (page.directory, page.parent) == (space.attributes(directory), bucket)
    assert list_page(space, ROOT_INODE).parent == ROOT_INODE


def test_entries_are_the_nodes_that_lookup_gives(space: Space, bucket: InodeNumber) -> None:
    space.mkdir(bucket, b"directory")
    space.make(bucket, b"link", FileKind.SYMLINK, b"target")
    for count in (0, 1, 3, 7):
        write_many(space, space.make(bucket, b"file%d" % count), count)
    for extents_max in (0, 2, 3, 256):
        page = list_page(space, bucket, extents_max=extents_max)
        expected = {
            entry.name: space.reads.lookup(wire.Lookup(bucket, entry.name, extents_max))
            for entry in page.entries
        }
        assert {entry.name: entry.node for entry in page.entries} == expected
        assert len(expected) == 6


def test_two_names_of_one_file_on_a_page_both_have_its_content(
    space: Space, bucket: InodeNumber
) -> None:
    file = space.make(bucket, b"one")
    space.link(file, bucket, b"two")
    write_many(space, file, 3)
    one, two = list_page(space, bucket, extents_max=9).entries
    assert one.node == two.node
    assert len(one.node.extents) == 3
    assert [len(chunk.peers) for chunk in one.node.chunks] == [2, 2, 2]


def test_extents_of_a_page_are_bounded_altogether(
    space: Space, bucket: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_reads, "PAGE_EXTENTS_MAX", 5)
    for name in (b"a", b"b", b"c"):
        write_many(space, space.make(bucket, name), 3)
    nodes = [entry.node for entry in list_page(space, bucket, extents_max=256).entries]
    assert [len(node.extents) for node in nodes] == [3, 2, 0]
    assert [node.has_all_extents for node in nodes] == [True, False, False]
    assert [extent.offset for extent in nodes[1].extents] == [0, 2]


def test_page_of_the_root_shows_each_bucket_with_its_own_policy(space: Space) -> None:
    for replicas in (1, 3):
        ino = space.bucket(b"b%d" % replicas)
        space.do(wire.SetBucketPolicy(ino, BucketPolicy(replicas=replicas), 1))
    policies = {entry.name: entry.node.policy for entry in list_page(space, ROOT_INODE).entries}
    assert policies == {b"b1": BucketPolicy(replicas=1), b"b3": BucketPolicy(replicas=3)}


def test_linked_file_shows_one_policy_in_both_buckets(space: Space, bucket: InodeNumber) -> None:
    other = space.bucket(b"other")
    space.do(wire.SetBucketPolicy(other, BucketPolicy(replicas=4), 1))
    file = space.make(bucket, b"file")
    space.link(file, other, b"file")
    seen = {list_page(space, ino).entries[0].node.policy for ino in (bucket, other)}
    assert seen == {space.node(file).policy}


def test_list_needs_a_directory(space: Space, file: InodeNumber) -> None:
    with pytest.raises(MictlanError) as raised:
        list_page(space, file)
    assert raised.value.kind is Kind.NOT_DIRECTORY


def test_buckets_are_in_order_of_names(space: Space) -> None:
    for name in (b"b", b"a", b"c"):
        space.bucket(name)
    assert [info.name for info in space.reads.buckets().buckets] == [b"a", b"b", b"c"]


# --- the rest ---


def test_cache_of_policies_stays_bounded(
    space: Space, bucket: InodeNumber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_reads, "POLICY_CACHE_COUNT_MAX", 4)
    directories = [space.mkdir(bucket, b"%d" % number) for number in range(20)]
    assert {space.node(ino).policy for ino in directories} == {BucketPolicy()}
    assert len(space.reads._policies) <= 5


def test_policy_is_cached_until_it_is_forgotten(space: Space, bucket: InodeNumber) -> None:
    assert space.node(bucket).policy == BucketPolicy()
    space.rows.set_policy(bucket, BucketPolicy(replicas=5))
    assert space.node(bucket).policy == BucketPolicy()
    space.reads.forget_policies()
    assert space.node(bucket).policy == BucketPolicy(replicas=5)


def test_garbage_is_seen_until_it_is_reclaimed(space: Space, bucket: InodeNumber) -> None:
    assert not space.reads.has_garbage(0)
    file = space.make(bucket, b"file")
    write_many(space, file, 100)
    space.unlink(bucket, b"file")
    assert space.reads.has_garbage(0)
    while space.reclaim():
        pass
    assert not space.reads.has_garbage(0)
    space.rows.end_session(space.open_session("second"))
    assert space.reads.has_garbage(0)


def test_counts_follow_what_is_made_and_removed(space: Space, bucket: InodeNumber) -> None:
    empty = space.reads.counts()
    assert (empty.buckets, empty.inodes) == (1, 2)
    file = space.make(bucket, b"file")
    space.write(file, 0, new_chunk(10))
    full = space.reads.counts()
    assert (full.inodes, full.chunks, full.tombstones, full.bytes_logical) == (3, 1, 0, 10)
    space.unlink(bucket, b"file")
    gone = space.reads.counts()
    assert (gone.inodes, gone.chunks, gone.tombstones, gone.bytes_logical) == (2, 0, 1, 0)
