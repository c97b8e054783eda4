import asyncio
import dataclasses
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.snapshotnumbers import SNAPSHOT_SPAN
from mictlanfs_server.metadata.copies import PeerBook
from mictlanfs_server.metadata.sqlite import SqliteStore
from mictlanfs_server.metasnapshots import restoring
from mictlanfs_server.metasnapshots.form import MANIFEST_PREFIX, PIECE_PREFIX
from mictlanfs_server.metasnapshots.restoring import Report, restore
from mictlanfs_server.metasnapshots.sources import Identity, PeerSource
from tests.support.objectpeers import ObjectPeers, Peer
from tests.unit.server.metasnapshots.rig import Rig, with_rig

NOW_NS = 1_700_000_000_000_000_000 + 10_000 * 10**9


class Source(PeerSource):
    """A peer of the test: its status comes from here."""

    def __init__(self, peers: ObjectPeers, peer: Peer, space_id: str) -> None:
        super().__init__(peers, peer.url)
        info = peer.info
        self.found = Identity(space_id, info.id, info.number, info.url, info.zone)

    async def identity(self) -> Identity:
        return self.found


class Lost:
    """A space whose router is gone: its peers, and what the command says meanwhile."""

    def __init__(self, folder: Path, peers: ObjectPeers, space_id: str) -> None:
        self.folder = folder
        self.peers = peers
        self.sources = [Source(peers, peer, space_id) for peer in peers.peers]
        self.said: list[str] = []
        self.on_said: Callable[[str], None] = lambda _sentence: None

    def say(self, sentence: str) -> None:
        self.said.append(sentence)
        self.on_said(sentence)

    def restore(self, *sources: Source, until_ns: int | None = None, force: bool = False) -> Report:
        return asyncio.run(
            restore(
                sources or self.sources,
                self.folder,
                self.say,
                until_ns=until_ns,
                is_forced=force,
                now_ns=lambda: NOW_NS,
            )
        )

    def fails(self, *sources: Source) -> MictlanError:
        with pytest.raises(MictlanError) as raised:
            self.restore(*sources)
        assert not (self.folder / "metadata.db").exists()
        assert {path.name for path in self.folder.glob("*")} <= {"router.lock"}
        return raised.value

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.folder / "metadata.db")) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def lost(tmp_path: Path, peers: ObjectPeers) -> Lost:
    """Files `one` and `two`, a snapshot, then `three`."""

    async def scenario(rig: Rig) -> str:
        await rig.write(b"one")
        await rig.write(b"two")
        await rig.keeper.snapshot()
        rig.clock.advance(100)
        await rig.write(b"three")
        return rig.store.space_id

    space_id = with_rig(tmp_path / "router", peers, scenario)
    shutil.rmtree(tmp_path / "router")
    peers.requests.clear()
    return Lost(tmp_path / "router", peers, space_id)


def test_everything_up_to_the_snapshot_is_back(lost: Lost) -> None:
    report = lost.restore()
    assert report.is_whole
    assert (report.missing_chunks, report.elsewhere_chunks, report.damage) == (0, 0, [])
    assert report.peers_not_asked == []
    names = [row[0] for row in lost.rows("SELECT name FROM dentry WHERE parent > 1 ORDER BY name")]
    assert names == [b"one", b"two"]
    assert lost.said == []
    # The peers are as they were.
    assert {method for method, _ in lost.peers.requests} == {"GET", "POST"}


def test_one_peer_is_enough_and_the_others_are_named(lost: Lost) -> None:
    report = lost.restore(lost.sources[0])
    assert report.is_whole
    assert report.peers_not_asked == ["peer-2", "peer-3"]


class Ailing(Source):
    """A peer that says who it is, and then not much more.

    Attributes:
        routers: of its answers, one after the other; behind them it does not answer.
    """

    routers: list[str]

    async def identity(self) -> Identity:
        if not self.routers:
            raise MictlanError(Kind.UNAVAILABLE, "ask peer", self.name)
        return dataclasses.replace(self.found, router=self.routers.pop(0))

    async def manifests(self) -> list[str]:
        raise MictlanError(Kind.UNAVAILABLE, "list objects", self.name)


