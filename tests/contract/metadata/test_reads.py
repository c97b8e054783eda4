"""What a metadata store promises of reads, and of what the router keeps in it."""

import asyncio

from mictlanfs import wire
from mictlanfs.errors import Kind
from mictlanfs.model import (
    ROOT_INODE,
    BucketPolicy,
    FileKind,
    InodeNumber,
    Node,
    PeerMap,
    PeerState,
)
from mictlanfs_server.metadata.base import DeadChunk, MetadataStore, ReplicaCounts
from tests.contract.metadata.forms import PEERS, Client, Form, kind_of, new_chunk, peer_info

MISSING = InodeNumber(9_999_999)


def test_new_space_has_an_empty_root(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        root = await store.root()
        assert (root.ino, root.kind, root.nlink, root.size) == (1, FileKind.DIRECTORY, 2, 0)
        assert (await store.buckets()).buckets == ()
        page = await store.list_directory(wire.ListDirectory(ROOT_INODE))
        assert page == wire.ListPage((), root, ROOT_INODE, True)
        node = Node(root, has_all_extents=True, key=ROOT_INODE)
        assert await store.node(wire.GetNode(ROOT_INODE)) == node
        assert (await store.resolve(wire.Resolve(()))).nodes == (node,)
        counts = await store.counts()
        assert (counts.buckets, counts.inodes, counts.chunks) == (0, 1, 0)

    form.run(scenario)


def test_one_node_is_the_same_by_every_way(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        file = await client.make(bucket, b"file")
        chunks = (new_chunk(10), new_chunk(20, PEERS[::-1]))
        await client.write(file, *chunks)
        await client.do(wire.SetXattr(file, b"user.a", b"1", 9))
        node = await store.node(wire.GetNode(file, 8))
        assert node == await store.lookup(wire.Lookup(bucket, b"file", 8))
        resolved = await store.resolve(wire.Resolve((b"bucket", b"file"), 8))
        assert node == resolved.nodes[2]
        (entry,) = (await store.list_directory(wire.ListDirectory(bucket, extents_max=8))).entries
        assert entry == wire.Entry(b"file", node)
        page = await store.extents(wire.GetExtents(file, 0))
        assert (page.extents, page.chunks, page.end) == (node.extents, node.chunks, None)
        assert page.content_version == node.attributes.content_version
        assert node.chunks == chunks
        assert (node.has_all_extents, node.policy) == (True, BucketPolicy())
        assert node.attributes.has_xattrs
        assert (await store.xattrs(wire.GetXattrs(file))).values == {b"user.a": b"1"}
        assert (await store.path(wire.GetPath(file))).names == (b"bucket", b"file")

    form.run(scenario)


def test_errors_of_reads(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        file = await client.make(bucket, b"file")
        expected = [
            (store.lookup(wire.Lookup(bucket, b"none")), Kind.NOT_FOUND),
            (store.lookup(wire.Lookup(file, b"x")), Kind.NOT_DIRECTORY),
            (store.lookup(wire.Lookup(MISSING, b"x")), Kind.NOT_FOUND),
            (store.lookup(wire.Lookup(bucket, b"n" * 256)), Kind.NAME_TOO_LONG),
            (store.node(wire.GetNode(MISSING)), Kind.NOT_FOUND),
            (store.extents(wire.GetExtents(MISSING, 0)), Kind.NOT_FOUND),
            (store.list_directory(wire.ListDirectory(MISSING)), Kind.NOT_FOUND),
            (store.list_directory(wire.ListDirectory(file)), Kind.NOT_DIRECTORY),
            (store.xattrs(wire.GetXattrs(MISSING)), Kind.NOT_FOUND),
            (store.path(wire.GetPath(MISSING)), Kind.NOT_FOUND),
            (store.resolve(wire.Resolve((b"x",) * 5000)), Kind.NAME_TOO_LONG),
        ]
        kinds = [await kind_of(work) for work, _ in expected]
        assert kinds == [kind for _, kind in expected]

    form.run(scenario)


def test_reads_go_on_while_a_full_batch_is_applied(form: Form) -> None:
    async def scenario(store: MetadataStore) -> int:
        client = await Client.open(store)
        bucket = await client.bucket()
        for _ in range(4):
            await store.take_inodes(1024)
        ops = [client.make_op(bucket, b"%d" % n) for n in range(wire.BATCH_OPS_MAX)]
        applied = asyncio.create_task(client.do(*ops))
        count = 0
        while not applied.done():
            # Either none of the batch is seen or all of it.
            assert (await client.node(bucket)).attributes.size in {0, wire.BATCH_OPS_MAX}
            count += 1
            await asyncio.sleep(0)
        await applied
        return count

    assert form.run(scenario) > 10


# --- peers ---


def test_peers_survive_opening_again(form: Form) -> None:
    peers = (peer_info(1), peer_info(4))

    async def save(store: MetadataStore) -> None:
        assert (await store.peer_map()).peers == ()
        await store.save_peers(8, peers)

    async def load(store: MetadataStore) -> PeerMap:
        return await store.peer_map()

    form.run(save)
    assert form.run(load) == PeerMap(8, peers)


def test_saved_peer_is_replaced_by_number(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        await store.save_peers(2, [peer_info(1), peer_info(2)])
        down = peer_info(1).__class__(
            PEERS[0], "peer-1", "http://elsewhere:1", "z", 5, 4, PeerState.DOWN, True, "boot"
        )
        await store.save_peers(3, [down])
        assert await store.peer_map() == PeerMap(3, (down, peer_info(2)))

    form.run(scenario)


# --- sessions ---


def test_time_a_session_was_seen_is_kept(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store, "label")
        (record,) = await store.sessions()
        assert (record.label, record.host, record.pid, record.seen_ns) == ("label", "host", 7, 1000)
        await store.touch_sessions({client.session.session: 5_000})
        (record,) = await store.sessions()
        assert record.seen_ns == 5_000

    form.run(scenario)


# --- dead chunks ---


def test_dead_chunk_is_known_until_every_peer_has_deleted_it(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        file = await client.make(bucket, b"file")
        chunk = new_chunk(10)
        await client.write(file, chunk)
        assert await store.dead_chunks(10**18, None, 10) == []
        form.now_ns = 77
        await client.do(wire.Unlink(bucket, b"file", 1))
        dead = DeadChunk(chunk.id, 77, PEERS[:2])
        assert await store.dead_chunks(77, None, 10) == []
        assert await store.dead_chunks(78, None, 10) == [dead]
        assert await store.dead_chunks(78, dead, 10) == []
        await store.forget_replicas({chunk.id: [PEERS[0]]})
        (left,) = await store.dead_chunks(78, None, 10)
        assert left.peers == PEERS[1:2]
        assert (await store.counts()).tombstones == 1
        await store.forget_replicas({chunk.id: [PEERS[1]]})
        assert await store.dead_chunks(78, None, 10) == []
        assert (await store.counts()).tombstones == 0

    form.run(scenario)


def test_replicas_are_counted_on_the_peers_given(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        file = await client.make(bucket, b"file")
        await client.write(file, new_chunk(10, PEERS[:2]), new_chunk(10, PEERS[2:]))
        assert await store.replica_counts(PEERS) == ReplicaCounts(1, 0)
        assert await store.replica_counts(PEERS[:2]) == ReplicaCounts(1, 1)
        assert await store.replica_counts([]) == ReplicaCounts(2, 2)

    form.run(scenario)


def test_closing_twice_is_no_error(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        await store.close()

    form.run(scenario)
