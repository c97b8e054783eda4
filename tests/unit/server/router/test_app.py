import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError, UsageError
from mictlanfs.model import ROOT_INODE, Extent, FileKind, InodeNumber, Node, PeerMap, Struct
from mictlanfs.wireobjects import MetadataSnapshot
from mictlanfs_server.router.app import create_app, run
from mictlanfs_server.router.settings import RouterSettings
from tests.contract.metadata.forms import PEERS, new_chunk
from tests.support.metrics import samples_of
from tests.unit.server.router.fakes import FakePeers, announce

T = TypeVar("T")
ROOT = Path(__file__).parents[4]


class Caller:
    """Sends messages to a router as its clients do."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def ask(self, path: str, message: Struct, answer: type[T]) -> T:
        response = await self.client.post(path, content=wire.encode(message))
        assert response.headers[wire.HEADER_PEER_MAP]
        if response.status_code != 200:
            raise wire.decode_error(response.status_code, response.content)
        return wire.decode(response.content, answer)

    async def open_session(self) -> wire.SessionGrant:
        request = wire.OpenSession(wire.PROTOCOL_VERSION, "host", 1, "test")
        return await self.ask(wire.Path.SESSION_OPEN, request, wire.SessionGrant)

    async def status(self) -> wire.SpaceStatus:
        response = await self.client.get(wire.Path.STATUS)
        return msgspec.json.decode(response.content, type=wire.SpaceStatus)


async def leased(caller: Caller, session: str, message: wire.Lookup) -> httpx.Response:
    return await caller.client.post(
        wire.Path.LOOKUP, content=wire.encode(message), headers={wire.HEADER_SESSION: session}
    )


@contextlib.asynccontextmanager
async def running(settings: RouterSettings) -> AsyncIterator[Caller]:
    app = create_app(settings, transport=FakePeers())
    async with app.running():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            yield Caller(client)


def with_router(folder: Path, scenario: Callable[[Caller], Awaitable[T]]) -> T:
    async def main() -> T:
        async with running(RouterSettings(folder)) as caller:
            return await scenario(caller)

    return asyncio.run(main())


def make(grant: wire.SessionGrant, index: int, parent: int, name: bytes) -> wire.MakeNode:
    ino = InodeNumber(grant.inodes.first + index)
    kind = FileKind.DIRECTORY if parent == ROOT_INODE else FileKind.FILE
    return wire.MakeNode(InodeNumber(parent), name, ino, kind, 0o755, 0, 0, 5)


# --- the protocol over HTTP ---


def test_life_of_a_file_over_http(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for number in PEERS:
            await caller.ask(
                wire.Path.PEER_ANNOUNCE, announce(number, space_id=""), wire.PeerWelcome
            )
        grant = await caller.open_session()
        chunk = new_chunk(10)
        bucket = make(grant, 0, ROOT_INODE, b"bucket")
        file = make(grant, 1, bucket.ino, b"file")
        extents = (Extent(0, 10, chunk.id, 0),)
        write = wire.WriteExtents(file.ino, extents, (chunk,), 10, 6)
        batch = wire.Commit(grant.session, grant.epoch, 1, (bucket, file, write), True)
        answer = await caller.ask(wire.Path.COMMIT, batch, wire.CommitAnswer)
        assert [result.error for result in answer.results] == [None] * 3

        lookup = wire.Lookup(bucket.ino, b"file", 16)
        node = await caller.ask(wire.Path.LOOKUP, lookup, Node)
        assert (node.attributes.size, node.chunks, node.extents) == (10, (chunk,), extents)
        page = await caller.ask(wire.Path.LIST, wire.ListDirectory(bucket.ino), wire.ListPage)
        assert [entry.name for entry in page.entries] == [b"file"]
        statfs = await caller.ask(wire.Path.STATFS, wire.Done(), wire.StatFs)
        assert statfs.chunk_count == 1
        end = wire.SessionRef(grant.session, grant.epoch)
        assert await caller.ask(wire.Path.SESSION_CLOSE, end, wire.Done) == wire.Done()
        with pytest.raises(MictlanError) as raised:
            await caller.ask(wire.Path.COMMIT, batch, wire.CommitAnswer)
        assert raised.value.kind is Kind.FENCED

    with_router(tmp_path, scenario)


def test_snapshot_is_asked_for_over_http_and_without_a_peer_that_is_said(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        with pytest.raises(MictlanError, match="no peer is up") as raised:
            await caller.ask(wire.Path.METADATA_SNAPSHOT, wire.Done(), MetadataSnapshot)
        assert raised.value.kind is Kind.UNAVAILABLE
        status = await caller.status()
        assert status.metadata is not None
        assert (status.metadata.interval_s, status.metadata.moment_s) == (300.0, None)
        assert "no peer is up" in status.metadata.error

    with_router(tmp_path, scenario)


def test_error_travels_with_kind_target_and_status(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        body = wire.encode(wire.Lookup(ROOT_INODE, b"none"))
        response = await caller.client.post(wire.Path.LOOKUP, content=body)
        assert response.status_code == HTTP_STATUS[Kind.NOT_FOUND]
        error = wire.decode_error(response.status_code, response.content)
        assert (error.kind, error.operation, error.target) == (Kind.NOT_FOUND, "lookup", "none")

    with_router(tmp_path, scenario)


def test_every_answer_names_the_version_of_the_peer_map(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        async def versions() -> set[str]:
            responses = [
                await caller.client.get(wire.Path.HEALTH),
                await caller.client.get(wire.Path.STATUS),
                await caller.client.get("/nowhere"),
                await caller.client.post(wire.Path.LOOKUP, content=b"wrong"),
                await caller.client.post(wire.Path.PEER_MAP, content=wire.encode(wire.Done())),
            ]
            return {response.headers[wire.HEADER_PEER_MAP] for response in responses}

        (before,) = await versions()
        await caller.ask(wire.Path.PEER_ANNOUNCE, announce(1, space_id=""), wire.PeerWelcome)
        (after,) = await versions()
        assert int(after) == int(before) + 1
        peer_map = await caller.ask(wire.Path.PEER_MAP, wire.Done(), PeerMap)
        assert peer_map.version == int(after)

    with_router(tmp_path, scenario)


def test_health_and_status_are_json_for_people(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        health = await caller.client.get(wire.Path.HEALTH)
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
        status = await caller.status()
        assert status.problems == ["no peer is up"]
        assert not status.is_healthy

    with_router(tmp_path, scenario)


def test_description_shows_json_and_messages(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        described = (await caller.client.get("/openapi.json")).json()
        paths = set(described["paths"])
        v4 = {path for path in paths if path.startswith("/api/v4/")}
        assert paths - v4 == {wire.Path.STATUS, wire.Path.HEALTH, "/health", "/metrics"}
        assert "/api/v4/buckets/{bucket_id}/metadata" in v4
        assert f"`{wire.Path.COMMIT}` | `Commit`(session" in described["info"]["description"]
        assert {"SpaceStatus", "PeerStatus"} <= set(described["components"]["schemas"])
        assert (await caller.client.get("/docs")).status_code == 200

    with_router(tmp_path, scenario)


def test_metrics_tell_the_state_of_the_space(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for number in PEERS:
            await caller.ask(
                wire.Path.PEER_ANNOUNCE, announce(number, space_id=""), wire.PeerWelcome
            )
        await caller.open_session()
        response = await caller.client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = samples_of(response.text)
        assert found["mictlanfs_peers", ("state", "up")] == len(PEERS)
        assert found["mictlanfs_peers", ("state", "down")] == 0
        assert found[("mictlanfs_sessions",)] == 1
        assert found[("mictlanfs_healthy",)] == 1
        assert found[("mictlanfs_commits_total",)] == 0
        assert found[("mictlanfs_chunks_under_replicated",)] == 0
        assert found[("process_resident_memory_bytes",)] > 1e6

    with_router(tmp_path, scenario)


# --- the data directory ---


def test_space_survives_a_restart_and_so_do_its_sessions(tmp_path: Path) -> None:
    async def begin(caller: Caller) -> tuple[wire.SessionGrant, str]:
        grant = await caller.open_session()
        batch = wire.Commit(
            grant.session, grant.epoch, 1, (make(grant, 0, ROOT_INODE, b"bucket"),), False
        )
        await caller.ask(wire.Path.COMMIT, batch, wire.CommitAnswer)
        return grant, (await caller.status()).space_id

    grant, space_id = with_router(tmp_path, begin)

    async def go_on(caller: Caller) -> None:
        status = await caller.status()
        assert (status.space_id, status.bucket_count) == (space_id, 1)
        assert [session.label for session in status.sessions] == ["test"]
        beat = wire.SessionRef(grant.session, grant.epoch)
        await caller.ask(wire.Path.SESSION_HEARTBEAT, beat, wire.Done)

    with_router(tmp_path, go_on)


def test_directory_in_use_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        before = sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.iterdir())
        with pytest.raises(UsageError, match="another router uses"):
            create_app(RouterSettings(tmp_path))
        after = sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.iterdir())
        assert after == before
        assert (await caller.status()).bucket_count == 0

    with_router(tmp_path, scenario)


def test_directory_is_free_after_the_lifespan_and_after_a_failed_start(tmp_path: Path) -> None:
    async def nothing(_: Caller) -> None:
        pass

    with_router(tmp_path, nothing)
    (tmp_path / "metadata.db").write_bytes(b"damaged" * 1000)
    for _ in range(2):
        with pytest.raises(UsageError, match="cannot be used"):
            create_app(RouterSettings(tmp_path))


def test_address_in_use_lets_go_of_the_directory(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = RouterSettings(tmp_path, port=taken.getsockname()[1])
        for _ in range(2):
            with pytest.raises(UsageError, match="in use"), kept_logging():
                run(settings)


@contextlib.contextmanager
def kept_logging() -> Iterator[None]:
    """`run` sets up the logging of a process; put that of the tests back."""
    import logging

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


# --- a process ---

PROGRAM = """
import sys
from pathlib import Path
from mictlanfs.errors import UsageError
from mictlanfs_server.router.app import run
from mictlanfs_server.router.settings import RouterSettings
try:
    run(RouterSettings(Path(sys.argv[1]), port=0))
