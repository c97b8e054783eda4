from collections.abc import AsyncIterator

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.models import Node, PutMetadataToPeer
from mictlanfs.v4.peer import DELETED_UNKNOWN, AsyncPeer
from tests.support.v4peer import V4Peer
from tests.support.v4server import serving
from tests.support.v4space import V4Space, sha256


@pytest.fixture
async def theirs(space: V4Space) -> AsyncIterator[V4Peer]:
    peer = V4Peer(space, "mictlanx-peer-1")
    async with serving(peer):
        yield peer


@pytest.fixture
async def ours(theirs: V4Peer) -> AsyncIterator[AsyncPeer]:
    async with AsyncPeer.at("127.0.0.1", theirs.port, peer_id="mictlanx-peer-1") as ours:
        yield ours


async def put(ours: AsyncPeer, data: bytes, key: str = "cat_0", task_id: str | None = None) -> None:
    metadata = PutMetadataToPeer(
        bucket_id="photos",
        key=key,
        ball_id="cat",
        checksum=sha256(data),
        size=len(data),
        producer_id="tester",
    )
    accepted = await ours.put_metadata(metadata, task_id=task_id)
    assert accepted.node_id == "mictlanx-peer-1"
    assert task_id in {None, accepted.task_id}
    done = await ours.put_chunked(accepted.task_id, data)
    assert (done.combined_key, done.size) == (f"photos@{key}", len(data))


async def test_a_record_is_put_read_and_deleted(
    ours: AsyncPeer, theirs: V4Peer, space: V4Space
) -> None:
    await put(ours, b"meow", task_id="the-task")
    assert theirs.requests[0].headers["task-id"] == "the-task"
    assert (await ours.get_metadata("photos", "cat_0")).metadata.checksum == sha256(b"meow")
    assert bytes(await ours.get("photos", "cat_0")) == b"meow"
    assert (await ours.get_size("photos", "cat_0")).size == 4
    assert await ours.delete("photos", "cat_0") == 1
    with pytest.raises(MictlanError, match="no photos@cat_0") as caught:
        await ours.get("photos", "cat_0")
    assert caught.value.kind is Kind.NOT_FOUND


async def test_the_second_step_can_be_a_form(ours: AsyncPeer, theirs: V4Peer) -> None:
    await put(ours, b"meow")
    metadata = PutMetadataToPeer(
        bucket_id="b", key="k", ball_id="k", checksum="", size=2, producer_id="tester"
    )
    accepted = await ours.put_metadata(metadata, is_update=True)
    assert theirs.requests[-1].headers["update"] == "1"
    await ours.put_data(accepted.task_id, "k", b"ab")
    assert theirs.records["b", "k"].data == b"ab"


async def test_listings(ours: AsyncPeer) -> None:
    await put(ours, b"meow")
    await put(ours, b"more!", key="cat_1")
    group = await ours.get_chunks_metadata("photos", "cat")
    assert (group.size, [row.key for row in group.balls]) == (9, ["cat_0", "cat_1"])
    bucket = await ours.get_bucket_metadata("photos")
    assert (bucket.peer_id, len(bucket.balls)) == ("mictlanx-peer-1", 2)
    assert await ours.get_balls_len() == 2
    assert [ball.key for ball in await ours.get_balls()] == ["cat_0", "cat_1"]
    assert [ball.size for ball in await ours.get_balls(start=1)] == [5]
    assert [ball.size for ball in await ours.get_all_ball_sizes(end=1)] == [4]
    state = await ours.get_state()
    assert state.balls["cat_1"].locations == ["mictlanx-peer-1"]
    assert len(state.nodes) == 3


async def test_an_end_of_nothing_is_left_out(ours: AsyncPeer, theirs: V4Peer) -> None:
    await ours.get_stats()
    await ours.get_stats(start=3, end=9)
    assert [request.query for request in theirs.requests] == [
        {"start": "0"},
        {"start": "3", "end": "9"},
    ]


async def test_deletes_are_counted_in_a_header(ours: AsyncPeer) -> None:
    await put(ours, b"meow")
    await put(ours, b"more", key="cat_1")
    assert await ours.delete_by_ball_id("photos", "cat") == 2
    assert await ours.delete_by_ball_id("photos", "cat") == DELETED_UNKNOWN


async def test_the_peer_tells_of_itself(ours: AsyncPeer, space: V4Space) -> None:
    await put(ours, b"meow")
    assert (await ours.get_stats()).used_disk == 4
    assert (await ours.get_ufs()).disk_uf == 0.25
    node = Node(id="new", ip_addr="127.0.0.1", port=24003, disk=1000)
    assert await ours.add_peer(node) == node
    assert (await ours.replicate("photos", "cat_0")).replica_peer_id == "mictlanx-peer-0"
    await ours.disable("photos", "cat_0")
    assert (await ours.get_metadata("photos", "cat_0")).metadata.is_disabled
    space.tasks["x"] = space.tasks.get("x")  # type: ignore[assignment]
    await ours.flush_tasks()
    assert not space.tasks