@pytest.mark.parametrize("routers", [[""], ["http://router:1"]])
def test_a_peer_that_fails_on_the_way_does_not_keep_others_from_giving_all(
    lost: Lost, routers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "_ASK_AGAIN_S", 0.0)
    ailing = Ailing(lost.peers, lost.peers.peers[0], lost.sources[0].found.space_id)
    ailing.routers = list(routers)
    report = lost.restore(ailing, *lost.sources[1:])
    assert report.is_whole
    assert any("snapshots on" in sentence and ailing.name in sentence for sentence in lost.said)
    assert any("any more" in sentence for sentence in lost.said) is (routers != [""])
    alone = Ailing(lost.peers, lost.peers.peers[0], ailing.found.space_id)
    alone.routers = [""]
    shutil.rmtree(lost.folder)
    assert lost.fails(alone).kind is Kind.NOT_FOUND


def test_what_only_peers_may_have_that_were_not_asked_is_not_called_missing(lost: Lost) -> None:
    report = lost.restore(lost.sources[2])
    assert (report.missing_chunks, report.elsewhere_chunks, report.is_whole) == (0, 2, True)
    assert lost.rows("SELECT count(*) FROM replica")[0][0] == 4


def test_the_database_can_be_served_and_hands_nothing_out_twice(lost: Lost) -> None:
    lost.restore()

    async def main() -> None:
        store = SqliteStore(lost.folder / "metadata.db", lambda: NOW_NS)
        try:
            await store.start()
            first = (await store.take_inodes(1)).first
            # Ahead of the lost one, and within what snapshots have numbers for.
            assert 10**8 < first < SNAPSHOT_SPAN
            # Only the one that stands for all who are gone.
            (guard,) = await store.sessions()
            assert guard.leases
            opened = await store.open_session(wire.OpenSession(wire.PROTOCOL_VERSION, "h", 1, "t"))
            assert opened.epoch > guard.epoch > 10**12
            root = await store.root()
            assert root.version > 10**12
            assert root.content_version > 10**12
            assert (await store.peer_map()).version > 10**12
            assert store.peer_number_min > 1000
        finally:
            await store.close()

    asyncio.run(main())


def test_a_second_restore_is_ahead_of_the_first(tmp_path: Path, lost: Lost) -> None:
    def numbers(now_ns: int, folder: Path) -> list[int]:
        work = restore(lost.sources, folder, lost.said.append, now_ns=lambda: now_ns)
        asyncio.run(work)
        with closing(sqlite3.connect(folder / "metadata.db")) as connection:
            query = "SELECT value FROM meta WHERE name IN ('next_epoch', 'peer_map_version')"
            versions = "SELECT version FROM inode UNION ALL SELECT content_version FROM inode"
            rows = [*connection.execute(query), *connection.execute(versions)]
            return [value for (value,) in rows]

    first = numbers(NOW_NS, tmp_path / "first")
    second = numbers(NOW_NS + 10**9, tmp_path / "second")
    assert all(later - earlier >= 10**9 for earlier, later in zip(first, second, strict=True))


def test_chunks_are_found_where_they_are_now(lost: Lost) -> None:
    one, _, third = lost.peers.peers
    moved = next(iter(one.chunks.held))
    third.chunks.held[moved] = one.chunks.held.pop(moved)
    assert lost.restore().is_whole
    query = "SELECT peer FROM replica WHERE hex(chunk) = '%s' ORDER BY peer"
    assert lost.rows(query % moved.hex().upper()) == [(2,), (3,)]


def test_a_chunk_of_other_bytes_does_not_count(lost: Lost) -> None:
    for peer in lost.peers.peers[:2]:
        for chunk_id, chunk in peer.chunks.held.items():
            peer.chunks.held[chunk_id] = msgspec.structs.replace(chunk, digest=b"x" * 32)
    assert lost.restore().missing_chunks == 2


