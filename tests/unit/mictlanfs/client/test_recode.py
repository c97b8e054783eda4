from io import BytesIO
from random import Random

import pytest
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.client.recode import ATTEMPTS_MAX
from mictlanfs.client.space import SpaceClient
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import KIB, BucketPolicy, Chunk, FileKind
from mictlanfs.protection import Protection, coded
from tests.support.fakepeer import FakePeer
from tests.support.fakespace import FakeSpace

LARGE = Random(3).randbytes(700 * KIB)
SMALL = LARGE[:30_000]
TWO = BucketPolicy(chunk_size=128 * KIB)


@pytest.fixture
def space() -> FakeSpace:
    """Five peers, and a bucket `b` of two copies."""
    space = FakeSpace(peers=[FakePeer(number) for number in range(1, 6)])
    space.router.make(FileKind.DIRECTORY, b"b").policy = TWO
    return space


async def fill(client: SpaceClient) -> None:
    await client.put(BytesIO(LARGE), "b", "dir/large")
    await client.put(BytesIO(SMALL), "b", "small")


async def content(client: SpaceClient, path: str) -> bytes:
    found = BytesIO()
    await client.get("b", path, found)
    return found.getvalue()


def chunks_of(space: FakeSpace, *names: bytes) -> list[Chunk]:
    return [space.router.chunks[e.chunk_id] for e in space.router.find(b"b", *names).extents]


async def test_old_data_gets_the_form_of_the_policy_and_back(space: FakeSpace) -> None:
    async with space.client() as client:
        await fill(client)
        mtime_ns = space.router.find(b"b", b"dir", b"large").attributes.mtime_ns
        await client.set_bucket_policy("b", protection=coded(3, 2))
        progress: list[int] = []
        done = await client.recode_bucket("b", progress.append)
        assert (done.files, done.chunks, done.left) == (2, 7, [])
        assert done.bytes == sum(progress) == len(LARGE) + len(SMALL)
        # The last chunk of 60 KiB is as small as the other file: three copies.
        forms = [(c.coding and c.coding.count, len(c.peers)) for c in chunks_of(space, b"small")]
        assert forms == [(None, 3)]
        forms = [
            (c.coding and c.coding.count, len(c.peers)) for c in chunks_of(space, b"dir", b"large")
        ]
        assert forms == [(5, 5)] * 5 + [(None, 3)]
        assert await content(client, "dir/large") == LARGE
        assert await content(client, "small") == SMALL
        assert space.router.find(b"b", b"dir", b"large").attributes.mtime_ns == mtime_ns
        # A second time there is nothing to do.
        assert (await client.recode_bucket("b")).chunks == 0
        await client.set_bucket_policy("b", protection=Protection(2))
        assert (await client.recode_bucket("b")).chunks == 7
        assert {len(c.peers) for c in chunks_of(space, b"dir", b"large")} == {2}
        assert await content(client, "dir/large") == LARGE


async def test_what_was_done_before_an_error_stays_and_the_rest_is_done_later(
    space: FakeSpace, autojump_clock: MockClock
) -> None:
    async with space.client() as client:
        await fill(client)
        await client.set_bucket_policy("b", protection=coded(3, 2))
        large = chunks_of(space, b"dir", b"large")
        for peer in space.peers:
            peer.chunks.pop(large[5].id, None)
        done = await client.recode_bucket("b")
        # Chunks are moved in groups, and the lost one was in the second.
        assert (done.files, done.chunks) == (2, 5)
        [error] = done.left
        assert (error.kind, error.target) == (Kind.CORRUPT, "b/dir/large")
        assert [c.coding is not None for c in chunks_of(space, b"dir", b"large")] == (
            [True] * 4 + [False] * 2
        )


async def test_a_file_that_keeps_changing_is_left_as_it_is(space: FakeSpace) -> None:
    changes = 0

    def change(op: wire.Operation) -> None:
        nonlocal changes
        if isinstance(op, wire.WriteExtents) and op.is_same_content:
            changes += 1
            raise MictlanError(Kind.CONFLICT, "write")

    async with space.client() as client:
        await client.put(BytesIO(LARGE), "b", "large")
        await client.set_bucket_policy("b", protection=coded(3, 2))
        space.router.before_apply = change
        done = await client.recode_bucket("b")
        assert changes == ATTEMPTS_MAX
        assert [error.kind for error in done.left] == [Kind.CONFLICT]
        assert await content(client, "large") == LARGE


async def test_a_code_for_which_there_are_too_few_peers_is_said_at_once(space: FakeSpace) -> None:
    async with space.client() as client:
        await fill(client)
        await client.set_bucket_policy("b", protection=coded(4, 2))
        with pytest.raises(MictlanError, match=r"4\+2 needs 6 peers, and 5 are there"):
            await client.recode_bucket("b")
        with pytest.raises(MictlanError) as caught:
            await client.recode_bucket("none")
        assert caught.value.kind is Kind.NOT_FOUND
