"""Chunks, requests and peer processes to test with."""

import asyncio
import functools
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ParamSpec

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import MIB, ChunkId, PeerNumber
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.backends.file import FileBackend
from mictlanfs_server.peer.capacity import Capacity
from mictlanfs_server.peer.index import Index
from mictlanfs_server.peer.store import ChunkStore

P = ParamSpec("P")

LARGE = 64 * 1024
SOON_S = 10.0


def on_asyncio(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test on asyncio, where the servers run; the others run on trio."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def make_chunk(
    length: int, seed: int = 0, chunk_id: ChunkId | None = None
) -> tuple[StoredChunk, bytes]:
    """A chunk and its bytes, which repeat no block."""
    body = random.Random(seed).randbytes(length)
    return StoredChunk(chunk_id or new_chunk_id(), length, digest_of([body])), body


async def pieces_of(body: bytes, size: int = MIB) -> AsyncIterator[bytes]:
    """The bytes as a network would bring them."""
    for start in range(0, len(body), size):
        await asyncio.sleep(0)
        yield body[start : start + size]


async def unreadable() -> AsyncIterator[bytes]:
    """A stream that must not be read."""
    for _ in range(1):
        raise AssertionError("the stream was read")
    yield b""


@contextmanager
def open_store(
    folder: Path, capacity: int | None = 64 * MIB, reserve: int = 0
) -> Iterator[ChunkStore]:
    """A store on files of `folder`; nothing is reconciled."""
    backend = FileBackend(folder)
    index = Index(folder / "index.sqlite")
    limits = Capacity(capacity, reserve, backend.free_bytes, lambda: index.totals.used_bytes)
    store = ChunkStore(index, backend, limits)
    try:
        yield store
    finally:
        store.close()


def files_below(folder: Path) -> list[Path]:
    """Every file, at any depth."""
    return [path for path in folder.rglob("*") if path.is_file()]


# --- a router ------------------------------------------------------------------------------------


@dataclass
class FakeRouter:
    """Welcomes peers, or answers what it is told to.

    Attributes:
        announced: what peers said, in order; `left` likewise.
        refusal: answered instead of a welcome while it is set.
    """

    space_id: str = "space-1"
    heartbeat_s: float = 0.05
    announced: list[wire.PeerAnnounce] = field(default_factory=list)
    left: list[wire.PeerLeave] = field(default_factory=list)
    refusal: MictlanError | None = None
    port: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def uri(self) -> str:
        return f"mictlanx://router@127.0.0.1:{self.port}/?protocol=http"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, body: bytes) -> bytes:
        with self._changed:
            try:
                return self._answer(path, body)
            finally:
                self._changed.notify_all()

    def wait_for_announcements(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.announced) >= count, SOON_S)

    def _answer(self, path: str, body: bytes) -> bytes:
        if path == wire.Path.PEER_ANNOUNCE:
            self.announced.append(wire.decode(body, wire.PeerAnnounce))
            if self.refusal is not None:
                raise self.refusal
            return wire.encode(wire.PeerWelcome(PeerNumber(7), self.space_id, self.heartbeat_s))
        if path == wire.Path.PEER_LEAVE:
            self.left.append(wire.decode(body, wire.PeerLeave))
            return wire.encode(wire.Done())
        raise MictlanError(Kind.NOT_FOUND, path)


@contextmanager
def fake_router(**fields: Any) -> Iterator[FakeRouter]:
    """A router that listens."""
    router = FakeRouter(**fields)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            try:
                status, answer = 200, router.answer(self.path, body)
            except MictlanError as error:
                status, answer = 409, wire.encode_error(error)
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", router.port), Handler) as server:
        server.daemon_threads = True
        router.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield router
        finally:
            server.shutdown()
            thread.join()


# --- a peer process ------------------------------------------------------------------------------

_PROGRAM = """
import json, sys
from pathlib import Path
from mictlanfs.errors import MictlanError
from mictlanfs_server.peer.app import run
from mictlanfs_server.peer.settings import PeerSettings
settings = json.loads(sys.argv[1])
settings["data"] = Path(settings["data"])
try:
    run(PeerSettings(**settings))
except MictlanError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""
NOBODY = "mictlanx://nobody@127.0.0.1:1/?protocol=http"


@dataclass
class PeerProcess:
    """A peer that runs as it does in production."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON_S)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = self.connect()
        try:
            return exchange(connection, method, path, body, headers)
        finally:
            connection.close()

    def put(self, chunk: StoredChunk, body: bytes) -> int:
        return self.request("PUT", path_of(chunk), body, digest_header(chunk))[0]

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.request("GET", wire.Path.STATUS)[2])
        return answer

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SOON_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SOON_S)

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Mapping[str, str], bytes]:
    """One request on a connection that stays open."""
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def path_of(chunk: StoredChunk) -> str:
    return wire.Path.CHUNK + chunk.id.hex()


def digest_header(chunk: StoredChunk) -> dict[str, str]:
    return {wire.HEADER_DIGEST: chunk.digest.hex()}


def put_frame(chunks: Sequence[tuple[StoredChunk, bytes]]) -> bytes:
    """The body of a frame that stores `chunks`."""
    header = wire.FramePut(
        tuple(wire.FrameChunk(chunk.id, chunk.length, chunk.digest) for chunk, _ in chunks)
    )
    return b"".join(wire.frame(header, [body for _, body in chunks]))


def spawn(log_path: Path, **settings: Any) -> subprocess.Popen[bytes]:
    """Start a peer process; its log goes to a file."""
    settings = {"router": NOBODY, "port": 0, "reserve": 0, **settings}
    settings["data"] = str(settings["data"])
    fds = [fd] if (fd := settings.get("lifeline_fd")) is not None else []
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(settings)],
            stderr=log,
            stdout=log,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )


def wait_until(is_so: Callable[[], bool], why: str) -> None:
    """Look often at what another process does; there is no event to wait for."""
    give_up_at = time.monotonic() + SOON_S
    while not is_so():
        assert time.monotonic() < give_up_at, why
        time.sleep(0.01)


@contextmanager
def peer_process(folder: Path, **settings: Any) -> Iterator[PeerProcess]:
    """A peer with its data in `folder`/data, killed at the end."""
    log_path = folder / "log"
    process = spawn(log_path, data=folder / "data", **settings)
    try:
        peer = PeerProcess(process, 0, log_path)
        wait_until(lambda: _is_up(peer), f"no peer: {log_path.read_text()}")
        yield peer
    finally:
        process.kill()
        process.wait(SOON_S)


def _is_up(peer: PeerProcess) -> bool:
    assert peer.process.poll() is None, peer.log_path.read_text()
    for line in peer.log:
        if line["message"].startswith("listening on"):
            peer.port = int(line["message"].rsplit(" ", 1)[1])
        if line["message"] == "Application startup complete.":
            return True
    return False
