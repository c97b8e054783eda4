import array
import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.localchunks import (
    ANSWER_SIZE_BYTES_MAX,
    REQUEST_CHUNKS_MAX,
    REQUEST_SIZE_BYTES_MAX,
    socket_name,
    unpack_answer,
)
from mictlanfs.model import ChunkId
from mictlanfs_server.peer import localserver
from mictlanfs_server.peer.localserver import LocalServer

SPACE = f"test-{os.getpid()}"
PEER = "peer"
SOON_S = 10.0


class Chunks:
    """A store of one file; counts what it opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[ChunkId, bytes] = {}
        self.error: MictlanError | None = None

    def add(self, sums: bytes) -> ChunkId:
        chunk_id = new_chunk_id()
        self.known[chunk_id] = sums
        return chunk_id

    def open_chunk(self, chunk_id: ChunkId) -> tuple[int, bytes] | None:
        if self.error is not None:
            raise self.error
        sums = self.known.get(chunk_id)
        return None if sums is None else (os.open(self.path, os.O_RDONLY), sums)


@pytest.fixture
def chunks(tmp_path: Path) -> Chunks:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return Chunks(path)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run a test on a loop that peers may run on, and see that it leaves no descriptor behind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_on_loop(test: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            before = descriptor_count()
            await asyncio.wait_for(test(), SOON_S)
            assert descriptor_count() == before

        with asyncio.Runner(loop_factory=factory) as runner:
            # The first one makes what the loop needs for a client of its own.
            runner.run(asyncio.sleep(0))
            runner.run(main())

    return run_on_loop


def descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def serving(chunks: Chunks) -> Iterator[LocalServer]:
    server = LocalServer(chunks.open_chunk)
    server.listen(SPACE, PEER)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def connected() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(socket_name(SPACE, PEER))
        client.setblocking(False)
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Let the server run until `condition` is true; a test has a deadline."""
    while not condition():  # noqa: ASYNC110 - there is no event for what a server does.
        await asyncio.sleep(0.001)