except UsageError as error:
    sys.exit(f"{error}")
"""


def start(folder: Path) -> subprocess.Popen[str]:
    path = ":".join(str(ROOT / part) for part in (".", "server"))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_process_serves_until_it_is_told_to_stop_and_loses_nothing(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        try:
            assert process.stderr is not None
            port = None
            for line in process.stderr:
                # Events have fields in the place of a text.
                event = json.loads(line).get("message", "")
                if found := re.search(r"listening on 127\.0\.0\.1 port (\d+)", event):
                    port = int(found[1])
                if "startup complete" in event:
                    break
            assert port is not None

            async def use() -> None:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                    caller = Caller(client)
                    assert (await client.get(wire.Path.HEALTH)).json() == {"status": "ok"}
                    grant = await caller.open_session()
                    bucket = make(grant, 0, ROOT_INODE, b"bucket")
                    batch = wire.Commit(grant.session, grant.epoch, 1, (bucket,), False)
                    await caller.ask(wire.Path.COMMIT, batch, wire.CommitAnswer)

            asyncio.run(use())
            second = start(tmp_path)
            _, complaint = second.communicate(timeout=20)
            assert second.returncode == 1
            assert complaint.strip().splitlines()[-1].startswith("another router uses")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()

    async def look(caller: Caller) -> int:
        return (await caller.status()).bucket_count

    assert with_router(tmp_path, look) == 1


# --- leases ---


def test_read_with_a_session_is_a_frame_with_its_leases(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(RouterSettings(tmp_path)) as caller:
            request = wire.OpenSession(wire.PROTOCOL_VERSION, "host", 1, "test", leases=True)
            grant = await caller.ask(wire.Path.SESSION_OPEN, request, wire.SessionGrant)
            assert grant.lease_ttl_s == 10
            session = f"{grant.session}:{grant.epoch}"
            found = await leased(caller, session, wire.Lookup(ROOT_INODE, b"."))
            assert (found.status_code, found.headers[wire.HEADER_GRANTS]) == (200, "1")
            grants, body = wire.unframe(found.content, wire.Grants)
            assert ROOT_INODE in grants.keys
            assert wire.decode(body, Node).key == ROOT_INODE
            missing = await leased(caller, session, wire.Lookup(ROOT_INODE, b"none"))
            assert (missing.status_code, missing.headers[wire.HEADER_GRANTS]) == (404, "1")
            later, body = wire.unframe(missing.content, wire.Grants)
            assert later.keys == (ROOT_INODE,)
            assert later.stamp > grants.stamp > grant.incarnation
            assert wire.decode_error(404, body).kind is Kind.NOT_FOUND
            fenced = await leased(caller, f"{grant.session}:77", wire.Lookup(ROOT_INODE, b"."))
            assert fenced.status_code == HTTP_STATUS[Kind.FENCED]
            (status,) = (await caller.status()).sessions
            assert (status.lease_count, status.waited_count) == (1, 0)

    asyncio.run(scenario())
