import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.localwrites import (
    ANSWER_SIZE_BYTES_MAX,
    WRITTEN,
    Grant,
    State,
    pack_grant,
    unpack_answer,
    write_socket_name,
)
from mictlanfs_server.peer import localwrites
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.localwrites import LocalWrites
from mictlanfs_server.peer.store import ChunkStore
from tests.unit.server.peer.making import LARGE, files_below, make_chunk, open_store

SPACE = f"test-{os.getpid()}"
PEER = "peer"
SOON_S = 10.0

Test = Callable[[ChunkStore], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Test], None]:
    """Run a test beside a peer's store, on a loop that peers may run on."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_on_loop(test: Test) -> None:
        async def main() -> None:
            with open_store(tmp_path) as store:
                server = LocalWrites(store.put_file)
                server.listen(SPACE, PEER)
                try:
                    await asyncio.wait_for(test(store), SOON_S)
                finally:
                    await server.aclose()
                    await server.aclose()
                    await store.aclose()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return run_on_loop


@asynccontextmanager
async def connected() -> AsyncIterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(write_socket_name(SPACE, PEER))
        client.setblocking(False)
        yield client


async def received(client: socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors; empty ones at the end."""
    while True:
        await asyncio.sleep(0.001)
        try:
            packet, ancillary, _, _ = client.recvmsg(ANSWER_SIZE_BYTES_MAX, socket.CMSG_SPACE(64))
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return b"", []
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        return packet, list(descriptors)


async def asked(client: socket.socket, chunk: StoredChunk) -> int:
    """The descriptor that is granted for a chunk."""
    client.send(pack_grant(Grant(chunk.id, chunk.digest, chunk.length)))
    packet, [descriptor] = await received(client)
    assert unpack_answer(packet) is State.GRANTED
    return descriptor


async def put(client: socket.socket, chunk: StoredChunk, body: bytes) -> State:
    descriptor = await asked(client, chunk)
    os.write(descriptor, body)
    os.close(descriptor)
    client.send(WRITTEN)
    packet, _ = await received(client)
    return unpack_answer(packet)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - there is no event for what a server does.
        await asyncio.sleep(0.001)


def temporary_files(folder: Path) -> list[Path]:
    return files_below(folder / "temporary")


def test_chunks_are_stored_one_after_the_other(run: Callable[[Test], None]) -> None:
    async def test(store: ChunkStore) -> None:
        async with connected() as client:
            for seed in range(3):
                chunk, body = make_chunk(LARGE + seed, seed)
                assert await put(client, chunk, body) is State.STORED
                assert await store.read(store.find(chunk.id), 0, chunk.length) == body

    run(test)


def test_a_chunk_that_is_there_needs_no_file(run: Callable[[Test], None]) -> None:
    async def test(store: ChunkStore) -> None:
        del store
        chunk, body = make_chunk(LARGE)
        async with connected() as client:
            await put(client, chunk, body)
            client.send(pack_grant(Grant(chunk.id, chunk.digest, chunk.length)))
            packet, descriptors = await received(client)
            assert (unpack_answer(packet), descriptors) == (State.STORED, [])

    run(test)


def test_wrong_bytes_are_told_and_the_next_chunk_is_taken(
    run: Callable[[Test], None], tmp_path: Path
) -> None:
    async def test(store: ChunkStore) -> None:
        chunk, body = make_chunk(LARGE)
        async with connected() as client:
            with pytest.raises(MictlanError) as caught:
                await put(client, chunk, body[:-1] + bytes([body[-1] ^ 1]))
            assert caught.value.kind is Kind.CORRUPT
            assert store.chunk_count == 0
            assert temporary_files(tmp_path) == []
            assert await put(client, chunk, body) is State.STORED

    run(test)


def test_what_a_client_leaves_behind_is_forgotten(
    run: Callable[[Test], None], tmp_path: Path
) -> None:
    async def test(store: ChunkStore) -> None:
        chunk, body = make_chunk(LARGE)
        async with connected() as client:
            descriptor = await asked(client, chunk)
            assert len(temporary_files(tmp_path)) == 1
        await until(lambda: not temporary_files(tmp_path))
        # Writing goes on into a file that nobody will find.
        os.write(descriptor, body)
        os.close(descriptor)
        assert store.chunk_count == 0

    run(test)


def test_who_takes_too_long_is_hung_up_on(
    run: Callable[[Test], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localwrites, "PATIENCE_S", 0.01)

    async def test(store: ChunkStore) -> None:
        del store
        async with connected() as client:
            os.close(await asked(client, make_chunk(LARGE)[0]))
            assert await received(client) == (b"", [])
        assert temporary_files(tmp_path) == []

    run(test)


@pytest.mark.parametrize("packet", [b"x", bytes(200)])
def test_nonsense_ends_the_connection(run: Callable[[Test], None], packet: bytes) -> None:
    async def test(store: ChunkStore) -> None:
        del store
        async with connected() as client:
            client.send(packet)
            assert await received(client) == (b"", [])
        async with connected() as client:
            os.close(await asked(client, make_chunk(LARGE)[0]))
            client.send(packet)
            assert await received(client) == (b"", [])

    run(test)


def test_the_end_of_the_peer_leaves_no_file(run: Callable[[Test], None], tmp_path: Path) -> None:
    kept: list[socket.socket] = []

    async def test(store: ChunkStore) -> None:
        del store
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept.append(client)
        client.connect(write_socket_name(SPACE, PEER))
        client.setblocking(False)
        os.close(await asked(client, make_chunk(LARGE)[0]))

    run(test)
    kept[0].close()
    assert temporary_files(tmp_path) == []
