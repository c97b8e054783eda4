from collections.abc import AsyncIterator

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.models import PeerAddress, PutMetadata
from mictlanfs.v4.router import AsyncRouter
from tests.support.v4router import V4Router
from tests.support.v4space import V4Space, sha256
from tests.unit.mictlanfs.v4.making import noise


@pytest.fixture
async def ours(router: V4Router) -> AsyncIterator[AsyncRouter]:
    async with AsyncRouter.at("127.0.0.1", router.port, router_id="mictlanx-router-0") as ours:
        yield ours


def announcement(data: bytes, key: str = "cat_0", **more: object) -> PutMetadata:
    return PutMetadata(
        bucket_id="photos",
        key=key,
        ball_id="cat",
        checksum=sha256(data),
        size=len(data),
        producer_id="tester",
        tags={"index": "0", "num_chunks": "1"},
        **more,  # type: ignore[arg-type]
    )


async def put(ours: AsyncRouter, data: bytes, key: str = "cat_0") -> None:
    accepted = await ours.put_metadata(announcement(data, key))
    await ours.put_chunked(accepted.tasks_ids[0], data)


async def test_a_record_is_put_in_two_steps(
    ours: AsyncRouter, router: V4Router, space: V4Space
) -> None:
    accepted = await ours.put_metadata(announcement(b"meow", replication_factor=2))
    assert accepted.key == "cat_0"
    assert accepted.replicas == ["mictlanx-peer-0", "mictlanx-peer-1"]
    done = await ours.put_chunked(accepted.tasks_ids[0], b"meow", chunk_size="1MB")
    assert done.peer_ids == accepted.replicas
    assert (done.combined_key, done.size) == ("photos@cat_0", 4)
    found = space.record("photos", "cat_0")
    assert found is not None
    assert found.data == b"meow"
    first, second = router.requests
    assert str(first) == "POST /api/v4/buckets/photos/metadata"
    assert first.headers["update"] == "0"
    assert first.headers["content-type"] == "application/json"
    assert second.path == f"/api/v4/buckets/data/{accepted.tasks_ids[0]}/chunked"
    assert second.headers["content-type"] == "application/octet-stream"
    assert second.headers["chunk-size"] == "1MB"


async def test_the_second_step_can_be_a_form(ours: AsyncRouter, space: V4Space) -> None:
    data = noise(100_000) + b"\r\n--"
    accepted = await ours.put_metadata(announcement(data))
    await ours.put_data(accepted.tasks_ids[0], 'cat"\r\n_0', data, "image/jpeg")
    found = space.record("photos", "cat_0")
    assert found is not None
    assert found.data == data


async def test_the_second_step_can_come_in_pieces(ours: AsyncRouter, space: V4Space) -> None:
    data = noise(300_000)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]

    accepted = await ours.put_metadata(announcement(data))
    await ours.put_chunked(accepted.tasks_ids[0], pieces())
    found = space.record("photos", "cat_0")
    assert found is not None
    assert found.data == data


async def test_a_task_is_good_for_one_upload(ours: AsyncRouter) -> None:
    accepted = await ours.put_metadata(announcement(b"meow"))
    await ours.put_chunked(accepted.tasks_ids[0], b"meow")
    with pytest.raises(MictlanError) as caught:
        await ours.put_chunked(accepted.tasks_ids[0], b"meow")
    assert caught.value.kind is Kind.NOT_FOUND


async def test_a_header_that_could_hide_another_is_refused(ours: AsyncRouter) -> None:
    with pytest.raises(MictlanError) as caught:
        await ours.put_data("task", "cat_0", b"", "text/plain\r\nx: y")
    assert caught.value.kind is Kind.INVALID


async def test_a_record_that_every_peer_has_is_there_already(ours: AsyncRouter) -> None:
    for _ in range(3):
        await put(ours, b"meow")
    with pytest.raises(MictlanError, match="No available peers") as caught:
        await put(ours, b"meow")
    assert caught.value.kind is Kind.EXISTS
    assert caught.value.target == "photos@cat_0"


async def test_without_peers_nobody_can_take_it(ours: AsyncRouter, space: V4Space) -> None:
    space.peers.clear()
    with pytest.raises(MictlanError) as caught:
        await put(ours, b"meow")
    assert caught.value.kind is Kind.UNAVAILABLE


async def test_a_record_is_read(ours: AsyncRouter, router: V4Router) -> None:
    data = noise(200_000)
    await put(ours, data)
    found = await ours.get_metadata("photos", "cat_0")
    assert (found.peer_id, found.metadata.size) == ("mictlanx-peer-0", 200_000)
    assert bytes(await ours.get("photos", "cat_0", peer_id="p", chunk_size="256kb")) == data
    headers = router.requests[-1].headers
    assert headers["accept-encoding"] == "identity"
    assert headers["force-get"] == "0"
    assert headers["peer-id"] == "p"
    assert headers["chunk-size"] == "256kb"
    await ours.get("photos", "cat_0", is_forced=True)
    assert router.requests[-1].headers["force-get"] == "1"
    async with ours.get_streaming("photos", "cat_0") as download:
        assert b"".join([piece async for piece in download.pieces]) == data
        assert download.headers["content-type"] == "application/octet-stream"


