"""The peer as a process: what `mictlanfs server peer` runs, over real sockets and a real disk."""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mictlanfs import __version__, wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import boot_id
from mictlanfs.model import MIB
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.index import Index
from tests.support.metrics import samples_of
from tests.unit.server.peer.making import (
    LARGE,
    NOBODY,
    SOON_S,
    PeerProcess,
    digest_header,
    exchange,
    fake_router,
    files_below,
    make_chunk,
    path_of,
    peer_process,
    put_frame,
    spawn,
    wait_until,
)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[PeerProcess]:
    with peer_process(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def shared_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerProcess]:
    """A peer for tests that look at chunks of their own only."""
    with peer_process(tmp_path_factory.mktemp("peer")) as started:
        yield started


def get(peer: PeerProcess, chunk: StoredChunk) -> bytes:
    status, headers, body = peer.request("GET", path_of(chunk))
    assert status == 200
    assert headers[wire.HEADER_DIGEST] == chunk.digest.hex()
    return body


def ended(process: subprocess.Popen[bytes], log_path: Path) -> tuple[int, str]:
    """Exit status and log of a process that ends by itself."""
    return process.wait(SOON_S), log_path.read_text()


# --- chunks over HTTP ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 1000, LARGE, 5 * MIB, 16 * MIB])
def test_chunks_come_back_over_http(shared_peer: PeerProcess, length: int) -> None:
    chunk, body = make_chunk(length)
    assert shared_peer.put(chunk, body) == 201
    assert shared_peer.put(chunk, body) == 200
    assert get(shared_peer, chunk) == body
    status, headers, part = shared_peer.request(
        "GET", path_of(chunk), headers={"Range": "bytes=0-0"}
    )
    assert (status, part) == (206, body[:1])
    assert headers["content-range"] == f"bytes 0-0/{length}"
    assert shared_peer.request("DELETE", path_of(chunk))[0] == 204
    assert shared_peer.request("GET", path_of(chunk))[0] == 404


def test_metrics_tell_what_the_peer_holds_and_answered(shared_peer: PeerProcess) -> None:
    chunk, body = make_chunk(LARGE)
    shared_peer.put(chunk, body)
    get(shared_peer, chunk)
    status, _, text = shared_peer.request("GET", "/metrics")
    assert status == 200
    found = samples_of(text.decode())
    assert found[("mictlanfs_peer_chunks",)] >= 1
    assert found[("mictlanfs_peer_used_bytes",)] >= LARGE
    assert found[("mictlanfs_peer_capacity_bytes",)] > LARGE
    handler = ("handler", wire.Path.CHUNK + "{chunk_id}")
    put, taken = ("method", "PUT"), ("status", "2xx")
    assert found["http_requests_total", handler, put, taken] >= 1
    assert found["http_request_size_bytes_sum", handler] >= LARGE
    assert found["http_response_size_bytes_sum", handler] >= LARGE
    assert found[("process_resident_memory_bytes",)] > 1e6
    assert not any(chunk.id.hex() in str(key) for key in found)


def test_one_connection_serves_many_requests_good_and_bad(shared_peer: PeerProcess) -> None:
    chunk, body = make_chunk(LARGE)
    small, small_body = make_chunk(10)
    wrong = bytes(reversed(body))
    with closing(shared_peer.connect()) as connection:
        for _ in range(3):
            assert (
                exchange(connection, "PUT", path_of(chunk), wrong, digest_header(chunk))[0] == 500
            )
            assert exchange(connection, "PUT", path_of(chunk), body)[0] == 400
            assert exchange(connection, "GET", path_of(chunk))[0] == 404
        assert exchange(connection, "PUT", path_of(chunk), body, digest_header(chunk))[0] == 201
        assert exchange(connection, "HEAD", path_of(chunk))[2] == b""
        frame = put_frame([(small, small_body)])
        assert exchange(connection, "POST", wire.Path.FRAME_PUT, frame)[0] == 200
        assert exchange(connection, "GET", path_of(chunk))[2] == body
        assert exchange(connection, "GET", path_of(small))[2] == small_body


