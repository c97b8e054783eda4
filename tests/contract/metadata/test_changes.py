"""What a metadata store promises of changes: batches, sessions, numbers, durability across opens.

The rules of each operation are the same code for every form and are tested with it.
"""

import asyncio

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import ROOT_INODE, BucketPolicy, FileKind, InodeNumber, SessionId
from mictlanfs_server.metadata.base import MetadataStore
from tests.contract.metadata.forms import Client, Form, kind_of, new_chunk


async def names(store: MetadataStore, ino: InodeNumber) -> list[bytes]:
    page = await store.list_directory(wire.ListDirectory(ino))
    return [entry.name for entry in page.entries]


def test_space_keeps_its_name(form: Form) -> None:
    async def scenario(store: MetadataStore) -> str:
        return store.space_id

    first = form.run(scenario)
    assert first
    assert form.run(scenario) == first


@pytest.mark.parametrize("sync", [False, True])
def test_change_is_seen_at_once_and_after_opening_again(form: Form, sync: bool) -> None:
    async def change(store: MetadataStore) -> InodeNumber:
        client = await Client.open(store)
        op = client.make_op(ROOT_INODE, b"bucket", FileKind.DIRECTORY)
        await client.do(op, sync=sync)
        node = await store.lookup(wire.Lookup(ROOT_INODE, b"bucket"))
        assert node.attributes.ino == op.ino
        return op.ino

    async def look(store: MetadataStore) -> InodeNumber:
        return (await store.lookup(wire.Lookup(ROOT_INODE, b"bucket"))).attributes.ino

    assert form.run(change) == form.run(look)


def test_repeated_batch_is_answered_from_its_record_also_after_opening_again(form: Form) -> None:
    async def change(store: MetadataStore) -> tuple[wire.Commit, bytes]:
        client = await Client.open(store)
        bucket = await client.bucket()
        batch = client.batch(client.make_op(bucket, b"a"), wire.Unlink(bucket, b"none", 1))
        first = await store.commit(batch)
        assert await store.commit(batch) == first
        return batch, first

    batch, first = form.run(change)

    async def again(store: MetadataStore) -> bytes:
        return await store.commit(batch)

    assert form.run(again) == first


def test_session_goes_on_after_opening_again(form: Form) -> None:
    async def change(store: MetadataStore) -> Client:
        client = await Client.open(store)
        await client.bucket()
        return client

    client = form.run(change)

    async def go_on(store: MetadataStore) -> None:
        client.store = store
        (record,) = await store.sessions()
        assert record == client.session
        await client.bucket(b"second")
        client.next_number += 1
        assert await kind_of(client.bucket(b"third")) is Kind.CONFLICT

    form.run(go_on)


