"""Copies of chunks: who is short, who holds what, what is given up, peers that are gone."""

import msgspec

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind
from mictlanfs.model import BucketPolicy, Chunk, Extent, InodeNumber, PeerNumber
from mictlanfs_server.metadata.base import MetadataStore
from mictlanfs_server.metadata.copies import (
    ChunkCopies,
    CopiesAsked,
    CopiesPage,
    GivenUp,
    PeerBook,
    RetiredPeer,
)
from tests.contract.metadata.forms import PEERS, Client, Form, kind_of, new_chunk, peer_info

ONE, TWO, THREE = PEERS
FOUR = PeerNumber(4)
LATE_NS = 10**18


async def file_with(store: MetadataStore, *chunks: Chunk) -> tuple[Client, InodeNumber]:
    client = await Client.open(store)
    bucket = await client.bucket()
    ino = await client.make(bucket, b"file")
    await client.write(ino, *chunks)
    return client, ino


async def copies_of(store: MetadataStore, chunk: Chunk) -> ChunkCopies:
    [found] = await store.copies([chunk.id])
    return found


def all_of(*numbers: PeerNumber) -> CopiesAsked:
    return CopiesAsked(numbers, numbers, numbers)


async def survey(store: MetadataStore, asked: CopiesAsked, count_max: int = 100) -> CopiesPage:
    """All pages as one."""
    pages = [await store.survey(asked, None, count_max)]
    while pages[-1].last is not None:
        pages.append(await store.survey(asked, pages[-1].last, count_max))
    return CopiesPage(
        None,
        sum(page.chunk_count for page in pages),
        tuple(chunk for page in pages for chunk in page.short),
        tuple(chunk_id for page in pages for chunk_id in page.surplus),
        sum(page.unreadable_count for page in pages),
    )