def test_a_body_cut_short_leaves_nothing(peer: PeerProcess, tmp_path: Path) -> None:
    data = tmp_path / "data"

    def files() -> list[Path]:
        # How far scrubbing has come is not of any chunk.
        return [path for path in files_below(data) if path.name != "scrub.json"]

    before = files()
    for length in (1000, 3 * MIB):
        chunk, body = make_chunk(length)
        head = (
            f"PUT {path_of(chunk)} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n"
            f"{wire.HEADER_DIGEST}: {chunk.digest.hex()}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", peer.port)) as connection:
            connection.sendall(head.encode() + body[:-1])
        assert peer.request("GET", path_of(chunk))[0] == 404
        assert peer.put(chunk, body) == 201
        assert peer.request("DELETE", path_of(chunk))[0] == 204
    wait_until(lambda: files() == before, "something is left")


def test_a_refused_upload_of_many_bytes_ends_the_connection(shared_peer: PeerProcess) -> None:
    chunk, _ = make_chunk(10)
    head = (
        f"PUT {path_of(chunk)} HTTP/1.1\r\nhost: x\r\ncontent-length: {1024 * MIB}\r\n"
        f"{wire.HEADER_DIGEST}: {chunk.digest.hex()}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", shared_peer.port), SOON_S) as connection:
        connection.sendall(head.encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        assert answer.getheader("connection") == "close"
        assert wire.decode_error(413, answer.read()).kind is Kind.TOO_LARGE
        answer.close()


def test_fifty_uploads_at_a_time(peer: PeerProcess) -> None:
    chunks = [make_chunk(2 * MIB if n % 2 else 500 + n, n) for n in range(50)]

    def upload(chunk_and_body: tuple[StoredChunk, bytes]) -> int:
        return peer.put(*chunk_and_body)

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(upload, chunks)) == [201] * 50
        assert list(threads.map(lambda c: get(peer, c[0]) == c[1], chunks)) == [True] * 50
    status = peer.status()
    assert status["chunk_count"] == 50
    assert status["used"] == sum(chunk.length for chunk, _ in chunks)


def test_paths_that_are_not_ours_are_json_errors(shared_peer: PeerProcess) -> None:
    status, headers, body = shared_peer.request("GET", "/mictlanfs/v9/chunks/x")
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert wire.decode_error(status, body).kind is Kind.PROTOCOL


def test_a_path_with_dots_reaches_no_file(shared_peer: PeerProcess) -> None:
    for path in ("../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2fformat"):
        status, _, body = shared_peer.request("GET", wire.Path.CHUNK + path)
        assert status == 400
        assert b"root:" not in body


# --- settings, status, life ----------------------------------------------------------------------


def test_health_and_status_tell_the_state(tmp_path: Path) -> None:
    with (
        fake_router() as router,
        peer_process(
            tmp_path, router=router.uri, peer_id="peer-a", zone="z1", capacity=100 * MIB
        ) as peer,
    ):
        peer.put(*make_chunk(1000))
        router.wait_for_announcements(2)
        assert peer.request("GET", wire.Path.HEALTH)[0] == 200
        status = peer.status()
        scrub = status.pop("scrub")
        assert (scrub["total_count"], scrub["total_bytes"], scrub["bad_count"]) == (1, 1000, 0)
        assert status == {
            "id": "peer-a",
            "version": __version__,
            "space_id": "space-1",
            "zone": "z1",
            "capacity": 100 * MIB,
            "used": 1000,
            "chunk_count": 1,
            "is_full": False,
            "backend": "file",
            "link": {"router": router.url, "is_registered": True, "number": 7, "error": ""},
            "store_id": router.announced[-1].store_id,
        }


def test_a_peer_serves_while_no_router_is_there(peer: PeerProcess) -> None:
    chunk, body = make_chunk(1000)
    assert peer.put(chunk, body) == 201
    link = peer.status()["link"]
    assert link["is_registered"] is False
    assert link["number"] is None
    wait_until(lambda: peer.status()["link"]["error"] != "", "no reason is given")
    warnings = [line for line in peer.log if line["level"] == "WARNING"]
    assert len(warnings) == 1


