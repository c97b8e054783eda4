"""What a metadata store promises of copies: dropped, adopted, damaged, compared."""

from mictlanfs.errors import Kind
from mictlanfs.model import ChunkId
from mictlanfs.wirepeers import FrameChunk
from mictlanfs_server.metadata.base import MetadataStore
from mictlanfs_server.metadata.truth import DamagedChunk, Standing
from tests.contract.metadata.forms import PEERS, Client, Form, kind_of, new_chunk

NOBODY = ChunkId(bytes(16))


def framed(chunk: object) -> FrameChunk:
    return FrameChunk(chunk.id, chunk.length, chunk.digest)  # type: ignore[attr-defined]


def test_rows_are_dropped_but_never_the_last_one(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        chunk, other = new_chunk(10), new_chunk(20)
        await client.write(file, chunk, other)
        one, two = chunk.peers
        assert await store.drop_replicas({chunk.id: [one], NOBODY: [one]}) == []
        # Twice is once, and a peer that has no copy matters nothing.
        assert await store.drop_replicas({chunk.id: [one, PEERS[2]]}) == []
        assert [c.peers for c in (await client.node(file)).chunks] == [(two,), (one, two)]
        assert await store.drop_replicas({chunk.id: [two]}) == [chunk.id]
        assert await store.drop_replicas({other.id: [one, two]}) == [other.id]
        assert [len(c.peers) for c in (await client.node(file)).chunks] == [1, 1]

    form.run(scenario)


def test_rows_of_dead_chunks_are_the_collectors(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        chunk = new_chunk(10)
        await client.write(file, chunk)
        await client.write(file, new_chunk(10))
        assert await store.drop_replicas({chunk.id: list(chunk.peers)}) == []
        form.now_ns += 10**12
        [dead] = await store.dead_chunks(form.now_ns, None, 9)
        assert dead.peers == chunk.peers
        assert await store.truth.named(chunk.peers[0], [chunk.id]) == []

    form.run(scenario)


def test_a_damaged_chunk_is_named_with_the_files_that_need_it(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        files = [await client.make(bucket, name) for name in (b"b", b"a")]
        chunk = new_chunk(10)
        for file in files:
            await client.write(file, chunk)
        assert await store.truth.damaged(9, 9) == []
        await store.truth.note_damaged(PEERS[0], [chunk.id, NOBODY])
        await store.truth.note_damaged(PEERS[0], [chunk.id])
        paths = ((b"bucket", b"b"), (b"bucket", b"a"))
        expected = DamagedChunk(framed(chunk), (PEERS[0],), paths)
        assert await store.truth.damaged(9, 9) == [expected]
        assert (await store.truth.damaged(9, 1))[0].paths == paths[:1]
        # Nobody needs it any more.
        for file in files:
            await client.write(file, new_chunk(10))
        assert await store.truth.damaged(9, 9) == []

    form.run(scenario)


def test_a_chunk_with_a_good_copy_is_not_damaged_any_more(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        chunk, other = new_chunk(10), new_chunk(20)
        await client.write(file, chunk, other)
        await store.truth.note_damaged(PEERS[0], [chunk.id, other.id])
        await store.truth.forget_damaged([chunk.id])
        assert [one.chunk.id for one in await store.truth.damaged(9, 9)] == [other.id]

    form.run(scenario)


def test_the_chunks_of_a_peer_come_in_pages_in_order(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        chunks = [new_chunk(10 + n) for n in range(5)]
        elsewhere = new_chunk(3, PEERS[2:])
        await client.write(file, *chunks, elsewhere)
        expected = sorted((framed(chunk) for chunk in chunks), key=lambda chunk: chunk.id)
        truth = store.truth
        assert await truth.on_peer(PEERS[0], NOBODY, None, 99) == expected
        assert await truth.on_peer(PEERS[0], NOBODY, None, 2) == expected[:2]
        after, until = expected[1].id, expected[3].id
        assert await truth.on_peer(PEERS[0], after, until, 99) == expected[2:4]
        assert await truth.on_peer(PEERS[2], NOBODY, None, 99) == [framed(elsewhere)]
        ids = [expected[0].id, NOBODY, elsewhere.id]
        assert await truth.named(PEERS[0], ids) == expected[:1]

    form.run(scenario)


def test_an_orphan_that_is_adopted_is_dead_for_ever(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        orphan = new_chunk(10, PEERS[:1])
        standing = store.truth.standing
        assert await standing(PEERS[0], [orphan.id]) == [Standing.ORPHAN]
        assert await store.truth.adopt(PEERS[0], [framed(orphan)]) == 1
        assert await store.truth.adopt(PEERS[0], [framed(orphan)]) == 0
        assert await standing(PEERS[0], [orphan.id]) == [Standing.NAMED]
        assert await standing(PEERS[1], [orphan.id]) == [Standing.LEFT]
        assert (await store.counts()).tombstones == 1
        assert await kind_of(client.write(file, orphan)) is Kind.NO_DATA
        form.now_ns += 10**12
        [dead] = await store.dead_chunks(form.now_ns, None, 9)
        assert dead.peers == PEERS[:1]
        # When its last copy is gone nothing is left of it, but that it may not come back.
        await store.forget_replicas({orphan.id: [PEERS[0]]})
        assert (await store.counts()).tombstones == 0
        assert await kind_of(client.write(file, orphan)) is Kind.NO_DATA
        await client.write(file, new_chunk(10))

    form.run(scenario)


def test_a_chunk_whose_commit_came_first_is_no_orphan(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        chunk = new_chunk(10, PEERS[:1])
        # The inventory was read before this commit, and is acted upon behind it.
        await client.write(file, chunk)
        assert await store.truth.adopt(PEERS[0], [framed(chunk)]) == 0
        assert await store.truth.standing(PEERS[0], [chunk.id]) == [Standing.NAMED]
        assert (await store.counts()).tombstones == 0

    form.run(scenario)


def test_a_copy_without_a_row_gets_one(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        chunk = new_chunk(10, PEERS[:1])
        await client.write(file, chunk)
        assert await store.truth.standing(PEERS[1], [chunk.id]) == [Standing.SURPLUS]
        other = FrameChunk(chunk.id, chunk.length, b"x" * 32)
        assert await store.truth.adopt(PEERS[1], [other]) == 0
        assert await store.truth.adopt(PEERS[1], [framed(chunk)]) == 1
        assert (await client.node(file)).chunks[0].peers == PEERS[:2]

    form.run(scenario)


def test_a_sound_space_has_no_damage(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        file = await client.make(await client.bucket(), b"file")
        await client.write(file, new_chunk(10))
        await store.truth.adopt(PEERS[0], [framed(new_chunk(10))])
        assert await store.truth.find_damage(deep=False) == []
        assert await store.truth.find_damage(deep=True) == []

    form.run(scenario)
