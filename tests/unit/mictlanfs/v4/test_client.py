import ssl
from pathlib import Path

import pytest
import trio

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import Buffer
from mictlanfs.v4 import download, upload
from mictlanfs.v4.client import AsyncClient
from tests.support.v4router import V4Router
from tests.support.v4server import serving, uri_of
from tests.support.v4space import V4Space, public_get, sha256
from tests.unit.mictlanfs.v4.making import QUICK, noise

DATA = noise(25_000)


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 9_999, 10_000, 10_001, 30_000, 123_456])
async def test_what_is_put_is_got(client: AsyncClient, space: V4Space, size: int) -> None:
    data = noise(size)
    ball = await client.put("photos", "cat", data, chunk_size="10kb")
    assert (ball.size, ball.checksum, ball.is_complete) == (size, sha256(data), True)
    assert ball.chunk_count == max(1, -(-size // 10_000))
    got = await client.get("photos", "cat")
    assert bytes(got.data) == data
    assert got.metadatas == ball.chunks
    assert public_get(space, "photos", "cat") == data


async def test_the_records_are_those_of_the_public_client(
    client: AsyncClient, space: V4Space
) -> None:
    await client.put("photos", "cat", DATA, chunk_size=10_000, rf=2, tags={"colour": "red"})
    assert space.keys("photos") == ["cat_0", "cat_1", "cat_2"]
    assert space.holders("photos", "cat_1") == ["mictlanx-peer-0", "mictlanx-peer-1"]
    found = space.record("photos", "cat_2")
    assert found is not None
    updated_at = found.metadata["tags"].pop("updated_at")
    assert updated_at.isdecimal()
    assert found.metadata == {
        "bucket_id": "photos",
        "key": "cat_2",
        "ball_id": "cat",
        "checksum": sha256(DATA[20_000:]),
        "producer_id": "tester",
        "size": 5_000,
        "content_type": "application/octet-stream",
        "is_disabled": False,
        "tags": {
            "index": "2",
            "num_chunks": "3",
            "full_checksum": sha256(DATA),
            "chunk_size": "5000",
            "group_id": "cat",
            "colour": "red",
        },
    }


@pytest.mark.parametrize(
    "kinds", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"]
)
async def test_any_buffer_can_be_put(client: AsyncClient, kinds: type[bytearray]) -> None:
    await client.put("photos", "cat", kinds(DATA), chunk_size=10_000)
    assert bytes((await client.get("photos", "cat")).data) == DATA


async def test_what_is_got_cannot_be_changed(client: AsyncClient) -> None:
    await client.put("photos", "cat", DATA, chunk_size=10_000)
    got = await client.get("photos", "cat")
    with pytest.raises(TypeError):
        got.data[0] = 0


async def test_chunks_travel_in_parallel_and_no_more_than_allowed(
    router: V4Router, client: AsyncClient
) -> None:
    router.delay_s = 0.01
    await client.put("photos", "cat", noise(30_000), chunk_size=1_000)
    assert router.busy_max == 10
    router.busy_max = 0
    await client.get("photos", "cat")
    assert router.busy_max == 10
    # A listing, and two requests for each chunk; then a listing and one for each.
    assert len(router.requests) == 1 + 2 * 30 + 1 + 30


async def test_no_more_bytes_are_under_way_than_allowed(
    router: V4Router, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "IN_FLIGHT_SIZE_BYTES_MAX", 3_000)
    monkeypatch.setattr(download, "IN_FLIGHT_SIZE_BYTES_MAX", 3_000)
    router.delay_s = 0.01
    (tmp_path / "f").write_bytes(noise(20_000))
    await client.put_file("photos", "cat", tmp_path / "f", chunk_size=1_000)
    assert router.busy_max == 3
    router.busy_max = 0
    await client.get_to_file("photos", "cat", tmp_path / "g")
    assert router.busy_max == 3
    # One that is larger goes alone.
    await client.put("photos", "dog", noise(20_000), chunk_size=8_000)
    assert bytes((await client.get("photos", "dog")).data) == noise(20_000)
    assert router.busy_max == 3


# --- names ---------------------------------------------------------------------------------------


async def test_names_are_stripped_on_both_sides(client: AsyncClient, space: V4Space) -> None:
    await client.put("my photos", "cat.jpg", b"meow")
    assert space.keys("myphotos") == ["catjpg_0"]
    found = space.record("myphotos", "catjpg_0")
    assert found is not None
    assert found.metadata["tags"]["group_id"] == "cat.jpg"
    assert bytes((await client.get("myphotos", "cat.jpg")).data) == b"meow"
    assert bytes((await client.get("my photos", "catjpg")).data) == b"meow"
    assert [ball.ball_id for ball in await client.get_bucket_metadata("my photos")] == ["catjpg"]
    assert await client.delete(bucket_id="my photos", ball_id="cat.jpg") == 1


@pytest.mark.parametrize("name", ["", "...", "_a", "日本", "a\udcff_"])
async def test_a_name_of_which_nothing_is_left_is_refused(
    client: AsyncClient, router: V4Router, name: str
) -> None:
    for doing in (client.put("b", name, b""), client.put(name, "a", b""), client.get("b", name)):
        with pytest.raises(MictlanError) as caught:
            await doing
        assert caught.value.kind is Kind.INVALID
    assert not router.requests


async def test_two_names_that_are_stripped_alike_do_not_overwrite_each_other(
    client: AsyncClient,
) -> None:
    await client.put("photos", "cat.jpg", b"meow")
    with pytest.raises(MictlanError, match="replace=True") as caught:
        await client.put("photos", "catjpg", b"woof")
    assert caught.value.kind is Kind.EXISTS


async def test_exact_names_are_sent_as_they_are(router: V4Router, space: V4Space) -> None:
    async with AsyncClient(uri_of(router), names="exact", retry=QUICK) as client:
        await client.put("my photos", "2026/cat.jpg", b"meow")
        assert space.keys("my photos") == ["2026/cat.jpg_0"]
        assert bytes((await client.get("my photos", "2026/cat.jpg")).data) == b"meow"
        with pytest.raises(MictlanError):
            await client.get("my photos", "")


# --- a ball is put once --------------------------------------------------------------------------


async def test_a_ball_that_is_there_is_not_put_again(client: AsyncClient, space: V4Space) -> None:
    await client.put("photos", "cat", b"meow")
    with pytest.raises(MictlanError) as caught:
        await client.put("photos", "cat", b"woof")
    assert caught.value.kind is Kind.EXISTS
    assert caught.value.target == "photos@cat"
    assert public_get(space, "photos", "cat") == b"meow"
    assert len(space.holders("photos", "cat_0")) == 1


async def test_replacing_leaves_nothing_of_the_old_ball(
    client: AsyncClient, space: V4Space
) -> None:
    await client.put("photos", "cat", DATA, chunk_size=10_000, rf=2)
    await client.put("photos", "cat", b"meow", replace=True)
    assert space.keys("photos") == ["cat_0"]
    assert bytes((await client.get("photos", "cat")).data) == b"meow"
    await client.put("photos", "dog", b"woof", replace=True)
    assert bytes((await client.get("photos", "dog")).data) == b"woof"


# --- files and pieces ----------------------------------------------------------------------------


async def test_a_file_is_put_and_got(client: AsyncClient, space: V4Space, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(DATA)
    ball = await client.put_file("photos", "cat", tmp_path / "cat.jpg", chunk_size=10_000)
    assert (ball.tags["fullname"], ball.tags["extension"]) == ("cat.jpg", "jpg")
    assert public_get(space, "photos", "cat") == DATA
    path = await client.get_to_file("photos", "cat", tmp_path / "copy")
    assert path == tmp_path / "copy"
    assert path.read_bytes() == DATA
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat.jpg", "copy"]


async def test_an_empty_file_is_put_and_got(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    await client.put_file("photos", "empty", str(tmp_path / "empty"))
    await client.get_to_file("photos", "empty", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b""


async def test_tags_of_the_caller_come_before_those_of_the_file(
    client: AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"meow")
    ball = await client.put_file("photos", "cat", tmp_path / "x", tags={"fullname": "cat.jpg"})
    assert ball.tags["fullname"] == "cat.jpg"
    assert "extension" not in ball.tags


async def test_a_file_in_a_directory_is_named_by_its_tags(
    client: AsyncClient, tmp_path: Path
) -> None:
    await client.put("photos", "cat", b"meow", tags={"fullname": "../../etc/cat.jpg"})
    assert await client.get_to_file("photos", "cat", tmp_path) == tmp_path / "cat.jpg"
    assert await client.get_to_file("photos", "cat", tmp_path, fullname="x") == tmp_path / "x"
    assert (tmp_path / "x").read_bytes() == b"meow"


async def test_a_file_that_is_there_is_only_replaced_when_told(
    client: AsyncClient, router: V4Router, tmp_path: Path
) -> None:
    target = tmp_path / "cat"
    target.write_bytes(b"woof")
    await client.put("photos", "cat", b"meow")
    with pytest.raises(MictlanError, match="replace=True") as caught:
        await client.get_to_file("photos", "cat", target)
    assert caught.value.kind is Kind.EXISTS
    assert target.read_bytes() == b"woof"
    await client.get_to_file("photos", "cat", target, replace=True)
    assert target.read_bytes() == b"meow"
    before = len(router.asked("GET .*/cat_0$"))
    assert await client.get_to_file("photos", "cat", target) == target
    assert len(router.asked("GET .*/cat_0$")) == before


async def test_pieces_are_the_chunks(client: AsyncClient, space: V4Space) -> None:
    pieces: list[Buffer] = [b"me", b"", b"ow", bytearray(b"!")]
    await client.put_chunks("photos", "cat", pieces)
    assert space.keys("photos") == ["cat_0", "cat_1", "cat_2", "cat_3"]
    assert public_get(space, "photos", "cat") == b"meow!"
    await client.put_chunks("photos", "none", iter(()))
    assert bytes((await client.get("photos", "none")).data) == b""


async def test_chunks_are_got_one_by_one_in_order(client: AsyncClient) -> None:
    await client.put("photos", "cat", DATA, chunk_size=1_000)
    async with client.get_chunks("photos", "cat") as chunks:
        got = [chunk async for chunk in chunks]
    assert b"".join(chunk.data for chunk in got) == DATA
    assert [chunk.metadata.tags["index"] for chunk in got] == [str(i) for i in range(25)]
    async with client.get_chunks("photos", "cat") as chunks:
        assert bytes((await anext(chunks)).data) == DATA[:1_000]
    assert bytes((await client.get_chunk("photos", "cat", 24)).data) == DATA[24_000:]
    with pytest.raises(MictlanError) as caught:
        await client.get_chunk("photos", "cat", 25)
    assert caught.value.kind is Kind.NOT_FOUND


async def test_a_single_record_has_the_tags_that_were_given(
    client: AsyncClient, space: V4Space
) -> None:
    record = await client.put_single_chunk("photos", "raw", b"meow", tags={"a": "b"})
    assert record.tags == {"a": "b"}
    assert bytes((await client.get_by_key("photos", "raw")).data) == b"meow"
    assert bytes((await client.get("photos", "raw")).data) == b"meow"
    assert await client.get_metadata_by_key("photos", "raw") == record
    await client.put_single_chunk("photos", "wide", memoryview(bytes(range(8))).cast("I"))
    assert bytes((await client.get("photos", "wide")).data) == bytes(range(8))
    assert await client.delete_by_key(bucket_id="photos", key="raw") == 1
    with pytest.raises(MictlanError) as caught:
        await client.delete_by_key(bucket_id="photos", key="raw")
    assert caught.value.kind is Kind.NOT_FOUND


# --- metadata and deleting -----------------------------------------------------------------------


async def test_a_bucket_lists_balls_with_their_true_sizes(
    client: AsyncClient, space: V4Space
) -> None:
    await client.put("photos", "zeros", bytes(20_000), chunk_size=1_000, rf=2)
    await client.put("photos", "cat", b"meow")
    balls = {ball.ball_id: ball for ball in await client.get_bucket_metadata("photos")}
    assert {name: ball.size for name, ball in balls.items()} == {"zeros": 20_000, "cat": 4}
    assert all(ball.is_complete for ball in balls.values())
    assert len(await client.get_chunks_by_bucket_id("photos")) == 41
    assert await client.get_bucket_metadata("nowhere") == []


async def test_deleting_a_ball_deletes_every_chunk_of_it_and_no_other(
    client: AsyncClient, space: V4Space
) -> None:
    await client.put("photos", "cat", DATA, chunk_size=1_000, rf=2)
    await client.put("photos", "cat_1", b"another")
    assert await client.delete(bucket_id="photos", ball_id="cat") == 50
    assert space.keys("photos") == ["cat_1_0"]
    with pytest.raises(MictlanError) as caught:
        await client.delete(bucket_id="photos", ball_id="cat")
    assert caught.value.kind is Kind.NOT_FOUND
    with pytest.raises(MictlanError) as caught:
        await client.get("photos", "cat")
    assert caught.value.kind is Kind.NOT_FOUND


async def test_force_is_passed_on(client: AsyncClient, router: V4Router) -> None:
    await client.put("photos", "cat", b"meow")
    await client.delete(bucket_id="photos", ball_id="cat", force=False)
    assert router.requests[-1].headers["force"] == "0"


async def test_a_deleted_bucket_is_empty(client: AsyncClient, space: V4Space) -> None:
    await client.put("photos", "cat", DATA, chunk_size=1_000)
    await client.put("photos", "dog", b"woof", rf=3)
    await client.put("other", "cat", b"meow")
    assert await client.delete_bucket("photos") == 28
    assert space.keys("photos") == []
    assert space.keys("other") == ["cat_0"]
    assert await client.delete_bucket("photos") == 0


# --- routers -------------------------------------------------------------------------------------


async def test_requests_are_spread_over_the_routers(space: V4Space) -> None:
    routers = V4Router(space), V4Router(space)
    async with serving(*routers), AsyncClient(uri_of(*routers), retry=QUICK) as client:
        await client.put("photos", "cat", noise(20_000), chunk_size=1_000)
        await client.get("photos", "cat")
        counts = client.pool.request_counts()
        assert sum(counts.values()) == 42
        assert max(counts.values()) - min(counts.values()) <= 2
    # Both steps of a put go to one router.
    for router in routers:
        accepted = len(router.asked("POST .*/metadata"))
        assert len(router.asked("POST .*/chunked")) == accepted > 0


async def test_a_dead_router_is_left_out(space: V4Space) -> None:
    dead, alive = V4Router(space), V4Router(space)
    async with serving(dead):
        pass
    async with serving(alive), AsyncClient(uri_of(dead, alive), retry=QUICK) as client:
        await client.put("photos", "cat", noise(20_000), chunk_size=1_000)
        assert bytes((await client.get("photos", "cat")).data) == noise(20_000)
        counts = client.pool.request_counts()
    # The first requests found out; the rest did not try.
    assert counts["router-0"] <= 11
    assert counts["router-1"] >= 42


async def test_a_router_that_dies_in_the_middle_of_a_put_is_replaced(space: V4Space) -> None:
    dying, alive = V4Router(space), V4Router(space)
    async with serving(dying, alive), AsyncClient(uri_of(dying, alive), retry=QUICK) as client:
        dying.fail("drop", "", count=1e9, skip=7)
        await client.put("photos", "cat", noise(20_000), chunk_size=1_000)
        assert bytes((await client.get("photos", "cat")).data) == noise(20_000)
        assert public_get(space, "photos", "cat") == noise(20_000)


async def test_without_any_router_it_is_unavailable_in_time(space: V4Space) -> None:
    routers = V4Router(space), V4Router(space)
    async with serving(*routers):
        pass
    async with AsyncClient(uri_of(*routers), retry=QUICK) as client:
        with trio.fail_after(10):
            with pytest.raises(MictlanError) as caught:
                await client.get("photos", "cat")
            assert caught.value.kind is Kind.UNAVAILABLE


async def test_a_router_behind_tls(space: V4Space, tls: tuple[ssl.SSLContext, Path]) -> None:
    server_context, authority = tls
    router = V4Router(space)
    data = noise(100_000)
    async with serving(router, tls=server_context):
        uri = uri_of(router, protocol="https")
        trusting = ssl.create_default_context(cafile=authority)
        async with AsyncClient(uri, verify=trusting, retry=QUICK) as client:
            await client.put("photos", "cat", data, chunk_size=30_000)
            assert bytes((await client.get("photos", "cat")).data) == data
        async with AsyncClient(uri, verify=False, retry=QUICK) as client:
            assert bytes((await client.get("photos", "cat")).data) == data
        async with AsyncClient(uri, retry=QUICK) as client:
            with pytest.raises(MictlanError) as caught:
                await client.get("photos", "cat")
            assert caught.value.kind is Kind.UNAVAILABLE


# --- the cache -----------------------------------------------------------------------------------


async def test_cached_bytes_are_given_out_while_they_are_the_ball(
    client: AsyncClient, router: V4Router
) -> None:
    await client.put("photos", "cat", DATA, chunk_size=10_000)
    first = await client.get("photos", "cat", use_cache=True)
    assert len(router.asked("GET .*/cat_[0-9]$")) == 3
    second = await client.get("photos", "cat", use_cache=True)
    assert bytes(second.data) == bytes(first.data) == DATA
    assert second.metadatas == first.metadatas
    assert len(router.asked("GET .*/cat_[0-9]$")) == 3
    await client.get("photos", "cat")
    assert len(router.asked("GET .*/cat_[0-9]$")) == 6


async def test_a_ball_that_another_client_replaced_is_fetched_anew(
    client: AsyncClient, router: V4Router
) -> None:
    async with AsyncClient(uri_of(router), use_cache=True, retry=QUICK) as caching:
        await client.put("photos", "cat", b"meow")
        assert bytes((await caching.get("photos", "cat")).data) == b"meow"
        await client.put("photos", "cat", b"woof", replace=True)
        assert bytes((await caching.get("photos", "cat")).data) == b"woof"
        await client.delete(bucket_id="photos", ball_id="cat")
        with pytest.raises(MictlanError) as caught:
            await caching.get("photos", "cat")
        assert caught.value.kind is Kind.NOT_FOUND


async def test_a_cache_of_no_size_keeps_nothing(client: AsyncClient, router: V4Router) -> None:
    await client.put("photos", "cat", b"meow")
    async with AsyncClient(uri_of(router), use_cache=True, cache_size=0) as caching:
        for _ in range(2):
            assert bytes((await caching.get("photos", "cat")).data) == b"meow"
    assert len(router.asked("GET .*/cat_0$")) == 2


# --- what the caller may get wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_size": 0},
        {"chunk_size": "much"},
        {"chunk_size": -1},
        {"rf": 0},
        {"tags": {"a": 1}},
        {"tags": {"a": "\udcff"}},
    ],
)
async def test_arguments_that_cannot_be_are_refused_before_anything_is_sent(
    client: AsyncClient, router: V4Router, wrong: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"meow")
    with pytest.raises(MictlanError) as caught:
        await client.put("photos", "cat", b"meow", **wrong)  # type: ignore[arg-type]
    assert caught.value.kind is Kind.INVALID
    with pytest.raises(MictlanError) as caught:
        await client.put_file("photos", "cat", tmp_path / "f", **wrong)  # type: ignore[arg-type]
    assert caught.value.kind is Kind.INVALID
    assert not router.asked("POST")


async def test_a_ball_has_only_so_many_chunks(client: AsyncClient) -> None:
    with pytest.raises(MictlanError, match="chunk_size") as caught:
        await client.put("photos", "cat", bytes(65_537), chunk_size=1)
    assert caught.value.kind is Kind.INVALID


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": "other"},
        {"max_concurrency": 0},
        {"cache_size": "x"},
        {"cache_size": -1},
        {"eviction_policy": "FIFO"},
    ],
)
def test_a_client_of_wrong_arguments_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MictlanError) as caught:
        AsyncClient("mictlanx://r@127.0.0.1:1/?protocol=http", **wrong)  # type: ignore[arg-type]
    assert caught.value.kind is Kind.INVALID


def test_a_wrong_uri_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="looks like"):
        AsyncClient("http://127.0.0.1:60666")