def test_what_is_announced_is_what_the_peer_holds(tmp_path: Path) -> None:
    with (
        fake_router() as router,
        peer_process(tmp_path, router=router.uri, zone="z", capacity=50 * MIB) as peer,
    ):
        router.wait_for_announcements(1)
        assert router.announced[0] == wire.PeerAnnounce(
            protocol=wire.PROTOCOL_VERSION,
            id="mictlanx-peer-0",
            url=f"http://127.0.0.1:{peer.port}",
            zone="z",
            capacity=50 * MIB,
            used=0,
            chunk_count=0,
            is_full=False,
            boot_id=boot_id(),
            space_id="",
            store_id=(tmp_path / "data" / "store").read_text("ascii").strip(),
        )
        peer.put(*make_chunk(1000))
        router.wait_for_announcements(len(router.announced) + 2)
        last = router.announced[-1]
        assert (last.used, last.chunk_count, last.space_id) == (1000, 1, "space-1")


def test_an_address_to_advertise_is_announced(tmp_path: Path) -> None:
    url = "http://storage-1.example:24000"
    with (
        fake_router() as router,
        peer_process(tmp_path, router=router.uri, advertise=url),
    ):
        router.wait_for_announcements(1)
        assert router.announced[0].url == url


def test_a_peer_that_listens_everywhere_announces_an_address_that_works(tmp_path: Path) -> None:
    with (
        fake_router() as router,
        peer_process(tmp_path, router=router.uri, host="0.0.0.0", insecure=True) as peer,
    ):
        router.wait_for_announcements(1)
        assert router.announced[0].url == f"http://127.0.0.1:{peer.port}"


def test_a_peer_that_stops_leaves_and_comes_back_with_its_space(tmp_path: Path) -> None:
    chunk, body = make_chunk(LARGE)
    with fake_router() as router:
        with peer_process(tmp_path, router=router.uri) as peer:
            router.wait_for_announcements(1)
            peer.put(chunk, body)
            wait_until(lambda: peer.status()["link"]["is_registered"], "not registered")
            assert peer.stop() == 0
            url = f"http://127.0.0.1:{peer.port}"
            assert router.left == [wire.PeerLeave("mictlanx-peer-0", url)]
        count = len(router.announced)
        with peer_process(tmp_path, router=router.uri) as peer:
            router.wait_for_announcements(count + 1)
            again = router.announced[count]
            assert (again.space_id, again.used, again.chunk_count) == ("space-1", LARGE, 1)
            assert get(peer, chunk) == body


def test_a_peer_finds_the_second_router_when_the_first_is_gone(tmp_path: Path) -> None:
    with fake_router() as router:
        uri = f"mictlanx://a@127.0.0.1:1,b@127.0.0.1:{router.port}/?protocol=http"
        with peer_process(tmp_path, router=uri) as peer:
            router.wait_for_announcements(3)
            assert peer.status()["link"]["router"] == router.url


def test_a_peer_that_is_refused_ends_with_one_line(tmp_path: Path) -> None:
    why = "peer mictlanx-peer-0 holds data of another space"
    refusal = MictlanError(Kind.CONFLICT, "announce", detail=why)
    with fake_router(refusal=refusal) as router:
        log_path = tmp_path / "log"
        process = spawn(log_path, data=tmp_path / "data", router=router.uri)
        status, log = ended(process, log_path)
    assert status == 2
    assert log.splitlines()[-1] == (
        f"the router at {router.url} refuses this peer: announce: {why}"
    )
    assert "Traceback" not in log
    assert router.left == []


def test_a_heartbeat_that_is_refused_ends_the_peer(tmp_path: Path) -> None:
    with fake_router() as router, peer_process(tmp_path, router=router.uri) as peer:
        router.wait_for_announcements(1)
        router.refusal = MictlanError(Kind.CONFLICT, detail="another peer has this id")
        assert peer.process.wait(SOON_S) == 2
        assert "another peer has this id" in peer.log_path.read_text().splitlines()[-1]


def test_a_peer_of_another_space_is_not_believed(tmp_path: Path) -> None:
    with fake_router() as router, peer_process(tmp_path, router=router.uri) as peer:
        router.wait_for_announcements(1)
        wait_until(lambda: peer.status()["space_id"] == "space-1", "no space")
        router.space_id = "space-2"
        assert peer.process.wait(SOON_S) == 2
    assert (tmp_path / "data" / "space").read_text() == "space-1\n"