def test_sessions_do_not_know_each_other_s_numbers(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        one, two = await Client.open(store), await Client.open(store)
        assert one.session.session != two.session.session
        assert one.session.epoch < two.session.epoch
        bucket = await one.bucket()
        await asyncio.gather(*(c.make(bucket, n) for c, n in ((one, b"1"), (two, b"2"))))
        assert await names(store, bucket) == [b"1", b"2"]

    form.run(scenario)


def test_closed_session_is_fenced_for_ever(form: Form) -> None:
    async def close(store: MetadataStore) -> wire.Commit:
        client = await Client.open(store)
        await store.close_session(client.session.session)
        await store.close_session(client.session.session)
        assert await store.sessions() == []
        batch = client.batch(client.make_op(ROOT_INODE, b"x", FileKind.DIRECTORY))
        assert await kind_of(store.commit(batch)) is Kind.FENCED
        return batch

    batch = form.run(close)

    async def again(store: MetadataStore) -> None:
        assert await kind_of(store.commit(batch)) is Kind.FENCED
        assert await names(store, ROOT_INODE) == []
        # A session with the old name cannot come back: epochs only grow.
        assert (await Client.open(store)).session.epoch > batch.epoch

    form.run(again)


def test_old_epoch_is_fenced(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        for epoch in (client.session.epoch - 1, client.session.epoch + 1):
            batch = wire.Commit(client.session.session, epoch, 1, (), False)
            assert await kind_of(store.commit(batch)) is Kind.FENCED
        unknown = wire.Commit(SessionId("unknown"), client.session.epoch, 1, (), False)
        assert await kind_of(store.commit(unknown)) is Kind.FENCED

    form.run(scenario)


def test_batch_too_large_is_invalid(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        release = wire.Release(InodeNumber(5))
        too_many = client.batch(*[release] * (wire.BATCH_OPS_MAX + 1))
        assert await kind_of(store.commit(too_many)) is Kind.INVALID

    form.run(scenario)


def test_inode_numbers_are_never_handed_out_twice(form: Form) -> None:
    async def take(store: MetadataStore) -> list[int]:
        ranges = await asyncio.gather(*(store.take_inodes(count) for count in (1, 100, 7)))
        return [n for taken in ranges for n in range(taken.first, taken.first + taken.count)]

    taken = form.run(take) + form.run(take)
    assert len(set(taken)) == len(taken) == 216
    assert ROOT_INODE not in taken

    async def refuse(store: MetadataStore) -> Kind | None:
        return await kind_of(store.take_inodes(0))

    assert form.run(refuse) is Kind.INVALID


def test_batches_sent_together_are_all_applied(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        clients = [await Client.open(store, f"{n}") for n in range(20)]
        bucket = await clients[0].bucket()
        await asyncio.gather(
            *(client.make(bucket, b"%02d" % n) for n, client in enumerate(clients))
        )
        assert await names(store, bucket) == [b"%02d" % n for n in range(20)]
        node = await clients[0].node(bucket)
        assert node.attributes.size == 20

    form.run(scenario)


def test_refused_batch_does_not_disturb_its_neighbours(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client, other = await Client.open(store), await Client.open(store)
        bucket = await client.bucket()
        bad = wire.Commit(other.session.session, -1, 1, (other.make_op(bucket, b"x"),), False)
        results = await asyncio.gather(
            client.make(bucket, b"a"), kind_of(store.commit(bad)), other.make(bucket, b"b")
        )
        assert results[1] is Kind.FENCED
        assert await names(store, bucket) == [b"a", b"b"]

    form.run(scenario)


def test_policy_is_seen_as_soon_as_it_or_the_tree_has_changed(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        one, two = await client.bucket(b"one"), await client.bucket(b"two")
        directory = await client.make(one, b"directory", FileKind.DIRECTORY)
        file = await client.make(directory, b"file")
        policy = BucketPolicy(replicas=3)
        assert (await client.node(file)).policy == BucketPolicy()
        await client.do(wire.SetBucketPolicy(one, policy, 1))
        assert (await client.node(file)).policy == policy
        await client.do(wire.Rename(one, b"directory", two, b"directory", 1))
        assert (await client.node(file)).policy == BucketPolicy()

    form.run(scenario)


def test_quota_holds_across_batches_and_opening_again(form: Form) -> None:
    async def fill(store: MetadataStore) -> InodeNumber:
        client = await Client.open(store)
        bucket = await client.bucket()
        await client.do(wire.SetBucketPolicy(bucket, BucketPolicy(quota=15), 1))
        await client.write(await client.make(bucket, b"one"), new_chunk(10))
        return bucket

    bucket = form.run(fill)

    async def go_on(store: MetadataStore) -> None:
        client = await Client.open(store)
        assert await store.bucket_use(wire.GetBucketUse(bucket)) == wire.BucketUse(bucket, 15, 10)
        two = await client.make(bucket, b"two")
        chunk = new_chunk(10)
        assert await kind_of(client.write(two, chunk)) is Kind.QUOTA_EXCEEDED
        await client.do(wire.Unlink(bucket, b"one", 1))
        await client.write(two, chunk)
        (info,) = (await store.buckets()).buckets
        assert (info.used, info.policy.quota) == (10, 15)

    form.run(go_on)


def test_what_a_session_sustains_survives_opening_again_but_not_the_session(form: Form) -> None:
    async def unlink(store: MetadataStore) -> tuple[Client, InodeNumber]:
        client = await Client.open(store)
        bucket = await client.bucket()
        file = await client.make(bucket, b"file")
        await client.do(wire.Unlink(bucket, b"file", 1, sustain=True))
        return client, file

    client, file = form.run(unlink)

    async def close(store: MetadataStore) -> None:
        client.store = store
        assert await client.exists(file)
        await store.close_session(client.session.session)
        while await store.reclaim(10):
            pass
        assert not await client.exists(file)

    form.run(close)


def test_named_file_is_sustained_when_others_remove_it(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        one, two = await Client.open(store), await Client.open(store)
        bucket = await one.bucket()
        removed, kept, gone = [await one.make(bucket, name) for name in (b"a", b"b", b"c")]
        await one.do(wire.Unlink(bucket, b"c", 1))
        session = two.session
        await store.sustain(session.session, session.epoch, (removed, kept, gone))
        await store.sustain(session.session, session.epoch, (removed,))
        await one.do(wire.Unlink(bucket, b"a", 2))
        assert (await one.node(removed)).attributes.nlink == 0
        await two.do(wire.Release(removed))
        assert not await one.exists(removed)
        # Nothing is left of what was noted of a file that kept its name.
        await two.do(wire.Release(kept))
        assert await one.exists(kept)
        await one.do(wire.Unlink(bucket, b"b", 3))
        assert not await one.exists(kept)
        work = store.sustain(session.session, session.epoch + 1, (removed,))
        assert await kind_of(work) is Kind.FENCED

    form.run(scenario)


def test_large_file_is_let_go_in_slices(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        file = await client.make(bucket, b"file")
        await client.write(file, *(new_chunk(1) for _ in range(200)))
        await client.do(wire.Unlink(bucket, b"file", 1))
        assert not await client.exists(file)
        slices = 0
        while await store.reclaim(50):
            slices += 1
        assert slices >= 4
        counts = await store.counts()
        assert (counts.chunks, counts.tombstones, counts.bytes_logical) == (0, 200, 0)

    form.run(scenario)