def test_files_that_lack_chunks_are_told_by_path(lost: Lost) -> None:
    chunk_id = min(lost.peers.peers[0].chunks.held)
    for peer in lost.peers.peers[:2]:
        del peer.chunks.held[chunk_id]
    report = lost.restore()
    assert (report.missing_chunks, report.missing_paths) == (1, [b"bucket/one"])
    assert not report.is_whole
    # Its replicas stay: a peer may come back with it.
    assert lost.rows("SELECT count(*) FROM replica") == [(4,)]


def test_a_peer_that_joined_after_the_snapshot_keeps_its_number(lost: Lost) -> None:
    identity = lost.sources[2].found
    lost.sources[2].found = Identity(identity.space_id, "new", 7, "http://127.0.0.1:1", "z")
    one, _, third = lost.peers.peers
    moved = next(iter(one.chunks.held))
    third.chunks.held[moved] = one.chunks.held.pop(moved)
    assert lost.restore().is_whole
    assert lost.rows("SELECT number, id, url FROM peer WHERE id = 'new'") == [
        (7, "new", "http://127.0.0.1:1")
    ]
    assert lost.rows("SELECT count(*) FROM replica WHERE peer = 7") == [(1,)]


def test_a_peer_is_taken_for_nobody_else_when_its_number_is_taken(lost: Lost) -> None:
    identity = lost.sources[2].found
    lost.sources[2].found = Identity(identity.space_id, "new", 1, "http://127.0.0.1:1", "z")
    lost.restore()
    assert lost.rows("SELECT number FROM peer WHERE id = 'new'") == [(4,)]


def test_a_source_without_a_name_counts_but_changes_no_replica(lost: Lost) -> None:
    for source in lost.sources:
        source.found = Identity(source.found.space_id, "", 0, "", "")
    report = lost.restore()
    assert (report.missing_chunks, report.elsewhere_chunks) == (0, 0)
    assert lost.rows("SELECT count(*) FROM replica") == [(4,)]


# --- snapshots that are not whole ---


