import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from mictlanfs.checksums import digest_of
from mictlanfs.client import localwrites as module
from mictlanfs.client.localwrites import AVOID_S, PART_SIZE_BYTES, LocalWriter
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.localwrites import (
    GRANT_SIZE_BYTES,
    WRITTEN,
    State,
    pack_failure,
    unpack_grant,
    write_socket_name,
)
from mictlanfs.model import Buffer, PeerInfo, PeerNumber, PeerState
from mictlanfs.wire import FrameChunk

SPACE = f"test-{os.getpid()}"
BOOT_ID = "this-boot"
SOON_S = 10.0
PEER = PeerInfo(PeerNumber(1), "peer-1", "", "", 0, 0, PeerState.UP, boot_id=BOOT_ID)
BODY = os.urandom(2 * PART_SIZE_BYTES + 77)
CHUNK = FrameChunk(new_chunk_id(), len(BODY), digest_of([BODY]))

Say = Callable[[socket.socket], None]


class Peer:
    """A peer in a thread that says what it is told to, and keeps what is written.

    Attributes:
        connection_count: connections so far.
        requests: packets that came.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection_count = 0
        self.requests: list[bytes] = []
        self.on_grant: Say = self.grant
        self.on_written: Say = lambda connection: say(connection, bytes([State.STORED]))
        self._connections: list[socket.socket] = []

    def grant(self, connection: socket.socket) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        socket.send_fds(connection, [bytes([State.GRANTED])], [descriptor])
        os.close(descriptor)

    def hang_up(self) -> None:
        """End every connection."""
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def answering(self) -> Iterator[None]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(write_socket_name(SPACE, PEER.id))
            listener.listen()
            threads: list[threading.Thread] = []

            def accept() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    self.connection_count += 1
                    self._connections.append(connection)
                    threads.append(threading.Thread(target=self._serve, args=(connection,)))
                    threads[-1].start()

            acceptor = threading.Thread(target=accept)
            acceptor.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                acceptor.join(SOON_S)
                self.hang_up()
                for thread in threads:
                    thread.join(SOON_S)
                for connection in self._connections:
                    connection.close()

    def _serve(self, connection: socket.socket) -> None:
        while packet := connection.recv(GRANT_SIZE_BYTES + 1):
            self.requests.append(packet)
            (self.on_written if packet == WRITTEN else self.on_grant)(connection)


def say(connection: socket.socket, packet: bytes) -> None:
    connection.send(packet)


def silence(_: socket.socket) -> None:
    return


def refusal(kind: Kind) -> Say:
    return lambda connection: say(connection, pack_failure(MictlanError(kind, "put chunk")))


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "file")
    with peer.answering():
        yield peer


@asynccontextmanager
async def writing(boot_id: str = BOOT_ID) -> AsyncIterator[LocalWriter]:
    writer = LocalWriter(SPACE, boot_id)
    with trio.fail_after(SOON_S):
        try:
            yield writer
        finally:
            writer.close()


async def test_the_bytes_are_in_the_file_before_the_peer_is_told(peer: Peer) -> None:
    seen: list[bytes] = []

    def on_written(connection: socket.socket) -> None:
        seen.append(peer.path.read_bytes())
        say(connection, bytes([State.STORED]))

    peer.on_written = on_written
    pieces: list[Buffer] = [BODY[:5], BODY[5:-9], memoryview(BODY)[-9:]]
    async with writing() as writer:
        assert await writer.put(PEER, CHUNK, pieces)
        assert writer.stored_count == 1
    assert seen == [BODY]
    asked = unpack_grant(peer.requests[0])
    assert (asked.id, asked.digest, asked.length) == (CHUNK.id, CHUNK.digest, CHUNK.length)


async def test_many_small_pieces_are_written(peer: Peer) -> None:
    async with writing() as writer:
        pieces = [BODY[start : start + 100] for start in range(0, len(BODY), 100)]
        assert await writer.put(PEER, CHUNK, pieces)
    assert peer.path.read_bytes() == BODY


async def test_a_connection_is_used_again(peer: Peer) -> None:
    async with writing() as writer:
        for _ in range(3):
            assert await writer.put(PEER, CHUNK, [BODY])
    assert peer.connection_count == 1


async def test_a_connection_that_the_peer_ended_meanwhile_is_made_anew(peer: Peer) -> None:
    async with writing() as writer:
        assert await writer.put(PEER, CHUNK, [BODY])
        peer.hang_up()
        assert await writer.put(PEER, CHUNK, [BODY])
    assert peer.connection_count == 2


async def test_connections_of_a_peer_that_is_gone_are_let_go(peer: Peer) -> None:
    async with writing() as writer:
        assert await writer.put(PEER, CHUNK, [BODY])
        before = len(os.listdir("/proc/self/fd"))
        peer.hang_up()
        # The same one under a new number, as if its store had been replaced.
        assert await writer.put(replace(PEER, number=PeerNumber(2)), CHUNK, [BODY])
        # One for the other, and the end of the peer, which lives in this process.
        assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_a_chunk_that_is_there_is_not_written(peer: Peer) -> None:
    peer.on_grant = lambda connection: say(connection, bytes([State.STORED]))
    async with writing() as writer:
        assert await writer.put(PEER, CHUNK, [BODY])
    assert not peer.path.exists()


@pytest.mark.parametrize("is_before", [True, False])
async def test_what_the_peer_refuses_is_raised_and_it_is_asked_again(
    peer: Peer, is_before: bool
) -> None:
    if is_before:
        peer.on_grant = refusal(Kind.NO_SPACE)
    else:
        peer.on_written = refusal(Kind.NO_SPACE)
    async with writing() as writer:
        for _ in range(2):
            with pytest.raises(MictlanError) as caught:
                await writer.put(PEER, CHUNK, [BODY])
            assert caught.value.kind is Kind.NO_SPACE
        assert writer.stored_count == 0
    assert peer.connection_count == 1


def bad_answers() -> dict[str, Say]:
    return {
        "unsupported": refusal(Kind.UNSUPPORTED),
        "nonsense": lambda connection: say(connection, b"\x63"),
        "no descriptor": lambda connection: say(connection, bytes([State.GRANTED])),
        "end": lambda connection: connection.shutdown(socket.SHUT_RDWR),
        "silence": silence,
    }


@pytest.mark.parametrize("answer", list(bad_answers()))
async def test_a_peer_that_cannot_do_it_is_left_alone_for_a_while(
    peer: Peer, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRANT_TIMEOUT_S", 0.2)
    peer.on_grant = bad_answers()[answer]
    async with writing() as writer:
        assert not await writer.put(PEER, CHUNK, [BODY])
        count = len(peer.requests)
        assert not await writer.put(PEER, CHUNK, [BODY])
        assert len(peer.requests) == count


async def test_a_peer_is_tried_again_after_a_while(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.on_grant = refusal(Kind.UNSUPPORTED)
    async with writing() as writer:
        assert not await writer.put(PEER, CHUNK, [BODY])
        peer.on_grant = peer.grant
        now_s = trio.current_time()
        monkeypatch.setattr(trio, "current_time", lambda: now_s + AVOID_S + 1)
        assert await writer.put(PEER, CHUNK, [BODY])


async def test_no_answer_after_the_bytes_were_written_is_an_error(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORE_TIMEOUT_S", 0.05)
    peer.on_written = silence
    async with writing() as writer:
        with pytest.raises(MictlanError) as caught:
            await writer.put(PEER, CHUNK, [BODY])
        assert caught.value.kind is Kind.TIMED_OUT


async def test_a_disk_that_is_full_leaves_it_to_the_network(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, pieces: object) -> None:
        del fd, pieces
        raise OSError(28, "full")

    monkeypatch.setattr(module, "write_all", full)
    before = len(os.listdir("/proc/self/fd"))
    async with writing() as writer:
        assert not await writer.put(PEER, CHUNK, [BODY])
    assert WRITTEN not in peer.requests
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.parametrize("boot_id", ["", "another"])
async def test_a_peer_of_another_machine_is_not_asked(peer: Peer, boot_id: str) -> None:
    async with writing(boot_id) as writer:
        assert not await writer.put(PEER, CHUNK, [BODY])
    assert peer.connection_count == 0


async def test_a_socket_that_another_user_has_bound_is_left_alone(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_trusted", lambda _: False)
    async with writing() as writer:
        assert not await writer.put(PEER, CHUNK, [BODY])
    assert peer.requests == []
