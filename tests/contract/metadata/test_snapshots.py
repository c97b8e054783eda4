"""What a metadata store promises of snapshots and of the trash, through its own methods."""

from __future__ import annotations

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import BucketPolicy, Extent, FileKind, InodeNumber
from mictlanfs.snapshotnumbers import is_unchangeable, snapshots_directory
from mictlanfs_server.metadata.base import CopyPlace, MetadataStore, SnapshotPlan
from tests.contract.metadata.forms import Client, Form, kind_of, new_chunk

DIRECTORY = FileKind.DIRECTORY
NAMES_MAX = 1000


async def take(
    store: MetadataStore,
    bucket: InodeNumber,
    root: InodeNumber,
    name: bytes = b"monday",
    slice_max: int = 1000,
) -> None:
    """Take a snapshot of what nobody changes meanwhile."""
    plan = SnapshotPlan(bucket, root, name, b"bucket")
    number = await store.begin_snapshot(plan)
    tree = await store.snapshot_tree(root, NAMES_MAX)
    place: CopyPlace | None = CopyPlace()
    while place is not None:
        place = await store.copy_names(number, tree, place, slice_max)
    after: tuple[InodeNumber, int] | None = (InodeNumber(0), -1)
    while after is not None:
        after = await store.copy_extents(number, after, slice_max)
    await store.publish_snapshot(number, plan, tree)


async def remove(store: MetadataStore, name: bytes = b"monday") -> None:
    record = await store.snapshot(b"bucket", name)
    assert record is not None
    await store.drop_snapshot(record.number)


async def reclaim(store: MetadataStore, count_max: int = 7) -> None:
    while await store.reclaim(count_max):
        pass


async def names_of(store: MetadataStore, ino: InodeNumber) -> dict[bytes, InodeNumber]:
    page = await store.list_directory(wire.ListDirectory(ino))
    return {entry.name: entry.node.attributes.ino for entry in page.entries}


async def found(store: MetadataStore, *path: bytes) -> InodeNumber:
    nodes = (await store.resolve(wire.Resolve(path))).nodes
    assert len(nodes) == len(path) + 1
    return nodes[-1].attributes.ino


async def tree_of(store: MetadataStore, ino: InodeNumber) -> dict[bytes, object]:
    """All below a directory as programs see it: names, attributes, content, attributes more."""
    seen: dict[bytes, object] = {}
    for name, below in (await names_of(store, ino)).items():
        node = await store.node(wire.GetNode(below, 256))
        attributes = node.attributes
        seen[name] = (
            *(attributes.kind, attributes.mode, attributes.size, attributes.nlink),
            *(attributes.mtime_ns, attributes.ctime_ns, node.target, node.extents, node.chunks),
            (await store.xattrs(wire.GetXattrs(below))).values,
            await tree_of(store, below) if attributes.kind is DIRECTORY else None,
        )
    return seen


async def filled(client: Client) -> InodeNumber:
    """A bucket with some of everything in it."""
    bucket = await client.bucket()
    directory = await client.make(bucket, b"d", DIRECTORY)
    deep = await client.make(directory, b"deep", DIRECTORY)
    for index in range(5):
        file = await client.make(deep, b"%d" % index)
        await client.write(file, *(new_chunk(10) for _ in range(index)))
    shared = await client.make(directory, b"shared")
    await client.write(shared, new_chunk(10))
    await client.do(wire.Link(shared, bucket, b"linked", 7))
    await client.do(wire.SetXattr(shared, b"user.a", b"b", 7))
    await client.do(wire.SetXattr(directory, b"user.c", b"d", 7))
    await client.do(
        wire.MakeNode(
            bucket, b"symlink", client.new_inode(), FileKind.SYMLINK, 0o777, 0, 0, 5, 0, b"target"
        )
    )
    return bucket


@pytest.mark.parametrize("slice_max", [1, 3, 1000])
def test_snapshot_stays_as_it_was_whatever_is_done_to_the_bucket(
    form: Form, slice_max: int
) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await filled(client)
        counts = await store.counts()
        before = await tree_of(store, bucket)
        await take(store, bucket, bucket, slice_max=slice_max)
        root = await found(store, b"bucket", b".snapshots", b"monday")
        assert await tree_of(store, root) == before
        after = await store.counts()
        assert (after.snapshots, after.inodes, after.bytes_logical, after.chunks) == (
            *(1, counts.inodes, counts.bytes_logical, counts.chunks),
        )
        directory = await found(store, b"bucket", b"d")
        deep = await found(store, b"bucket", b"d", b"deep")
        await client.do(
            wire.SetAttributes(await found(store, b"bucket", b"linked"), 9, size=0),
            wire.Rename(directory, b"deep", bucket, b"moved", 9),
            *(wire.Unlink(deep, b"%d" % index, 9) for index in range(5)),
            wire.SetXattr(directory, b"user.c", b"changed", 9),
        )
        await reclaim(store)
        assert await tree_of(store, root) == before
        assert await tree_of(store, bucket) != before

    form.run(scenario)