def test_a_second_peer_in_the_same_folder_is_refused(peer: PeerProcess, tmp_path: Path) -> None:
    chunk, body = make_chunk(1000)
    peer.put(chunk, body)
    log_path = tmp_path / "second"
    status, log = ended(spawn(log_path, data=tmp_path / "data"), log_path)
    assert status == 2
    [line] = log.splitlines()
    assert str(tmp_path / "data") in line
    assert f"process {peer.process.pid}" in line
    assert "--data" in line
    assert get(peer, chunk) == body


def test_a_folder_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "format").write_text("mictlanfs-peer 99\n")
    log_path = tmp_path / "log"
    status, log = ended(spawn(log_path, data=tmp_path / "data"), log_path)
    assert status == 2
    [line] = log.splitlines()
    assert "newer" in line


def test_a_port_in_use_ends_the_peer_and_unlocks_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with peer_process(tmp_path / "a") as one:
        log_path = tmp_path / "log"
        status, log = ended(spawn(log_path, data=tmp_path / "b", port=one.port), log_path)
        assert status == 2
        assert f"127.0.0.1 port {one.port} is in use" in log.splitlines()[-1]


def test_a_lost_supervisor_stops_the_peer_in_order(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with (
        fake_router() as router,
        peer_process(tmp_path, router=router.uri, lifeline_fd=read_end) as peer,
    ):
        os.close(read_end)
        router.wait_for_announcements(2)
        os.close(write_end)
        assert peer.process.wait(SOON_S) == 0
        assert len(router.left) == 1


def test_an_upload_that_runs_is_finished_before_the_end(peer: PeerProcess, tmp_path: Path) -> None:
    chunk, body = make_chunk(3 * MIB)
    with closing(peer.connect()) as connection:
        connection.putrequest("PUT", path_of(chunk))
        connection.putheader("content-length", str(len(body)))
        connection.putheader(wire.HEADER_DIGEST, chunk.digest.hex())
        connection.endheaders()
        connection.send(body[:MIB])
        wait_until(lambda: bool(list((tmp_path / "data" / "temporary").iterdir())), "no upload")
        peer.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        connection.send(body[MIB:])
        assert connection.getresponse().status == 201
    assert peer.process.wait(SOON_S) == 0
    with peer_process(tmp_path) as again:
        assert get(again, chunk) == body


# --- crashes -------------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Puts chunks of all sizes until the peer is gone; notes what was acknowledged."""

    def __init__(self, peer: PeerProcess, seed: int) -> None:
        super().__init__()
        self._peer = peer
        self._draw = random.Random(seed)
        self.acknowledged: dict[StoredChunk, bytes] = {}

    def run(self) -> None:
        try:
            with closing(self._peer.connect()) as connection:
                while True:
                    self._put_one(connection)
        except (OSError, http.client.HTTPException):
            pass

    def _put_one(self, connection: http.client.HTTPConnection) -> None:
        seed = self._draw.randrange(2**30)
        if self._draw.random() < 0.5:
            chunks = [make_chunk(self._draw.randrange(1, 9000), seed + n) for n in range(8)]
            frame = put_frame(chunks)
            status, _, body = exchange(connection, "POST", wire.Path.FRAME_PUT, frame)
            answer, _ = wire.unframe(body, wire.FrameAnswer)
            assert all(result.error is None for result in answer.results)
        else:
            chunks = [make_chunk(self._draw.randrange(LARGE, 2 * MIB), seed)]
            [(chunk, body)] = chunks
            headers = digest_header(chunk)
            status, _, _ = exchange(connection, "PUT", path_of(chunk), body, headers)
        assert status in {200, 201}
        self.acknowledged.update(chunks)


def check_after_crash(folder: Path, acknowledged: dict[StoredChunk, bytes]) -> None:
    """Every chunk is there with its bytes, and the peer knows exactly what it holds."""
    with peer_process(folder, capacity=4096 * MIB) as peer:
        assert list((folder / "data" / "temporary").iterdir()) == []
        for chunk, body in acknowledged.items():
            assert get(peer, chunk) == body
        status = peer.status()
        assert not [line for line in peer.log if line["level"] == "ERROR"]
        assert peer.stop() == 0
    files = files_below(folder / "data" / "chunks")
    with closing(Index(folder / "data" / "index.sqlite")) as index:
        in_files = list(index.chunks_of_backend())
        assert len(in_files) == len(files)
        assert sum(chunk.length for chunk in in_files) == sum(f.stat().st_size for f in files)
        connection = index._loop_reader
        small = connection.execute("SELECT count(*), total(length(body)) FROM bodies").fetchone()
        assert status["chunk_count"] == len(files) + small[0]
        assert status["used"] == sum(chunk.length for chunk in in_files) + small[1]


def test_a_killed_peer_keeps_every_acknowledged_chunk(tmp_path: Path) -> None:
    acknowledged: dict[StoredChunk, bytes] = {}
    draw = random.Random(5)
    for round_number in range(5):
        with peer_process(tmp_path, capacity=4096 * MIB) as peer:
            writers = [Writer(peer, 10 * round_number + n) for n in range(3)]
            for writer in writers:
                writer.start()
            time.sleep(0.1 + draw.random() * 0.4)
            peer.kill()
            for writer in writers:
                writer.join(SOON_S)
                acknowledged.update(writer.acknowledged)
    assert acknowledged
    check_after_crash(tmp_path, acknowledged)


def test_deleted_chunks_stay_away_after_a_crash(tmp_path: Path) -> None:
    chunks = [make_chunk(length, length) for length in (1000, LARGE, MIB)]
    with peer_process(tmp_path) as peer:
        for chunk, body in chunks:
            peer.put(chunk, body)
        for chunk, _ in chunks:
            peer.request("DELETE", path_of(chunk))
        peer.kill()
    with peer_process(tmp_path) as peer:
        assert [peer.request("GET", path_of(chunk))[0] for chunk, _ in chunks] == [404] * 3
        assert peer.status()["used"] == 0


def test_a_lost_index_costs_the_small_chunks_only(tmp_path: Path) -> None:
    small, small_body = make_chunk(1000)
    large, large_body = make_chunk(LARGE)
    with peer_process(tmp_path) as peer:
        peer.put(small, small_body)
        peer.put(large, large_body)
        peer.stop()
    for path in (tmp_path / "data").glob("index.sqlite*"):
        path.unlink()
    with peer_process(tmp_path) as peer:
        assert get(peer, large) == large_body
        assert peer.request("GET", path_of(small))[0] == 404
        assert peer.status()["used"] == LARGE


def test_a_lost_file_is_reported_and_not_found(tmp_path: Path) -> None:
    chunk, body = make_chunk(LARGE)
    with peer_process(tmp_path) as peer:
        peer.put(chunk, body)
        peer.stop()
    for path in files_below(tmp_path / "data" / "chunks"):
        path.unlink()
    with peer_process(tmp_path) as peer:
        assert peer.request("GET", path_of(chunk))[0] == 404
        [error] = [line for line in peer.log if line["level"] == "ERROR"]
        assert error["key"] == chunk.id.hex()
        assert peer.put(chunk, body) == 201


# --- full disks ----------------------------------------------------------------------------------


def fill(peer: PeerProcess, length: int, seed: int) -> dict[StoredChunk, bytes]:
    """Put chunks until the peer refuses; what it took."""
    taken: dict[StoredChunk, bytes] = {}
    for number in range(10_000):
        chunk, body = make_chunk(length, seed + number)
        status, _, answer = peer.request("PUT", path_of(chunk), body, digest_header(chunk))
        if status != 201:
            assert status == 507
            assert wire.decode_error(status, answer).kind is Kind.NO_SPACE
            return taken
        taken[chunk] = body
    raise AssertionError("the peer takes for ever")


def check_full(peer: PeerProcess, taken: dict[StoredChunk, bytes]) -> None:
    """A full peer gives what it has, deletes, and takes again."""
    assert list((peer.log_path.parent / "data" / "temporary").iterdir()) == []
    for chunk, body in taken.items():
        assert get(peer, chunk) == body
    status = peer.status()
    assert status["is_full"]
    assert status["used"] == sum(chunk.length for chunk in taken)
    for chunk in taken:
        assert peer.request("DELETE", path_of(chunk))[0] == 204
    assert peer.status()["used"] == 0
    assert not peer.status()["is_full"]
    assert peer.put(*make_chunk(MIB, 99)) == 201


def test_a_peer_is_full_at_its_capacity(tmp_path: Path) -> None:
    with peer_process(tmp_path, capacity=8 * MIB) as peer:
        taken = fill(peer, MIB, 0)
        assert len(taken) == 8
        check_full(peer, taken)


def test_a_full_peer_is_announced(tmp_path: Path) -> None:
    with (
        fake_router() as router,
        peer_process(tmp_path, capacity=2 * MIB, router=router.uri) as peer,
    ):
        router.wait_for_announcements(1)
        assert not router.announced[0].is_full
        fill(peer, MIB, 0)
        router.wait_for_announcements(len(router.announced) + 2)
        assert router.announced[-1].is_full


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of that size, unmounted at the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir()
    options = f"size={size_bytes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_peer_leaves_the_reserve_of_a_small_disk_free(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 24 * MIB) as disk,
        peer_process(disk, reserve=8 * MIB) as peer,
    ):
        taken = {**fill(peer, MIB, 0), **fill(peer, LARGE, 1000)}
        left = os.statvfs(disk)
        assert 8 * MIB <= left.f_bavail * left.f_frsize < 10 * MIB
        check_full(peer, taken)


