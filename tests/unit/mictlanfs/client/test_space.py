import io

import pytest
import trio

from mictlanfs import wire
from mictlanfs.client.space import open_space
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import MIB, BucketPolicy, FileKind
from tests.support.fakespace import URI, FakeSpace
from tests.unit.mictlanfs.client.making import CHUNK


async def test_list_gives_every_name_in_order_over_many_pages(space: FakeSpace) -> None:
    names = sorted(f"n{i:03}".encode() for i in range(250))
    for name in names:
        space.router.make(FileKind.FILE, b"b", name)
    async with space.client() as client:
        assert [listing.name for listing in await client.list("b")] == names
        assert [listing.name for listing in await client.list()] == [b"b"]
        (itself,) = await client.list("b/n007")
    assert itself.name == b"n007"
    assert len(space.net.paths(wire.Path.LIST)) == 4


async def test_a_name_that_is_no_text_works(space: FakeSpace) -> None:
    async with space.client() as client:
        await client.put(io.BytesIO(b"x"), "b", b"\xff\xfe")
        assert [listing.name for listing in await client.list("b")] == [b"\xff\xfe"]
        assert await client.exists("b/\udcff\udcfe")


async def test_exists_tells_without_an_error(space: FakeSpace) -> None:
    space.router.make(FileKind.FILE, b"b", b"f")
    async with space.client() as client:
        answers = [await client.exists(path) for path in ("", "b", "b/f", "b/g", "c/f", "b/f/x")]
    assert answers == [True, True, True, False, False, False]


# --- buckets -------------------------------------------------------------------------------------


async def test_buckets_are_made_shown_and_removed(space: FakeSpace) -> None:
    policy = BucketPolicy(replicas=3, chunk_size=MIB)
    async with space.client() as client:
        await client.make_bucket("c", policy)
        assert [bucket.name for bucket in await client.buckets()] == [b"b", b"c"]
        assert (await client.bucket("c")).policy == policy
        await client.put(io.BytesIO(b"x"), "c", "f")
        assert sum(len(peer.chunks) for peer in space.peers) == 3
        with pytest.raises(MictlanError) as caught:
            await client.remove_bucket("c")
        assert caught.value.kind is Kind.NOT_EMPTY
        await client.remove_bucket("c", recursive=True)
        assert [bucket.name for bucket in await client.buckets()] == [b"b"]


async def test_a_bucket_whose_policy_is_refused_is_not_made(space: FakeSpace) -> None:
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.make_bucket("c", BucketPolicy(replicas=9))
        assert caught.value.kind is Kind.INVALID
        assert not await client.exists("c")


async def test_making_a_bucket_that_exists_leaves_it_alone(space: FakeSpace) -> None:
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.make_bucket("b", BucketPolicy(replicas=3))
        assert caught.value.kind is Kind.EXISTS
        assert (await client.bucket("b")).policy == BucketPolicy(chunk_size=CHUNK)


# --- the client ----------------------------------------------------------------------------------


async def test_reading_opens_no_session_and_a_change_opens_one(space: FakeSpace) -> None:
    async with space.client() as client:
        await client.list("b")
        assert not space.net.paths("session")
        async with trio.open_nursery() as nursery:
            for name in ("1", "2"):
                nursery.start_soon(client.put, io.BytesIO(b"x"), "b", name)
        assert space.net.paths("session") == [wire.Path.SESSION_OPEN]
    assert space.net.paths("session")[-1] == wire.Path.SESSION_CLOSE
    assert not space.router.sessions
    assert space.net.is_closed


async def test_errors_leave_the_client_as_they_are(space: FakeSpace) -> None:
    async def use(error: Exception | None) -> None:
        async with space.client() as client:
            await client.put(io.BytesIO(b"x"), "b", "f")
            if error is not None:
                raise error
            await client.stat("b/none")

    with pytest.raises(ZeroDivisionError):
        await use(ZeroDivisionError())
    with pytest.raises(MictlanError) as caught:
        await use(None)
    assert caught.value.kind is Kind.NOT_FOUND
    assert str(caught.value) == "find b/none: there is no such file or directory"


async def test_a_space_that_is_not_there_fails_after_the_deadline(
    space: FakeSpace, autojump_clock: trio.testing.MockClock
) -> None:
    space.net.servers.clear()
    start = trio.current_time()
    async with space.client(deadline_s=7.0) as client:
        for verb in (client.list(), client.make_bucket("c")):
            with pytest.raises(MictlanError) as caught:
                await verb
            assert caught.value.kind is Kind.UNAVAILABLE
    assert 7.0 < trio.current_time() - start < 15.0


async def test_a_bad_uri_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        async with open_space("http://here"):
            pass
    async with open_space(URI):
        pass
