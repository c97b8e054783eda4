"""Our client of the v4 API, on a real space: router and peers as processes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from mictlanfs import AsyncClient, Client, Kind, MictlanError
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.model import MIB
from tests.support.spaces import Space, running_space
from tests.support.waiting import until

PATIENT = RetryPolicy(deadline_s=90.0)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with running_space(tmp_path_factory.mktemp("space") / "data") as started:
        yield started


@pytest.fixture
async def client(space: Space) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(space.uri, client_id="tester", retry=PATIENT) as client:
        yield client


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, MIB + 1, 5_000_000])
async def test_what_is_put_is_got(client: AsyncClient, size: int) -> None:
    data = noise(size)
    put = await client.put("there-and-back", f"ball{size}", data, rf=2, tags={"colour": "red"})
    got = await client.get("there-and-back", f"ball{size}")
    assert bytes(got.data) == data
    assert [chunk.checksum for chunk in got.metadatas] == [chunk.checksum for chunk in put.chunks]
    for found, sent in zip(got.metadatas, put.chunks, strict=True):
        assert found.tags.items() >= sent.tags.items()
    # A ball of one chunk, and of more, lists with its true size.
    balls = {ball.ball_id: ball for ball in await client.get_bucket_metadata("there-and-back")}
    assert balls[f"ball{size}"].size == size
    assert balls[f"ball{size}"].is_complete


async def test_files_come_back_as_they_were(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(noise(3_000_000))
    await client.put_file("files", "cat.jpg", tmp_path / "cat.jpg", chunk_size="256kb")
    (tmp_path / "out").mkdir()
    path = await client.get_to_file("files", "cat.jpg", tmp_path / "out")
    assert path.name == "cat.jpg"
    assert path.read_bytes() == noise(3_000_000)


async def test_pieces_of_any_size_are_the_chunks(client: AsyncClient) -> None:
    await client.put_chunks("pieces", "line", [b"one", b"", b"three"])
    async with client.get_chunks("pieces", "line") as chunks:
        assert [bytes(chunk.data) async for chunk in chunks] == [b"one", b"", b"three"]
    assert bytes((await client.get_chunk("pieces", "line", 2)).data) == b"three"


async def test_a_single_record_is_found_by_its_key(client: AsyncClient) -> None:
    await client.put_single_chunk("single", "raw", b"meow", tags={"a": "b"})
    chunk = await client.get_by_key("single", "raw")
    assert bytes(chunk.data) == b"meow"
    assert chunk.metadata.tags["a"] == "b"
    assert await client.delete_by_key(bucket_id="single", key="raw") >= 1
    with pytest.raises(MictlanError) as caught:
        await client.get_by_key("single", "raw")
    assert caught.value.kind is Kind.NOT_FOUND


async def test_a_ball_is_replaced_only_when_told(client: AsyncClient) -> None:
    await client.put("replaced", "cat", noise(2_000_000))
    with pytest.raises(MictlanError) as caught:
        await client.put("replaced", "cat", b"new")
    assert caught.value.kind is Kind.EXISTS
    assert bytes((await client.get("replaced", "cat")).data) == noise(2_000_000)
    await client.put("replaced", "cat", b"new", replace=True)
    assert bytes((await client.get("replaced", "cat")).data) == b"new"


async def test_what_is_deleted_is_gone(client: AsyncClient) -> None:
    for name in ("cat", "dog"):
        await client.put("gone", name, noise(2_000_000), chunk_size="100kb")
    await client.put("gone", "empty", b"")
    assert await client.delete(bucket_id="gone", ball_id="cat") >= 1
    with pytest.raises(MictlanError) as caught:
        await client.get("gone", "cat")
    assert caught.value.kind is Kind.NOT_FOUND
    assert bytes((await client.get("gone", "dog")).data) == noise(2_000_000)
    await client.delete_bucket("gone")
    assert await client.get_bucket_metadata("gone") == []


async def test_names_with_dots_and_slashes_are_kept_when_they_are_sent_exactly(
    space: Space, client: AsyncClient
) -> None:
    async with AsyncClient(space.uri, names="exact", retry=PATIENT) as exact:
        await exact.put("names", "2026/cat.jpg", b"meow")
        assert bytes((await exact.get("names", "2026/cat.jpg")).data) == b"meow"
        found = [ball.ball_id for ball in await exact.get_bucket_metadata("names")]
        assert found == ["2026/cat.jpg"]
    # The stripped form, as the public client sends it, is this one ball.
    assert bytes((await client.get("names", "2026/cat.jpg")).data) == b"meow"


async def test_many_tasks_share_a_client(client: AsyncClient) -> None:
    async def there_and_back(index: int) -> None:
        await client.put("many", f"ball{index}", noise(10_000 + index))
        assert bytes((await client.get("many", f"ball{index}")).data) == noise(10_000 + index)

    async with trio.open_nursery() as nursery:
        for index in range(20):
            nursery.start_soon(there_and_back, index)
    assert len(await client.get_bucket_metadata("many")) == 20


def test_the_blocking_client_does_the_same(space: Space) -> None:
    with Client(space.uri, retry=PATIENT) as client:
        client.put("blocking", "cat", b"meow")
        assert bytes(client.get("blocking", "cat").data) == b"meow"
        assert client.delete_bucket("blocking") >= 1


async def test_a_put_goes_on_when_the_router_was_killed_meanwhile(space: Space) -> None:
    data = noise(8_000_000)
    async with AsyncClient(space.uri, retry=PATIENT) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.put("killed", "cat", data, chunk_size="100kb"))
            await until(lambda: sum(client.pool.request_counts().values()) > 20)
            await trio.to_thread.run_sync(space.kill, "router")
        assert bytes((await client.get("killed", "cat")).data) == data
