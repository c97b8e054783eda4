from pathlib import Path

import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from tests.contract.metadata.forms import kind_of, new_chunk
from tests.unit.server.router.fakes import announce
from tests.unit.server.router.parts import Parts, run_parts


def commit_of(grant: wire.SessionGrant, number: int = 1) -> wire.Commit:
    ino = InodeNumber(grant.inodes.first)
    op = wire.MakeNode(ROOT_INODE, b"bucket", ino, FileKind.DIRECTORY, 0o755, 0, 0, 5)
    return wire.Commit(grant.session, grant.epoch, number, (op,), False)


def ref_of(grant: wire.SessionGrant) -> wire.SessionRef:
    return wire.SessionRef(grant.session, grant.epoch)


# --- sessions ---


def test_grant_holds_all_a_client_needs_to_begin(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1)
        grant = await parts.open_session()
        assert (grant.space_id, grant.ttl_s, grant.heartbeat_s) == (parts.store.space_id, 30, 5)
        assert grant.root == await parts.store.root()
        assert grant.peer_map == parts.peer_map.peer_map
        assert grant.inodes.count == wire.INODE_BATCH_COUNT
        answer = await parts.handlers.commit(commit_of(grant))
        assert wire.decode(answer, wire.CommitAnswer).results[0].error is None

    run_parts(tmp_path, scenario)


def test_client_of_another_protocol_is_told_both_versions(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        with pytest.raises(MictlanError) as raised:
            await parts.handlers.open_session(wire.OpenSession(99, "host", 1, "label"))
        assert raised.value.kind is Kind.PROTOCOL
        for version in ("99", str(wire.PROTOCOL_VERSION)):
            assert f"version {version}" in raised.value.detail
        assert parts.sessions.statuses() == []

    run_parts(tmp_path, scenario)


@pytest.mark.parametrize(
    "change", [{"pid": -1}, {"pid": 2**31}, {"host": "h" * 2000}, {"label": "l" * 2000}]
)
def test_impossible_client_is_invalid(tmp_path: Path, change: dict[str, object]) -> None:
    request = wire.OpenSession(wire.PROTOCOL_VERSION, "host", 1, "label")

    async def scenario(parts: Parts) -> None:
        wrong = msgspec.structs.replace(request, **change)
        assert await kind_of(parts.handlers.open_session(wrong)) is Kind.INVALID
        assert await parts.store.sessions() == []

    run_parts(tmp_path, scenario)


def test_every_request_of_a_session_is_a_sign_of_life(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        grant = await parts.open_session()
        requests = (
            lambda: parts.handlers.heartbeat(ref_of(grant)),
            lambda: parts.handlers.commit(commit_of(grant)),
            lambda: parts.handlers.take_inodes(wire.TakeInodes(grant.session, grant.epoch, 1)),
        )
        for request in requests:
            parts.clock.advance(20)
            await request()
            parts.clock.advance(20)
            assert parts.sessions.expired() == []
            await parts.handlers.heartbeat(ref_of(grant))

    run_parts(tmp_path, scenario)


def test_closed_session_is_fenced_and_closing_again_is_no_error(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        grant = await parts.open_session()
        # Late, from a session that was replaced: must not end this one.
        await parts.handlers.close_session(wire.SessionRef(grant.session, grant.epoch - 1))
        await parts.handlers.heartbeat(ref_of(grant))
        await parts.handlers.close_session(ref_of(grant))
        await parts.handlers.close_session(ref_of(grant))
        requests = (
            parts.handlers.heartbeat(ref_of(grant)),
            parts.handlers.commit(commit_of(grant)),
            parts.handlers.take_inodes(wire.TakeInodes(grant.session, grant.epoch, 1)),
        )
        assert {await kind_of(request) for request in requests} == {Kind.FENCED}
        assert await parts.store.sessions() == []

    run_parts(tmp_path, scenario)


# --- the space ---


def test_space_is_what_fits_with_the_default_copies(tmp_path: Path) -> None:
    async def statfs(parts: Parts) -> tuple[int, int]:
        answer = await parts.handlers.statfs(wire.Done())
        return answer.capacity, answer.free

    async def scenario(parts: Parts) -> None:
        assert await statfs(parts) == (0, 0)
        await parts.announce(1, used=100)
        assert await statfs(parts) == (1000, 900)
        await parts.announce(2)
        assert await statfs(parts) == (1000, 950)
        await parts.announce(3)
        assert await statfs(parts) == (1500, 1450)
        full = announce(3, space_id=parts.store.space_id, is_full=True)
        await parts.handlers.announce(full)
        assert await statfs(parts) == (1500, 950)
        await parts.handlers.leave(wire.PeerLeave("peer-1", "http://127.0.0.1:24001"))
        assert await statfs(parts) == (1000, 500)

    run_parts(tmp_path, scenario)


def test_counts_of_the_space(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        await parts.announce(1, 2)
        await parts.file_of(new_chunk(), new_chunk())
        answer = await parts.handlers.statfs(wire.Done())
        assert (answer.inode_count, answer.chunk_count) == (3, 2)

    run_parts(tmp_path, scenario)


# --- peers ---


def test_peer_is_welcomed_with_number_space_and_heartbeat(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        welcome = await parts.handlers.announce(announce(1, space_id=""))
        assert welcome == wire.PeerWelcome(welcome.number, parts.store.space_id, 1.0)
        assert (await parts.store.peer_map()).peers[0].number == welcome.number
        peer_map = await parts.handlers.read_peer_map(wire.Done())
        assert [peer.id for peer in peer_map.peers] == ["peer-1"]

    run_parts(tmp_path, scenario)


def test_refused_peer_is_not_in_the_map(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> None:
        stranger = announce(1, space_id="another space")
        assert await kind_of(parts.handlers.announce(stranger)) is Kind.CONFLICT
        assert (await parts.handlers.read_peer_map(wire.Done())).peers == ()

    run_parts(tmp_path, scenario)


# --- routes ---


def test_every_message_path_of_the_protocol_has_one_route(tmp_path: Path) -> None:
    async def scenario(parts: Parts) -> list[str]:
        handlers = parts.handlers
        reads = [route.path for route in handlers.reads()]
        return [*reads, *(route.path for route in handlers.routes())]

    paths = run_parts(tmp_path, scenario)
    all_paths = {value for name, value in vars(wire.Path).items() if name.isupper()}
    json_paths = {wire.Path.STATUS, wire.Path.HEALTH}
    of_peers = {wire.Path.CHUNK, wire.Path.FRAGMENT_MAKE}
    of_peers |= {path for path in all_paths if "/frames/" in path}
    of_peers |= {wire.Path.VERIFY, wire.Path.HELD, wire.Path.SCRUB}
    of_peers |= {wire.Path.OBJECT, wire.Path.OBJECT_LIST}
    # Answered by the keeper of snapshots; see test_app.
    of_keeper = {wire.Path.METADATA_SNAPSHOT}
    assert sorted(paths) == sorted(all_paths - json_paths - of_peers - of_keeper)