@pytest.mark.parametrize("length", [MIB, 50_000])
def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path, length: int) -> None:
    """Without a reserve, and with somebody else on the disk: ENOSPC comes from the system."""
    with small_disk(tmp_path / "disk", 24 * MIB) as disk:
        with peer_process(disk, capacity=1024 * MIB) as peer:
            early = fill_with(peer, length, 4)
            eat_space(disk / "other", leave=length // 2)
            for number in range(3):
                chunk, body = make_chunk(length, 500 + number)
                assert peer.put(chunk, body) == 507
            assert list((disk / "data" / "temporary").iterdir()) == []
            for chunk, body in early.items():
                assert get(peer, chunk) == body
            assert peer.status()["used"] == sum(chunk.length for chunk in early)
            (disk / "other").unlink()
            late = fill_with(peer, length, 4, seed=900)
            assert peer.stop() == 0
        with peer_process(disk) as peer:
            for chunk, body in {**early, **late}.items():
                assert get(peer, chunk) == body


def fill_with(
    peer: PeerProcess, length: int, count: int, seed: int = 0
) -> dict[StoredChunk, bytes]:
    chunks = dict(make_chunk(length, seed + number) for number in range(count))
    for chunk, body in chunks.items():
        assert peer.put(chunk, body) == 201
    return chunks


def eat_space(path: Path, leave: int) -> None:
    """Fill the disk but for `leave` bytes."""
    status = os.statvfs(path.parent)
    with path.open("wb") as file:
        file.write(bytes(status.f_bavail * status.f_frsize - leave))


# --- other ---------------------------------------------------------------------------------------


def test_without_fsync_the_peer_works_as_well(tmp_path: Path) -> None:
    with peer_process(tmp_path, fsync="never") as peer:
        for length in (1000, LARGE):
            chunk, body = make_chunk(length)
            assert peer.put(chunk, body) == 201
            assert get(peer, chunk) == body


def test_a_peer_reads_its_own_settings_strictly(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    process = spawn(log_path, data=tmp_path / "data", router=NOBODY, peer_id="a\nb")
    status, log = ended(process, log_path)
    assert status == 2
    assert "peer id" in log
    assert not (tmp_path / "data").exists()


def test_the_documentation_of_the_api_is_served(shared_peer: PeerProcess) -> None:
    status, _, body = shared_peer.request("GET", "/openapi.json")
    assert status == 200
    assert wire.Path.STATUS in json.loads(body)["paths"]


def test_a_router_that_comes_late_is_found(tmp_path: Path) -> None:
    with fake_router() as late:
        port = late.port
    with peer_process(tmp_path, router=f"mictlanx://r@127.0.0.1:{port}/?protocol=http") as peer:
        wait_until(lambda: peer.status()["link"]["error"] != "", "no failure yet")
        with fake_router(port=port) as router:
            router.wait_for_announcements(1)
            wait_until(lambda: peer.status()["link"]["is_registered"], "not registered")