def test_survey_tells_who_is_short_and_by_how_much(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        whole, half, none = (
            new_chunk(10, (ONE, TWO)),
            new_chunk(20, (TWO, THREE)),
            new_chunk(30, (THREE,)),
        )
        await file_with(store, whole, half, none)
        asked = CopiesAsked((ONE, TWO), (ONE, TWO), PEERS)
        for count_max in (1, 2, 100):
            found = await survey(store, asked, count_max)
            assert sorted(found.short) == sorted([(half.id, 1, 20), (none.id, 0, 30)])
            assert (found.surplus, found.unreadable_count) == ((), 0)
        # Nobody can read from the third peer now.
        found = await survey(store, all_of(ONE, TWO))
        assert ([chunk.id for chunk in found.short], found.unreadable_count) == ([half.id], 1)

    form.run(scenario)


def test_survey_tells_of_surplus_on_steady_peers_only(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        chunk = new_chunk(10, PEERS[:2])
        await file_with(store, chunk)
        assert await store.add_replicas({chunk.id: [THREE]}) == []
        assert (await survey(store, all_of(*PEERS))).surplus == (chunk.id,)
        assert (await survey(store, CopiesAsked(PEERS, PEERS[:2], PEERS))).surplus == ()

    form.run(scenario)


def test_no_chunk_is_short_of_what_cannot_be(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        await file_with(store, new_chunk(10, (ONE,)))
        assert (await survey(store, all_of(ONE))).short == ()
        assert len((await survey(store, all_of(ONE, TWO))).short) == 1

    form.run(scenario)


def test_inline_and_dead_chunks_need_no_copies(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        dead = new_chunk(10, (ONE,))
        client, ino = await file_with(store, dead)
        await client.do(wire.SetAttributes(ino, 7, size=0))
        body = b"inline"
        inline = Chunk(new_chunk().id, len(body), digest_of([body]), ())
        op = wire.WriteExtents(
            ino, (Extent(0, len(body), inline.id, 0),), (inline,), len(body), 8, (body,)
        )
        await client.do(op)
        found = await survey(store, all_of(*PEERS))
        assert (found.short, found.chunk_count) == ((), 2)
        assert await store.copies([dead.id, inline.id]) == []
        assert await store.peer_chunks(ONE, None, 10) == []
        located = await store.locate([dead.id, inline.id])
        assert located == {inline.id: inline}

    form.run(scenario)


def test_chunks_of_a_peer_come_in_pages(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        chunks = [new_chunk(10, (ONE, TWO)) for _ in range(5)]
        await file_with(store, *chunks, new_chunk(10, (THREE,)))
        ids = sorted(chunk.id for chunk in chunks)
        assert await store.peer_chunks(ONE, None, 3) == ids[:3]
        assert await store.peer_chunks(ONE, ids[2], 3) == ids[3:]
        assert await store.peer_chunk_count(ONE) == 5
        assert await store.peer_chunk_count(THREE) == 1
        assert await store.only_copies_count(ONE, [TWO]) == 0
        assert await store.only_copies_count(ONE, [THREE]) == 5
        assert len(await store.live_chunks(None, 4)) == 4
        assert len(await store.live_chunks(None, 100)) == 6

    form.run(scenario)


def test_added_copies_are_located_behind_those_of_the_writer(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        chunk = new_chunk(10, (TWO,))
        client, ino = await file_with(store, chunk)
        assert await store.add_replicas({chunk.id: [ONE, TWO]}) == []
        [found] = (await client.node(ino)).chunks
        assert found.peers == (TWO, ONE)
        assert await store.locate([chunk.id]) == {chunk.id: found}
        assert (await copies_of(store, chunk)).wanted == 2
        await store.add_replicas({chunk.id: [THREE]}, raises_wanted=True)
        assert (await copies_of(store, chunk)).wanted == 3

    form.run(scenario)


def test_copy_that_nothing_refers_to_is_handed_back(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        dead, unknown = new_chunk(10, (ONE,)), new_chunk(10, (ONE,))
        client, ino = await file_with(store, dead)
        assert await store.add_replicas({unknown.id: [TWO]}) == [(unknown.id, TWO)]
        assert await store.add_replicas({dead.id: [FOUR]}) == [(dead.id, FOUR)]
        # That of a dead chunk is deleted with the others.
        await client.do(wire.SetAttributes(ino, 7, size=0))
        assert await store.add_replicas({dead.id: [TWO]}) == []
        [found] = await store.dead_chunks(LATE_NS, None, 10)
        assert found.peers == (ONE, TWO)

    form.run(scenario)


def test_last_copy_is_never_given_up(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        await file_with(store, chunk)
        assert await store.drop_replicas({chunk.id: [ONE, TWO]}) == [chunk.id]
        found = await copies_of(store, chunk)
        assert (found.peers, found.given_up) == ((TWO,), (ONE,))
        assert await store.drop_replicas({chunk.id: [TWO, THREE]}) == [chunk.id]
        assert (await copies_of(store, chunk)).peers == (TWO,)

    form.run(scenario)


def test_copies_are_given_up_only_while_enough_of_the_counted_stay(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        chunk = new_chunk(10, PEERS)
        await file_with(store, chunk)
        ids = {chunk.id: [ONE]}
        # It was stored three times, so it wants three.
        assert await store.drop_replicas(ids, counted=PEERS) == [chunk.id]
        assert await store.drop_replicas(ids, counted=[TWO, THREE]) == []
        assert (await copies_of(store, chunk)).peers == (TWO, THREE)
        assert await store.drop_replicas({chunk.id: [TWO]}, counted=[ONE]) == [chunk.id]

    form.run(scenario)


def test_given_up_copy_waits_for_its_time_and_comes_back_only_when_it_is_deleted(
    form: Form,
) -> None:
    async def scenario(store: MetadataStore) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        client, ino = await file_with(store, chunk)
        await store.drop_replicas({chunk.id: [ONE]}, delete_at_ns=500)
        copy = GivenUp(500, chunk.id, ONE)
        assert await store.given_up(499, None, 10) == []
        assert await store.given_up(500, None, 10) == [copy]
        assert await store.given_up(500, copy, 10) == []
        assert await store.given_up_count() == 1
        assert await store.add_replicas({chunk.id: [ONE]}) == [(chunk.id, ONE)]
        # Nor does a writer bring it back, who repeats what it wrote long ago.
        await client.write(ino, chunk)
        assert (await copies_of(store, chunk)).peers == (TWO,)
        await store.forget_given_up([copy])
        assert await store.given_up_count() == 0
        assert await store.add_replicas({chunk.id: [ONE]}) == []

    form.run(scenario)


def test_who_describes_more_copies_wants_them(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        chunk = new_chunk(10, (ONE, TWO))
        client, ino = await file_with(store, chunk)
        more = msgspec.structs.replace(chunk, peers=PEERS)
        await client.do(wire.WriteExtents(ino, (), (more,), 0, 6))
        found = await copies_of(store, chunk)
        assert (found.peers, found.wanted) == (PEERS, 3)
        policy = BucketPolicy(replicas=1)
        [bucket] = (await store.buckets()).buckets
        await client.do(wire.SetBucketPolicy(bucket.attributes.ino, policy, 7))
        fresh = new_chunk(10, (ONE, TWO))
        await client.write(ino, fresh)
        assert (await copies_of(store, fresh)).wanted == 2

    form.run(scenario)


def test_retired_peer_counts_for_nothing_and_may_come_back(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        kept, lost = new_chunk(10, (ONE, TWO)), new_chunk(10, (ONE,))
        client, ino = await file_with(store, kept, lost)
        retired = RetiredPeer("peer-1", "store-1", is_removed=False)
        book = PeerBook({FOUR: "store-4"}, {ONE: retired})
        replaced = msgspec.structs.replace(peer_info(4), id="peer-1")
        peers = [peer_info(2), peer_info(3), replaced]
        await store.save_peers(3, peers, book)
        assert (await store.peer_map()).peers == (peer_info(2), peer_info(3), replaced)
        assert await store.peer_book() == book
        # A writer that has not heard of it names it.
        late, nowhere = new_chunk(10, (ONE, TWO)), new_chunk(10, (ONE,))
        await client.write(ino, late)
        assert (await copies_of(store, late)).peers == (TWO,)
        assert await kind_of(client.write(ino, nowhere)) is Kind.NO_DATA
        assert await kind_of(client.write(ino, new_chunk(10, (PeerNumber(9),)))) is Kind.INVALID

    form.run(scenario)


def test_rows_of_a_retired_peer_go_but_for_the_last_of_a_chunk(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        kept = [new_chunk(10, (ONE, TWO)) for _ in range(3)]
        lost, dead = new_chunk(10, (ONE,)), new_chunk(10, (ONE,))
        client, _ = await file_with(store, *kept, lost)
        [bucket] = (await store.buckets()).buckets
        other = await client.make(bucket.attributes.ino, b"other")
        await client.write(other, dead)
        await client.do(wire.SetAttributes(other, 7, size=0))
        retired = {ONE: RetiredPeer("peer-1", "", is_removed=True)}
        await store.save_peers(3, [peer_info(2), peer_info(3)], PeerBook({}, retired))
        assert await store.purge_retired(ONE, None, 10, dead_only=True) is None
        [found] = await store.dead_chunks(LATE_NS, None, 10)
        assert found.peers == ()
        assert {(await copies_of(store, chunk)).peers for chunk in kept} == {(ONE, TWO)}
        after = await store.purge_retired(ONE, None, 2)
        while after is not None:
            after = await store.purge_retired(ONE, after, 2)
        assert {(await copies_of(store, chunk)).peers for chunk in kept} == {(TWO,)}
        assert (await copies_of(store, lost)).peers == (ONE,)

    form.run(scenario)


def test_ordered_moves_are_remembered(form: Form) -> None:
    async def order(store: MetadataStore) -> None:
        await store.save_move_order("rebalance", b"")
        await store.save_move_order("clone 1 2", b"x")
        await store.save_move_order("rebalance", b"y")
        await store.save_move_order("clone 1 2", None)

    async def look(store: MetadataStore) -> dict[str, bytes]:
        return await store.move_orders()

    form.run(order)
    assert form.run(look) == {"rebalance": b"y"}