def damage(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(body)


def test_damaged_and_missing_pieces_come_from_another_peer(lost: Lost) -> None:
    one, two, _ = lost.peers.peers
    for name in one.names(PIECE_PREFIX):
        damage(one.object_folder / name)
    for name in two.names(PIECE_PREFIX):
        (two.object_folder / name).unlink()
    damage(one.object_folder / one.names(MANIFEST_PREFIX)[0])
    assert lost.restore().is_whole


def test_a_torn_upload_does_not_count(lost: Lost) -> None:
    """As when the router died before the manifest: pieces are there that nothing names."""
    before = lost.restore().moment_ns
    shutil.rmtree(lost.folder)
    for peer in lost.peers.peers:
        (peer.object_folder / (PIECE_PREFIX + "1" * 64)).write_bytes(b"of a newer one")
    assert lost.restore().moment_ns == before


def test_without_a_whole_snapshot_the_one_before_is_taken_and_that_is_told(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> tuple[str, int, int]:
        await rig.write(b"one")
        first = await rig.keeper.snapshot()
        old = {name for peer in peers.peers for name in peer.names(PIECE_PREFIX)}
        rig.clock.advance(100)
        await rig.write(b"two")
        second = await rig.keeper.snapshot()
        for peer in peers.peers:
            for name in set(peer.names(PIECE_PREFIX)) - old:
                (peer.object_folder / name).unlink()
        return rig.store.space_id, first.moment_ns, second.moment_ns

    space_id, first_ns, _ = with_rig(tmp_path / "router", peers, scenario)
    shutil.rmtree(tmp_path / "router")
    lost = Lost(tmp_path / "router", peers, space_id)
    report = lost.restore()
    assert report.moment_ns == first_ns
    (line,) = lost.said
    assert "is not whole" in line


def test_an_older_snapshot_can_be_chosen(tmp_path: Path, peers: ObjectPeers) -> None:
    async def scenario(rig: Rig) -> tuple[str, list[int]]:
        moments = []
        for name in (b"one", b"two", b"three"):
            await rig.write(name)
            moments.append((await rig.keeper.snapshot()).moment_ns)
            rig.clock.advance(100)
        return rig.store.space_id, moments

    space_id, moments = with_rig(tmp_path / "router", peers, scenario)
    shutil.rmtree(tmp_path / "router")
    lost = Lost(tmp_path / "router", peers, space_id)
    report = lost.restore(until_ns=moments[1] + 5)
    assert report.moment_ns == moments[1]
    assert lost.rows("SELECT count(*) FROM dentry WHERE parent > 1") == [(2,)]


def test_no_snapshot_at_all(tmp_path: Path, peers: ObjectPeers) -> None:
    lost = Lost(tmp_path / "router", peers, "space")
    assert lost.fails().kind is Kind.NOT_FOUND


def test_nothing_whole_is_an_error_and_leaves_nothing(lost: Lost) -> None:
    for peer in lost.peers.peers:
        for name in peer.names(PIECE_PREFIX):
            damage(peer.object_folder / name)
    assert lost.fails().kind is Kind.CORRUPT


def test_a_peer_that_does_not_answer_is_left_out(lost: Lost) -> None:
    class Silent(Source):
        async def identity(self) -> Identity:
            raise MictlanError(Kind.UNAVAILABLE)

    silent = Silent(lost.peers, lost.peers.peers[0], "")
    assert lost.restore(silent, *lost.sources[1:]).is_whole
    assert "left out" in lost.said[0]
    shutil.rmtree(lost.folder)
    assert lost.fails(silent).kind is Kind.UNAVAILABLE


def test_a_peer_whose_list_breaks_off_makes_nothing_missing(lost: Lost) -> None:
    def watch(method: str, path: str) -> None:
        if path == wire.Path.HELD:
            raise MictlanError(Kind.TIMED_OUT)

    lost.peers.watch = watch
    report = lost.restore()
    assert (report.missing_chunks, report.elsewhere_chunks) == (0, 2)
    assert report.peers_not_asked == ["peer-1", "peer-2", "peer-3"]
    assert len(lost.said) == 3


# --- what is refused ---


@pytest.mark.parametrize("name", ["metadata.db", "anything", "metadata.db-wal"])
def test_a_directory_that_is_not_empty_is_refused_unchanged(lost: Lost, name: str) -> None:
    lost.folder.mkdir()
    (lost.folder / name).write_bytes(b"precious")
    with pytest.raises(UsageError, match="not empty"):
        lost.restore()
    assert [path.name for path in lost.folder.iterdir()] == [name]
    assert (lost.folder / name).read_bytes() == b"precious"


def test_what_a_restore_that_was_killed_left_is_replaced(lost: Lost) -> None:
    lost.folder.mkdir()
    for name in ("metadata.db.unfinished", "metadata.db.unfinished-wal", "router.lock"):
        (lost.folder / name).write_bytes(b"half")
    assert lost.restore().is_whole
    assert {path.name for path in lost.folder.iterdir()} == {"metadata.db", "router.lock"}


def with_router(identity: Identity, router: str) -> Identity:
    return dataclasses.replace(identity, router=router)


def test_a_space_that_a_router_serves_is_refused(
    lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "ROUTER_LOST_S", 0.0)
    lost.sources[1].found = with_router(lost.sources[1].found, "http://r:1")
    error = lost.fails()
    assert "http://r:1" in str(error)
    assert lost.restore(force=True).is_whole


def test_a_peer_that_has_yet_to_miss_its_router_is_waited_for(lost: Lost) -> None:
    """Its router was killed a moment ago: the peer says so after its next heartbeat."""
    source = lost.sources[1]
    source.found = with_router(alone := source.found, "http://r:1")
    lost.on_said = lambda sentence: setattr(
        source, "found", alone if "http://r:1" in sentence else source.found
    )
    assert lost.restore().is_whole
    assert any("waiting" in sentence for sentence in lost.said)


def test_peers_of_two_spaces_are_refused(lost: Lost) -> None:
    lost.sources[1].found = Identity("another", "p", 1, "http://127.0.0.1:1", "")
    assert "different spaces" in str(lost.fails())


def test_the_snapshot_of_another_space_is_refused(lost: Lost) -> None:
    for source in lost.sources:
        source.found = Identity("another", "", 0, "", "")
    assert lost.fails().kind is Kind.CORRUPT


# --- stores that were replaced since ---


def test_a_peer_whose_store_was_replaced_since_gets_the_number_that_it_had(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> str:
        stores = {info.number: f"store-{info.number}" for info in peers.infos()}
        await rig.store.save_peers(4, peers.infos(), PeerBook(stores, {}))
        await rig.write(b"one")
        await rig.keeper.snapshot()
        return rig.store.space_id

    space_id = with_rig(tmp_path / "router", peers, scenario)
    shutil.rmtree(tmp_path / "router")
    lost = Lost(tmp_path / "router", peers, space_id)
    for source in lost.sources:
        number = source.found.number
        source.found = dataclasses.replace(source.found, store_id=f"store-{number}")
    # The second one lost its disk, got another number, and some of the copies anew.
    new = dataclasses.replace(lost.sources[1].found, number=9, store_id="new")
    lost.sources[1].found = new
    assert lost.restore().is_whole
    assert lost.rows("SELECT number, store FROM peer_store ORDER BY number") == [
        *[(1, "store-1"), (3, "store-3"), (9, "new")],
    ]
    assert lost.rows("SELECT number FROM peer WHERE id = 'peer-2'") == [(9,)]
    assert lost.rows("SELECT number, id, store, is_removed FROM retired_peer") == [
        (2, "peer-2", "store-2", 0)
    ]
    assert lost.rows("SELECT peer FROM replica ORDER BY peer") == [(1,), (9,)]


def test_what_a_replaced_store_had_alone_is_missing(tmp_path: Path, peers: ObjectPeers) -> None:
    async def scenario(rig: Rig) -> str:
        stores = {info.number: f"store-{info.number}" for info in peers.infos()}
        await rig.store.save_peers(4, peers.infos(), PeerBook(stores, {}))
        await rig.write(b"one")
        await rig.keeper.snapshot()
        return rig.store.space_id

    space_id = with_rig(tmp_path / "router", peers, scenario)
    shutil.rmtree(tmp_path / "router")
    lost = Lost(tmp_path / "router", peers, space_id)
    for peer, source in zip(peers.peers, lost.sources, strict=True):
        peer.chunks.held.clear()
        source.found = dataclasses.replace(source.found, number=0, store_id="new" + peer.info.id)
    report = lost.restore()
    assert (report.missing_chunks, report.elsewhere_chunks) == (1, 0)
    assert report.missing_paths == [b"bucket/one"]


def test_a_copy_that_counts_again_is_not_deleted_although_it_was_given_up(
    tmp_path: Path, peers: ObjectPeers
) -> None:
    async def scenario(rig: Rig) -> str:
        chunk = await rig.write(b"one")
        await rig.store.drop_replicas({chunk.id: [chunk.peers[1]]}, delete_at_ns=1)
        assert await rig.store.given_up_count() == 1
        await rig.keeper.snapshot()
        return rig.store.space_id

    space_id = with_rig(tmp_path / "router", peers, scenario)
    shutil.rmtree(tmp_path / "router")
    lost = Lost(tmp_path / "router", peers, space_id)
    assert lost.restore().is_whole
    assert lost.rows("SELECT peer FROM replica ORDER BY peer") == [(1,), (2,)]
    assert lost.rows("SELECT * FROM given_up") == []