def test_snapshots_are_found_by_name_and_listed_only_in_their_directory(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await filled(client)
        top = await found(store, b"bucket", b".snapshots")
        assert top == snapshots_directory(bucket)
        assert await names_of(store, top) == {}
        version = (await client.node(top)).attributes.version
        await take(store, bucket, await found(store, b"bucket", b"d"), b"of d")
        await take(store, bucket, bucket, b"all")
        attributes = (await client.node(top)).attributes
        assert (attributes.kind, attributes.mode, attributes.size, attributes.nlink) == (
            *(DIRECTORY, 0o555, 2, 4),
        )
        assert attributes.version > version
        assert set(await names_of(store, top)) == {b"of d", b"all"}
        assert b".snapshots" not in await names_of(store, bucket)
        of_d = await found(store, b"bucket", b".snapshots", b"of d")
        assert set(await names_of(store, of_d)) == {b"deep", b"shared"}
        # Of the two names that the file has, one is in the snapshot.
        shared = await found(store, b"bucket", b".snapshots", b"of d", b"shared")
        assert (await client.node(shared)).attributes.nlink == 1
        dots = await store.lookup(wire.Lookup(of_d, b".."))
        assert dots.attributes.ino == top
        path = await store.path(wire.GetPath(shared))
        assert path.names == (b"bucket", b".snapshots", b"of d", b"shared")
        assert (await store.bucket_use(wire.GetBucketUse(shared))).bucket == bucket
        tree = await store.list_tree(wire.ListTree((top,)), lambda _: True)
        assert [listing.ino for listing in tree.listings][:2] == [
            *(top, await found(store, b"bucket", b".snapshots", b"all")),
        ]
        for elsewhere in (await found(store, b"bucket", b"d"), InodeNumber(1), of_d):
            missing = store.lookup(wire.Lookup(elsewhere, b".snapshots"))
            assert await kind_of(missing) is Kind.NOT_FOUND
        infos = (await store.snapshots(wire.ListSnapshots(b"bucket"))).snapshots
        assert [(info.name, info.names) for info in infos] == [(b"all", 11), (b"of d", 8)]
        assert infos == (await store.snapshots(wire.ListSnapshots())).snapshots
        assert await kind_of(store.snapshots(wire.ListSnapshots(b"no"))) is Kind.NOT_FOUND

    form.run(scenario)


def test_nothing_in_a_snapshot_can_be_changed(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await filled(client)
        await take(store, bucket, bucket)
        top = await found(store, b"bucket", b".snapshots")
        root = await found(store, b"bucket", b".snapshots", b"monday")
        file = await found(store, b"bucket", b".snapshots", b"monday", b"linked")
        assert all(map(is_unchangeable, (top, root, file)))
        chunk = new_chunk(10)
        ops: list[wire.Operation] = [
            *(client.make_op(parent, b"new") for parent in (top, root)),
            wire.Unlink(root, b"linked", 9),
            wire.RemoveDirectory(top, b"monday", 9),
            wire.Rename(root, b"linked", bucket, b"x", 9),
            wire.Rename(bucket, b"linked", root, b"x", 9),
            wire.Link(file, bucket, b"x", 9),
            wire.Link(await found(store, b"bucket", b"linked"), root, b"x", 9),
            wire.SetAttributes(file, 9, mode=0),
            wire.SetXattr(file, b"user.a", b"", 9),
            wire.RemoveXattr(file, b"user.a", 9),
            wire.WriteExtents(file, (Extent(0, 10, chunk.id, 0),), (chunk,), 0, 9),
            wire.SetRecord(file, 0, ()),
            wire.SetBucketPolicy(top, BucketPolicy(), 9),
        ]
        for op in ops:
            assert await kind_of(client.do(op)) is Kind.READ_ONLY, op
        for parent, name in ((bucket, b"x"), (bucket, b"linked")):
            made = client.make_op(parent, b".snapshots", DIRECTORY)
            assert await kind_of(client.do(made)) is Kind.EXISTS
            moved = wire.Rename(bucket, b"linked", parent, b".snapshots", 9)
            assert await kind_of(client.do(moved)) is Kind.EXISTS, name
        # Below a bucket it is a name like others.
        await client.make(await found(store, b"bucket", b"d"), b".snapshots", DIRECTORY)

    form.run(scenario)


def test_removed_snapshot_is_gone_at_once_and_what_only_it_held_soon(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await filled(client)
        chunks = (await store.counts()).chunks
        await take(store, bucket, bucket)
        await take(store, bucket, bucket, b"tuesday")
        deep = await found(store, b"bucket", b"d", b"deep")
        file = await found(store, b"bucket", b".snapshots", b"monday", b"d", b"deep", b"4")
        await client.do(*(wire.Unlink(deep, b"%d" % index, 9) for index in range(5)))
        assert (await store.counts()).chunks == chunks
        await remove(store)
        top = await found(store, b"bucket", b".snapshots")
        assert set(await names_of(store, top)) == {b"tuesday"}
        await reclaim(store)
        assert not await client.exists(file)
        assert (await store.counts()).chunks == chunks
        await remove(store, b"tuesday")
        await reclaim(store)
        # Four files had 1 + 2 + 3 + 4 chunks, nobody else names them.
        assert (await store.counts()).chunks == chunks - 10
        assert (await store.counts()).snapshots == 0
        await take(store, bucket, bucket)

    form.run(scenario)


def test_name_is_taken_from_the_first_step_to_the_last(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        plan = SnapshotPlan(bucket, bucket, b"monday", b"bucket")
        number = await store.begin_snapshot(plan)
        assert await kind_of(store.begin_snapshot(plan)) is Kind.EXISTS
        assert await store.snapshot(b"bucket", b"monday") is None
        removed = client.do(wire.RemoveDirectory(InodeNumber(1), b"bucket", 9))
        assert await kind_of(removed) is Kind.NOT_EMPTY
        await store.drop_snapshot(number)
        await store.drop_snapshot(number)
        await take(store, bucket, bucket)
        assert await kind_of(store.begin_snapshot(plan)) is Kind.EXISTS
        removed = client.do(wire.RemoveDirectory(InodeNumber(1), b"bucket", 9))
        assert await kind_of(removed) is Kind.NOT_EMPTY
        other = await client.bucket(b"other")
        assert (
            await kind_of(
                client.do(wire.Rename(InodeNumber(1), b"other", InodeNumber(1), b"bucket", 9))
            )
            is Kind.NOT_EMPTY
        )
        await remove(store)
        await client.do(wire.RemoveDirectory(InodeNumber(1), b"bucket", 9))
        missing = SnapshotPlan(bucket, bucket, b"monday", b"bucket")
        assert await kind_of(store.begin_snapshot(missing)) is Kind.NOT_FOUND
        assert await kind_of(store.snapshot_tree(bucket, NAMES_MAX)) is Kind.NOT_FOUND
        await client.make(other, b"a")
        await client.make(other, b"b")
        assert await kind_of(store.snapshot_tree(other, 1)) is Kind.TOO_LARGE
        assert (await store.snapshot_tree(other, 2)).names == 3

    form.run(scenario)


def test_unfinished_snapshot_is_let_go_after_a_restart(form: Form) -> None:
    async def before(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await filled(client)
        number = await store.begin_snapshot(SnapshotPlan(bucket, bucket, b"monday", b"bucket"))
        tree = await store.snapshot_tree(bucket, NAMES_MAX)
        place: CopyPlace | None = CopyPlace()
        while place is not None:
            place = await store.copy_names(number, tree, place, 1000)
        assert await store.copy_extents(number, (InodeNumber(0), -1), 3) is not None

    async def after(store: MetadataStore) -> None:
        assert await store.drop_unfinished_snapshots() == 1
        assert await store.drop_unfinished_snapshots() == 0
        chunks = (await store.counts()).chunks
        await reclaim(store)
        assert (await store.counts()).chunks == chunks
        bucket = await found(store, b"bucket")
        before = await tree_of(store, bucket)
        await take(store, bucket, bucket)
        root = await found(store, b"bucket", b".snapshots", b"monday")
        assert await tree_of(store, root) == before

    form.run(before)
    form.run(after)


def test_trash_is_listed_given_up_and_let_go_by_its_time(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        await client.do(wire.SetBucketPolicy(bucket, BucketPolicy(trash_days=1), 5))
        for name in (b"a", b"b", b"c"):
            file = await client.make(bucket, name)
            await client.write(file, new_chunk(10))
            await client.do(wire.Unlink(bucket, name, 6))
        counts = await store.counts()
        assert (counts.trash_items, counts.trash_bytes, counts.bytes_logical) == (3, 30, 0)
        page = await store.trash(wire.ListTrash(count_max=2))
        assert ([item.path for item in page.items], page.is_last) == (
            *([b"bucket/a", b"bucket/b"], False),
        )
        last = page.items[-1]
        page = await store.trash(wire.ListTrash(after=(last.path, last.removed_ns, last.ino)))
        assert ([item.path for item in page.items], page.is_last) == ([b"bucket/c"], True)
        emptied = await store.empty_trash(wire.EmptyTrash(b"bucket/b", 2**63 - 1))
        assert emptied == wire.Emptied(1, 10, is_last=True)
        await reclaim(store)
        assert (await store.counts()).trash_items == 2
        form.now_ns += 25 * 3600 * 10**9
        await reclaim(store)
        counts = await store.counts()
        assert (counts.trash_items, counts.trash_bytes, counts.chunks) == (0, 0, 0)

    form.run(scenario)
