from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4 import download
from mictlanfs.v4.client import AsyncClient
from tests.support.v4router import V4Router
from tests.support.v4server import serving, uri_of
from tests.support.v4space import V4Space, sha256
from tests.unit.mictlanfs.v4.making import QUICK, noise

DATA = noise(25_000)
OF_A_CHUNK = "GET .*/cat_[0-9]+$"
Reading = Callable[[AsyncClient, Path], Awaitable[bytes]]


async def into_memory(client: AsyncClient, folder: Path) -> bytes:
    return bytes((await client.get("photos", "cat")).data)


async def into_a_file(client: AsyncClient, folder: Path) -> bytes:
    try:
        return (await client.get_to_file("photos", "cat", folder / "f", replace=True)).read_bytes()
    finally:
        assert [path.name for path in folder.iterdir()] in ([], ["f"])


async def chunk_by_chunk(client: AsyncClient, folder: Path) -> bytes:
    async with client.get_chunks("photos", "cat") as chunks:
        return b"".join([bytes(chunk.data) async for chunk in chunks])


@pytest.fixture(params=[into_memory, into_a_file, chunk_by_chunk])
def read(request: pytest.FixtureRequest) -> Reading:
    reading: Reading = request.param
    return reading


@pytest.fixture(params=["whole", "streamed"])
def streaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of files are got both ways."""
    if request.param == "streamed":
        monkeypatch.setattr(download, "WHOLE_SIZE_BYTES_MAX", 1_000)


# --- what another attempt mends ------------------------------------------------------------------


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("what", ["status", "drop", "lose", "cut", "flip", "short", "long"])
async def test_a_chunk_that_does_not_come_as_it_was_put_is_asked_for_again(
    client: AsyncClient, router: V4Router, tmp_path: Path, read: Reading, what: str
) -> None:
    await client.put("photos", "cat", DATA, chunk_size=5_000)
    router.fail(what, OF_A_CHUNK, count=2)
    assert await read(client, tmp_path) == DATA
    assert len(router.asked(OF_A_CHUNK)) == 7


async def test_the_second_attempt_passes_the_cache_of_the_router(
    client: AsyncClient, router: V4Router, space: V4Space
) -> None:
    router.has_cache = True
    await client.put("photos", "cat", b"meow")
    # What another router replaced: this one still has the old bytes.
    space.router_cache["photos", "cat_0"] = b"woof"
    assert bytes((await client.get("photos", "cat")).data) == b"meow"
    forced = [r.headers["force-get"] for r in router.requests if r.path.endswith("/cat_0")]
    assert forced == ["0", "1"]


async def test_a_router_with_good_bytes_takes_the_place_of_one_with_bad_ones(
    space: V4Space,
) -> None:
    bad, good = V4Router(space), V4Router(space)
    async with serving(bad, good), AsyncClient(uri_of(bad, good), retry=QUICK) as client:
        await client.put("photos", "cat", DATA, chunk_size=5_000)
        bad.fail("flip", OF_A_CHUNK, count=1e9)
        assert bytes((await client.get("photos", "cat")).data) == DATA


async def test_a_slow_router_is_given_up_for_another(space: V4Space) -> None:
    slow, quick = V4Router(space), V4Router(space)
    async with (
        serving(slow, quick),
        AsyncClient(uri_of(slow, quick), retry=QUICK, timeout_s=0.2) as client,
    ):
        await client.put("photos", "cat", b"meow")
        slow.fail("stall", "GET", count=1e9)
        with trio.fail_after(5):
            for _ in range(4):
                assert bytes((await client.get("photos", "cat")).data) == b"meow"
        # Once it has failed it is not asked for a while.
        assert len(slow.asked("GET")) <= 3


# --- what nothing mends --------------------------------------------------------------------------


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("spoil", [b"meo", b"meows", b"woof", b""])
async def test_bytes_that_match_nowhere_are_corrupt(
    client: AsyncClient,
    router: V4Router,
    space: V4Space,
    tmp_path: Path,
    read: Reading,
    spoil: bytes,
) -> None:
    await client.put("photos", "cat", b"meow" * 1_000, chunk_size=4_000)
    for records in space.records().values():
        records[0].data = spoil * 1_000
    with pytest.raises(MictlanError) as caught:
        await read(client, tmp_path)
    assert caught.value.kind is Kind.CORRUPT
    assert caught.value.target == "photos@cat_0"
    assert len(router.asked(OF_A_CHUNK)) == 4


@pytest.mark.usefixtures("streaming")
async def test_good_chunks_that_are_not_the_whole_are_corrupt(
    client: AsyncClient, space: V4Space, tmp_path: Path
) -> None:
    common = {"num_chunks": "2", "full_checksum": sha256(b"some" + b"thing else")}
    space.store("photos", "cat_0", b"some", ball="cat", index="0", **common)
    space.store("photos", "cat_1", b"thing", ball="cat", index="1", **common)
    for read in (into_memory, into_a_file):
        with pytest.raises(MictlanError, match="together") as caught:
            await read(client, tmp_path)
        assert caught.value.kind is Kind.CORRUPT
    assert not [*tmp_path.iterdir()]


async def test_a_ball_of_one_chunk_has_its_own_checksum(
    client: AsyncClient, space: V4Space
) -> None:
    space.store(
        "photos", "cat_0", b"meow", ball="cat", index="0", num_chunks="1", full_checksum="x"
    )
    with pytest.raises(MictlanError, match="together"):
        await client.get("photos", "cat")


async def test_a_file_that_was_there_stays_when_a_get_fails(
    client: AsyncClient, router: V4Router, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    await client.put("photos", "cat", DATA, chunk_size=5_000)
    router.fail("flip", "GET .*/cat_3$", count=1e9)
    with pytest.raises(MictlanError):
        await into_a_file(client, tmp_path)
    assert (tmp_path / "f").read_bytes() == b"old"


async def test_of_a_get_that_is_cancelled_no_file_is_left(
    client: AsyncClient, router: V4Router, tmp_path: Path
) -> None:
    await client.put("photos", "cat", DATA, chunk_size=5_000)
    router.fail("stall", "GET .*/cat_3$")
    with trio.move_on_after(0.3) as scope:
        await into_a_file(client, tmp_path)
    assert scope.cancelled_caught
    assert not [*tmp_path.iterdir()]


async def test_a_ball_with_a_gap_is_not_found(
    client: AsyncClient, space: V4Space, tmp_path: Path, read: Reading
) -> None:
    await client.put("photos", "cat", DATA, chunk_size=5_000)
    for records in space.peers.values():
        records.pop(("photos", "cat_3"), None)
    with pytest.raises(MictlanError, match="4 of its 5 chunks") as caught:
        await read(client, tmp_path)
    assert caught.value.kind is Kind.NOT_FOUND


async def test_a_chunk_that_is_deleted_in_between_is_not_found(
    client: AsyncClient, router: V4Router, space: V4Space
) -> None:
    await client.put("photos", "cat", DATA, chunk_size=5_000)
    router.fail("status", "GET .*/cat_3$", count=1e9, status=404, content={"detail": "gone"})
    with pytest.raises(MictlanError) as caught:
        await client.get("photos", "cat")
    assert caught.value.kind is Kind.NOT_FOUND
    assert len(router.asked("GET .*/cat_3$")) == 4


async def test_a_ball_that_went_through_filters_is_refused(
    client: AsyncClient, space: V4Space
) -> None:
    space.store(
        "photos",
        "cat_0",
        b"meow",
        ball="cat",
        index="0",
        num_chunks="1",
        mictlanx_filters="lz4",
    )
    with pytest.raises(MictlanError, match="lz4") as caught:
        await client.get("photos", "cat")
    assert caught.value.kind is Kind.UNSUPPORTED
    assert bytes((await client.get_chunk("photos", "cat", 0)).data) == b"meow"


async def test_records_that_nobody_numbered_are_got_one_by_one(
    client: AsyncClient, space: V4Space
) -> None:
    space.store("photos", "a", b"meow", ball="cat")
    space.store("photos", "b", b"woof", ball="cat")
    with pytest.raises(MictlanError, match="by its key") as caught:
        await client.get("photos", "cat")
    assert caught.value.kind is Kind.UNSUPPORTED
    assert bytes((await client.get_by_key("photos", "b")).data) == b"woof"


async def test_a_record_that_tells_no_checksum_is_taken_by_its_size(
    client: AsyncClient, space: V4Space
) -> None:
    space.store("photos", "raw", b"meow")["checksum"] = ""
    assert bytes((await client.get("photos", "raw")).data) == b"meow"


async def test_a_checksum_in_capitals_is_the_same(client: AsyncClient, space: V4Space) -> None:
    metadata = space.store(
        "photos",
        "cat_0",
        b"meow",
        ball="cat",
        index="0",
        num_chunks="1",
        full_checksum=sha256(b"meow").upper(),
    )
    metadata["checksum"] = metadata["checksum"].upper()
    assert bytes((await client.get("photos", "cat")).data) == b"meow"


async def test_an_error_of_the_block_leaves_it_as_it_is(client: AsyncClient) -> None:
    async def divide() -> None:
        async with client.get_chunks("photos", "cat") as chunks:
            async for _ in chunks:
                raise ZeroDivisionError

    await client.put("photos", "cat", DATA, chunk_size=1_000)
    with pytest.raises(ZeroDivisionError):
        await divide()


async def test_many_large_chunks_are_written_in_their_places(
    client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small and large ones mixed.
    monkeypatch.setattr(download, "WHOLE_SIZE_BYTES_MAX", 10_000)
    pieces = [noise(size, seed) for seed, size in enumerate((50_000, 10, 20_000, 9_000, 70_000))]
    await client.put_chunks("photos", "cat", pieces)
    assert await into_a_file(client, tmp_path) == b"".join(pieces)