async def received(client: socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors; empty ones at the end."""
    while True:
        await asyncio.sleep(0.001)
        try:
            packet, ancillary, _, _ = client.recvmsg(ANSWER_SIZE_BYTES_MAX, socket.CMSG_SPACE(400))
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return b"", []
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        return packet, list(descriptors)


async def ask(client: socket.socket, ids: list[ChunkId]) -> list[tuple[bytes, bytes] | None]:
    """Checksums and content of each chunk."""
    client.send(b"".join(ids))
    packet, descriptors = await received(client)
    left = iter(descriptors)
    found: list[tuple[bytes, bytes] | None] = []
    for sums in unpack_answer(packet, len(ids)):
        if sums is None:
            found.append(None)
            continue
        with open(next(left), "rb") as file:
            found.append((sums, file.read()))
    assert list(left) == []
    return found


async def assert_hung_up(client: socket.socket) -> None:
    assert await received(client) == (b"", [])


Run = Callable[[Callable[[], Awaitable[None]]], None]


def test_a_client_gets_the_chunks_there_are(chunks: Chunks, run: Run) -> None:
    async def test() -> None:
        with serving(chunks), connected() as client:
            first, second = chunks.add(b"sums"), chunks.add(b"")
            asked = [first, new_chunk_id(), second]
            for _ in range(2):
                assert await ask(client, asked) == [(b"sums", b"content"), None, (b"", b"content")]
            everything = [chunks.add(b"%d" % n) for n in range(REQUEST_CHUNKS_MAX)]
            assert len(await ask(client, everything)) == REQUEST_CHUNKS_MAX

    run(test)


@pytest.mark.parametrize(
    "size", [0, 1, 17, REQUEST_SIZE_BYTES_MAX + 16, 3 * REQUEST_SIZE_BYTES_MAX]
)
def test_a_packet_that_is_no_request_ends_the_connection(
    chunks: Chunks, run: Run, size: int
) -> None:
    async def test() -> None:
        with serving(chunks) as server, connected() as client, connected() as other:
            client.send(bytes(size))
            await assert_hung_up(client)
            assert await ask(other, [chunks.add(b"")]) == [(b"", b"content")]
            assert len(server._connections) == 1

    run(test)


def test_another_user_is_not_served(
    chunks: Chunks, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        with serving(chunks) as server:
            me = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: me + 1)
            if me == 0:
                # The real one is always believed.
                monkeypatch.setattr(localserver, "is_trusted", lambda _: False)
            with connected() as client:
                await assert_hung_up(client)
            assert not server._connections

    run(test)


def test_a_client_that_does_not_read_is_left(chunks: Chunks, run: Run) -> None:
    async def test() -> None:
        with serving(chunks) as server, connected() as client, connected() as other:
            request = chunks.add(bytes(60_000))
            await until(lambda: len(server._connections) == 2)
            sent = 0
            while len(server._connections) == 2:
                with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                    sent += client.send(request)
                await asyncio.sleep(0)
            assert sent < 1000 * len(request)
            assert await ask(other, [chunks.add(b"x")]) == [(b"x", b"content")]

    run(test)


def test_clients_that_are_too_many_are_sent_away(
    chunks: Chunks, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localserver, "CONNECTIONS_MAX", 3)

    async def test() -> None:
        with serving(chunks) as server, ExitStack() as stack:
            chunk = chunks.add(b"")
            clients = [stack.enter_context(connected()) for _ in range(3)]
            for client in clients:
                assert await ask(client, [chunk]) == [(b"", b"content")]
            with connected() as one_more:
                await assert_hung_up(one_more)
            clients[0].close()
            await until(lambda: len(server._connections) < 3)
            with connected() as next_one:
                assert await ask(next_one, [chunk]) == [(b"", b"content")]

    run(test)


def test_an_error_of_the_store_ends_the_connection(chunks: Chunks, run: Run) -> None:
    async def test() -> None:
        with serving(chunks), connected() as client:
            chunks.error = MictlanError(Kind.INTERNAL, "find chunk")
            client.send(new_chunk_id())
            await assert_hung_up(client)

    run(test)


def test_close_hangs_up_and_frees_the_name(chunks: Chunks, run: Run) -> None:
    async def test() -> None:
        with serving(chunks) as server, connected() as client:
            assert await ask(client, [chunks.add(b"")]) == [(b"", b"content")]
            server.close()
            server.close()
            await assert_hung_up(client)
            with pytest.raises(ConnectionRefusedError), connected():
                pass
            server.listen(SPACE, PEER)
            with connected() as again:
                assert await ask(again, [chunks.add(b"")]) == [(b"", b"content")]

    run(test)


def test_a_name_that_is_taken_is_reported_once_and_tried_again(
    chunks: Chunks, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        server = LocalServer(chunks.open_chunk)
        with serving(chunks):
            for _ in range(3):
                server.listen(SPACE, PEER)
        server.listen(SPACE, PEER)
        with connected() as client:
            assert await ask(client, [chunks.add(b"")]) == [(b"", b"content")]
        server.close()

    with caplog.at_level(logging.WARNING):
        run(test)
    assert len(caplog.records) == 1
    caplog.clear()


def test_a_socket_that_cannot_be_had_is_no_error(
    chunks: Chunks, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many open files")

    async def test() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", refuse)
            server = LocalServer(chunks.open_chunk)
            server.listen(SPACE, PEER)
        server.listen(SPACE, PEER)
        with connected() as client:
            assert await ask(client, [chunks.add(b"")]) == [(b"", b"content")]
        server.close()

    with caplog.at_level(logging.WARNING):
        run(test)
    assert "too many open files" in caplog.text
    caplog.clear()


class ShortListener:
    """The listening socket of a process that has no descriptor left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.is_short = True
        self.tries = 0

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        self.tries += 1
        if self.is_short:
            raise OSError(errno.EMFILE, "too many open files")
        return self._listener.accept()

    def close(self) -> None:
        self._listener.close()


def test_a_shortage_of_descriptors_is_waited_out_without_spinning(
    chunks: Chunks, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localserver, "SHORTAGE_PAUSE_S", 0.1)
    made: list[ShortListener] = []
    listener_of = localserver._listener_of

    def short_listener_of(name: str) -> ShortListener:
        made.append(ShortListener(listener_of(name)))
        return made[-1]

    monkeypatch.setattr(localserver, "_listener_of", short_listener_of)

    async def test() -> None:
        made.clear()
        with serving(chunks), connected() as client:
            for _ in range(1000):
                await asyncio.sleep(0)
            await until(lambda: made[0].tries >= 2)
            assert made[0].tries == 2
            made[0].is_short = False
            assert await ask(client, [chunks.add(b"")]) == [(b"", b"content")]

    async def ended_meanwhile() -> None:
        made.clear()
        with serving(chunks), connected():
            await until(lambda: made[0].tries >= 1)
        await asyncio.sleep(0.2)
        assert made[0].tries == 1

    run(test)
    run(ended_meanwhile)