async def test_what_is_not_there_is_not_found_however_it_is_said(ours: AsyncRouter) -> None:
    for reading in (
        ours.get_metadata("photos", "dog_0"),
        ours.get_chunks_metadata("photos", "dog"),
        ours.get("photos", "dog_0"),
        ours.delete("photos", "dog_0"),
        ours.merge("photos", "dog"),
    ):
        with pytest.raises(MictlanError) as caught:
            await reading
        assert caught.value.kind is Kind.NOT_FOUND
        assert caught.value.target in {"photos@dog", "photos@dog_0"}
    streaming = ours.get_streaming("photos", "dog_0")
    with pytest.raises(MictlanError, match="no photos@dog_0"):
        await streaming.__aenter__()


async def test_data_with_another_status_than_200_is_not_all_of_it(
    ours: AsyncRouter, router: V4Router
) -> None:
    await put(ours, b"meow")
    for status in (206, 204, 302):
        router.fail("status", "GET .*/cat_0", status=status)
        with pytest.raises(MictlanError):
            await ours.get("photos", "cat_0")


async def test_listings(ours: AsyncRouter) -> None:
    await put(ours, b"meow")
    await put(ours, b"meow")
    await put(ours, b"", key="cat_1")
    ball = await ours.get_chunks_metadata("photos", "cat")
    assert (ball.size_bytes, ball.size) == (4, "4 bytes")
    assert [chunk.key for chunk in ball.chunks] == ["cat_0", "cat_0", "cat_1"]
    bucket = await ours.get_bucket_metadata("photos")
    assert [row.key for row in bucket.balls] == ["cat_0", "cat_0"]
    assert bucket.peers_ids == [f"mictlanx-peer-{index}" for index in range(3)]
    assert (await ours.get_bucket_metadata("nowhere")).balls == []
    sizes = await ours.get_size("photos", "cat_0")
    assert [(size.peer_id, size.size) for size in sizes] == [
        ("mictlanx-peer-0", 4),
        ("mictlanx-peer-1", 4),
    ]
    assert bytes(await ours.merge("photos", "cat")) == b"meow"


async def test_deleting(ours: AsyncRouter, router: V4Router, space: V4Space) -> None:
    await put(ours, b"meow")
    await put(ours, b"meow")
    await put(ours, b"more", key="cat_1")
    assert (await ours.delete("photos", "cat_0")).n_deletes == 2
    assert router.requests[-1].headers["force"] == "1"
    assert space.keys("photos") == ["cat_1"]
    assert (await ours.delete_by_ball_id("photos", "cat", force=False)).n_deletes == 1
    assert router.requests[-1].headers["force"] == "0"
    assert (await ours.delete_by_ball_id("photos", "cat")).n_deletes == 0


async def test_metadata_is_changed(ours: AsyncRouter, space: V4Space) -> None:
    await put(ours, b"meow")
    await ours.disable("photos", "cat_0")
    assert (await ours.get_metadata("photos", "cat_0")).metadata.is_disabled
    await ours.update_metadata(announcement(b"meow", content_type="image/jpeg"))
    assert (await ours.get_metadata("photos", "cat_0")).metadata.content_type == "image/jpeg"


async def test_peers_of_the_router(ours: AsyncRouter, space: V4Space) -> None:
    await ours.add_peers([PeerAddress(peer_id="new", hostname="127.0.0.1", port=24003)])
    assert "new" in {peer.peer_id for peer in (await ours.get_peers()).available}
    await ours.delete_peers(["new", "unknown"])
    stats = await ours.get_stats()
    assert stats.keys() == {f"mictlanx-peer-{index}" for index in range(3)}
    assert stats["mictlanx-peer-0"].total_disk == 1000


async def test_the_cache_of_the_router(ours: AsyncRouter, router: V4Router) -> None:
    assert await ours.get_cache_keys() == []
    router.has_cache = True
    await put(ours, b"meow")
    assert await ours.get_cache_keys() == ["photos@cat_0"]
    assert (await ours.get_cache_stats()).used == 4
    await ours.reset_cache()
    assert await ours.get_cache_keys() == []


async def test_a_router_has_the_name_of_its_uri_or_its_address(ours: AsyncRouter) -> None:
    assert ours.id == "mictlanx-router-0"
    assert AsyncRouter.at("10.0.0.1", 60666, protocol="https").id == "https://10.0.0.1:60666"


async def test_names_are_sent_as_they_are(ours: AsyncRouter, router: V4Router) -> None:
    with pytest.raises(MictlanError):
        await ours.get_metadata("a b", "x/y?z#ż")
    assert router.requests[-1].parts == ["buckets", "a b", "metadata", "x/y?z#ż"]
