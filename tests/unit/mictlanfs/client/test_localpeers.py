import errno
import os
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from mictlanfs.client import localpeers as localpeers_module
from mictlanfs.client.localpeers import AVOID_S, LocalPeers, OpenChunk, open_local_peers
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.localchunks import REQUEST_SIZE_BYTES_MAX, pack_answer, socket_name, split_ids
from mictlanfs.model import Chunk, ChunkId, PeerInfo, PeerMap, PeerNumber, PeerState
from tests.support.waiting import until

SPACE = f"test-{os.getpid()}"
BOOT_ID = "this-boot"
SOON_S = 10.0

Answer = Callable[[socket.socket, bytes], None]


class Peer:
    """A peer that answers each packet as it is told, in a thread, since its socket is a real one.

    Attributes:
        requests: the packets that came.
    """

    def __init__(self, number: int, path: Path) -> None:
        self.info = PeerInfo(
            number=PeerNumber(number),
            id=f"peer-{number}",
            url="",
            zone="",
            capacity=0,
            used=0,
            state=PeerState.UP,
            boot_id=BOOT_ID,
        )
        self.path = path
        self.requests: list[bytes] = []
        self.connections: list[socket.socket] = []

    @contextmanager
    def answering(self, answer: Answer | None = None) -> Iterator[None]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(socket_name(SPACE, self.info.id))
            listener.listen()
            thread = threading.Thread(target=self._serve, args=(listener, answer or self.give))
            thread.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                for connection in self.connections:
                    connection.shutdown(socket.SHUT_RDWR)
                thread.join(SOON_S)
                assert not thread.is_alive()

    def _serve(self, listener: socket.socket, answer: Answer) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                self.connections.append(connection)
                while packet := connection.recv(REQUEST_SIZE_BYTES_MAX):
                    self.requests.append(packet)
                    answer(connection, packet)
                self.connections.remove(connection)

    def give(self, connection: socket.socket, packet: bytes) -> None:
        """What a peer that has every chunk answers."""
        ids = split_ids(packet)
        self.send(connection, pack_answer([bytes(chunk_id) for chunk_id in ids]), len(ids))

    def refuse(self, connection: socket.socket, packet: bytes) -> None:
        """What a peer that has no chunk answers."""
        connection.send(pack_answer([None] * len(split_ids(packet))))

    def send(self, connection: socket.socket, packet: bytes, count: int) -> None:
        descriptors = [os.open(self.path, os.O_RDONLY) for _ in range(count)]
        try:
            socket.send_fds(connection, [packet], descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def peers(path: Path) -> list[Peer]:
    return [Peer(number, path) for number in (1, 2)]


@asynccontextmanager
async def opened(peers: list[Peer], boot_id: str = BOOT_ID) -> AsyncIterator[LocalPeers]:
    """The client of these peers; no descriptor may be left that the test did not take."""
    directory = PeerDirectory(trio.current_time, boot_id)
    directory.update(PeerMap(1, tuple(peer.info for peer in peers)))
    before = descriptor_count()
    with trio.fail_after(SOON_S):
        async with open_local_peers(directory, SPACE, boot_id) as local:
            yield local
    # The peer closes its end of the connection a little later, in its thread.
    await trio.to_thread.run_sync(wait_for_descriptors, before)


def descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_for_descriptors(count: int) -> None:
    give_up_at_s = time.monotonic() + SOON_S
    while descriptor_count() != count:
        assert time.monotonic() < give_up_at_s, "descriptors are left"
        time.sleep(0.001)


def chunk_at(*peers: Peer) -> Chunk:
    return Chunk(new_chunk_id(), 100_000, bytes(32), tuple(peer.info.number for peer in peers))


def taken(opened: OpenChunk | None, chunk_id: ChunkId) -> bytes:
    """What the descriptor reads; closes it."""
    assert opened is not None
    assert opened.sums == chunk_id
    assert not os.get_inheritable(opened.fd)
    with open(opened.fd, "rb") as file:
        return file.read()


async def test_a_chunk_is_opened_at_its_holder(peers: list[Peer]) -> None:
    with peers[0].answering():
        async with opened(peers) as local:
            for _ in range(3):
                chunk = chunk_at(peers[0])
                assert local.may_open(chunk)
                assert taken(await local.open(chunk), chunk.id) == b"content"
            assert local.opened_count == 3
            assert len(peers[0].connections) == 1


async def test_chunks_that_are_wanted_together_share_requests(peers: list[Peer]) -> None:
    chunks = [chunk_at(peers[0]) for _ in range(200)]
    contents = []

    async def open_one(local: LocalPeers, chunk: Chunk) -> None:
        contents.append(taken(await local.open(chunk), chunk.id))

    with peers[0].answering():
        async with opened(peers) as local, trio.open_nursery() as nursery:
            for chunk in chunks:
                nursery.start_soon(open_one, local, chunk)
    assert contents == [b"content"] * 200
    assert len(peers[0].requests) < 20


async def test_many_chunks_are_opened_by_few_requests_at_each_peer(peers: list[Peer]) -> None:
    chunks = [chunk_at(peers[n % 2]) for n in range(150)]
    nowhere = chunk_at()
    with peers[0].answering(), peers[1].answering():
        async with opened(peers) as local:
            *found, missing = await local.open_many([*chunks, nowhere])
            for chunk, one in zip(chunks, found, strict=True):
                assert taken(one, chunk.id) == b"content"
            assert missing is None
    assert [len(peer.requests) for peer in peers] == [2, 2]


async def test_what_one_peer_does_not_open_among_many_is_left_out(peers: list[Peer]) -> None:
    chunks = [chunk_at(peer) for peer in peers]
    with peers[0].answering(peers[0].refuse), peers[1].answering():
        async with opened(peers) as local:
            refused, one = await local.open_many(chunks)
            assert refused is None
            assert taken(one, chunks[1].id) == b"content"


async def test_the_next_holder_is_asked_for_what_one_has_not(peers: list[Peer]) -> None:
    with peers[0].answering(peers[0].refuse), peers[1].answering():
        async with opened(peers) as local:
            for _ in range(10):
                chunk = chunk_at(*peers)
                assert taken(await local.open(chunk), chunk.id) == b"content"
                # That a chunk is not there says nothing of others.
                assert local.may_open(chunk_at(peers[0]))


async def test_nothing_is_opened_where_nobody_has_it(peers: list[Peer]) -> None:
    with peers[0].answering(peers[0].refuse):
        async with opened(peers) as local:
            assert await local.open(chunk_at(peers[0])) is None
            assert await local.open(chunk_at()) is None


@pytest.mark.parametrize("boot_id", ["", "another-boot"])
async def test_peers_of_other_machines_are_not_asked(peers: list[Peer], boot_id: str) -> None:
    with peers[0].answering():
        async with opened(peers, boot_id) as local:
            chunk = chunk_at(peers[0])
            assert not local.may_open(chunk)
            assert await local.open(chunk) is None
    assert peers[0].requests == []


async def test_a_peer_without_a_socket_is_left_alone_for_a_while(
    peers: list[Peer], autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(peers) as local:
        chunk = chunk_at(peers[0])
        assert await local.open(chunk) is None
        assert not local.may_open(chunk)
        assert local.may_open(chunk_at(peers[1]))
        autojump_clock.jump(AVOID_S)
        assert local.may_open(chunk)


async def test_a_peer_that_comes_back_is_asked_again(
    peers: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localpeers_module, "AVOID_S", 0.0)
    chunk = chunk_at(peers[0])
    async with opened(peers) as local:
        with peers[0].answering():
            assert taken(await local.open(chunk), chunk.id) == b"content"
        assert await local.open(chunk) is None
        with peers[0].answering():
            assert taken(await local.open(chunk), chunk.id) == b"content"


@pytest.mark.parametrize(
    ("packet", "count"),
    [
        (b"x", 0),
        (pack_answer([b"", b""]), 2),
        (pack_answer([b"sums"])[:-1], 1),
        (pack_answer([b"sums"]) + b"x", 1),
        (pack_answer([b"sums"]), 0),
        (pack_answer([None]), 1),
        (pack_answer([b"sums"]), 2),
        (pack_answer([b"sums"]), 5),
        (bytes(80_000), 1),
    ],
)
async def test_wrong_answers_are_none_and_leave_no_descriptor(
    peers: list[Peer], packet: bytes, count: int
) -> None:
    peer = peers[0]
    with peer.answering(lambda connection, _: peer.send(connection, packet, count)):
        async with opened(peers) as local:
            chunk = chunk_at(peer)
            assert await local.open(chunk) is None
            assert not local.may_open(chunk)
            assert local.opened_count == 0


async def test_a_peer_that_hangs_up_is_no_error(peers: list[Peer]) -> None:
    with peers[0].answering(lambda connection, _: connection.shutdown(socket.SHUT_RDWR)):
        async with opened(peers) as local:
            assert await local.open(chunk_at(peers[0])) is None


async def test_a_peer_that_does_not_answer_is_given_up(
    peers: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localpeers_module, "ANSWER_TIMEOUT_S", 0.05)
    with peers[0].answering(lambda *_: None):
        async with opened(peers) as local:
            chunk = chunk_at(peers[0])
            assert await local.open(chunk) is None
            assert not local.may_open(chunk)


async def test_the_end_while_a_peer_is_asked_is_no_error(peers: list[Peer]) -> None:
    with peers[0].answering(lambda *_: None):
        async with trio.open_nursery() as nursery:
            async with opened(peers) as local:
                nursery.start_soon(local.open, chunk_at(peers[0]))
                await until(lambda: bool(peers[0].requests))
            nursery.cancel_scope.cancel()


async def test_a_socket_of_another_user_is_not_asked(
    peers: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localpeers_module, "is_trusted", lambda _: False)
    with peers[0].answering():
        async with opened(peers) as local:
            assert await local.open(chunk_at(peers[0])) is None
    assert peers[0].requests == []


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Let this process open no more than `free` descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    held = [os.open("/", os.O_RDONLY)]
    while held[-1] < highest:
        held.append(os.dup(held[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.parametrize("free", [0, 1])
async def test_without_free_descriptors_nothing_is_opened(peers: list[Peer], free: int) -> None:
    peer = peers[0]
    held = [os.open(peer.path, os.O_RDONLY) for _ in range(3)]

    def give(connection: socket.socket, packet: bytes) -> None:
        count = len(split_ids(packet))
        socket.send_fds(connection, [pack_answer([b""] * count)], held[:count])

    found = []

    async def open_one(local: LocalPeers) -> None:
        found.append(await local.open(chunk_at(peer)))

    with peer.answering(give):
        async with opened(peers) as local:
            first = await local.open(chunk_at(peer))
            assert first is not None
            os.close(first.fd)
            # They leave together, and the kernel hands over as many as there is room for.
            with few_descriptors(free):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(open_one, local)
            assert found == [None] * 3
            assert len(peer.requests) == 2
            assert not local.may_open(chunk_at(peer))
    for descriptor in held:
        os.close(descriptor)


async def test_a_connection_that_cannot_be_made_for_want_of_descriptors_is_no_error(
    peers: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with peers[0].answering():
        async with opened(peers) as local:
            with monkeypatch.context() as patch:
                patch.setattr(trio.socket, "socket", refuse)
                assert await local.open(chunk_at(peers[0])) is None
