"""What a metadata store promises of records, and of parts that become one file."""

import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import InodeNumber
from mictlanfs_server.metadata.base import MetadataStore
from tests.contract.metadata.forms import Client, Form, kind_of, new_chunk

MISSING = InodeNumber(9_999_999)
NO_RECORD = wire.FileRecord(0, ())
COUNT = 3


async def record_of(store: MetadataStore, ino: InodeNumber) -> wire.FileRecord:
    (record,) = (await store.records(wire.GetRecords((ino,)))).records
    return record


async def part_op(client: Client, parent: InodeNumber, index: int) -> wire.PutPart:
    """A new file of 10 bytes, and what makes it a part of the ball `x`."""
    name = b"x_%d" % index
    ino = await client.make(parent, name)
    await client.write(ino, new_chunk(10))
    ball = client.new_inode()
    return wire.PutPart(ino, parent, name, b"x", ball, index, COUNT, b"body %d" % index, 7)


async def names_of(store: MetadataStore, ino: InodeNumber) -> set[bytes]:
    page = await store.list_directory(wire.ListDirectory(ino))
    return {entry.name for entry in page.entries}


def test_record_is_read_until_its_file_has_other_content(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        await client.write(file, new_chunk(10))
        pieces = (wire.RecordPiece(4, b"one"), wire.RecordPiece(6, b"two"))
        (attributes,) = await client.do(wire.SetRecord(file, 0, pieces))
        assert await record_of(store, file) == wire.FileRecord(attributes.content_version, pieces)
        await client.write(file, new_chunk(10))
        assert await record_of(store, file) == NO_RECORD
        old = wire.SetRecord(file, attributes.content_version, pieces)
        assert await kind_of(client.do(old)) is Kind.CONFLICT
        assert await record_of(store, MISSING) == NO_RECORD
        many = wire.GetRecords((MISSING,) * (wire.RECORDS_COUNT_MAX + 1))
        assert await kind_of(store.records(many)) is Kind.INVALID

    form.run(scenario)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_last_part_makes_the_ball_whichever_it_is(form: Form, order: tuple[int, ...]) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        for index in order[:-1]:
            op = await part_op(client, bucket, index)
            await client.do(op)
            assert await record_of(store, op.ino) != NO_RECORD
        last = await part_op(client, bucket, order[-1])
        ball, _ = await client.do(last)
        assert await names_of(store, bucket) == {b"x"}
        assert (ball.ino, ball.size) == (last.ball_ino, 30)
        bodies = [piece.body for piece in (await record_of(store, ball.ino)).pieces]
        assert bodies == [b"body 0", b"body 1", b"body 2"]
        assert not await client.exists(last.ino)

    form.run(scenario)


def test_batch_with_the_last_part_is_answered_again_and_nothing_happens_twice(form: Form) -> None:
    async def before(store: MetadataStore) -> tuple[Client, wire.Commit, bytes]:
        client = await Client.open(store)
        bucket = await client.bucket()
        for index in range(COUNT - 1):
            await client.do(await part_op(client, bucket, index))
        last = await part_op(client, bucket, COUNT - 1)
        batch = client.batch(last, sync=True)
        return client, batch, await store.commit(batch)

    client, batch, answer = form.run(before)

    async def after(store: MetadataStore) -> None:
        counts = await store.counts()
        assert await store.commit(batch) == answer
        assert await store.counts() == counts
        (op,) = batch.ops
        assert isinstance(op, wire.PutPart)
        assert await names_of(store, op.parent) == {b"x"}
        assert len((await record_of(store, op.ball_ino)).pieces) == COUNT
        client.store, client.next_number = store, batch.first_number + 1
        await client.do(wire.Unlink(op.parent, b"x", 9))
        assert await record_of(store, op.ball_ino) == NO_RECORD

    form.run(after)


def test_parts_survive_opening_again(form: Form) -> None:
    async def first(store: MetadataStore) -> InodeNumber:
        client = await Client.open(store)
        bucket = await client.bucket()
        for index in range(COUNT - 1):
            await client.do(await part_op(client, bucket, index))
        return bucket

    bucket = form.run(first)

    async def second(store: MetadataStore) -> None:
        client = await Client.open(store)
        await client.do(await part_op(client, bucket, COUNT - 1))
        assert await names_of(store, bucket) == {b"x"}

    form.run(second)


def test_ball_whose_name_is_taken_is_refused_and_can_be_made_later(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        for index in range(COUNT - 1):
            await client.do(await part_op(client, bucket, index))
        await client.make(bucket, b"x")
        last = await part_op(client, bucket, COUNT - 1)
        assert await kind_of(client.do(last)) is Kind.EXISTS
        assert await names_of(store, bucket) == {b"x", b"x_0", b"x_1", b"x_2"}
        await client.do(wire.Unlink(bucket, b"x", 9))
        await client.do(last)
        assert await names_of(store, bucket) == {b"x"}

    form.run(scenario)
