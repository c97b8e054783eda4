"""The commands around the metadata, called in this process."""

import asyncio
import json
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.cli.main import run
from mictlanfs.model import ROOT_INODE, FileKind
from mictlanfs_server.metadata.sqlite import SqliteStore
from mictlanfs_server.metasnapshots import restoring, sources
from mictlanfs_server.metasnapshots.restoring import Report
from mictlanfs_server.peer.folder import DataFolder, PeerIdentity
from tests.contract.metadata.forms import Client
from tests.support.objectpeers import ObjectPeers, object_peers
from tests.unit.server.metasnapshots.rig import Rig, with_rig
from tests.unit.server.peer.making import make_chunk, open_store


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def make_space(folder: Path) -> None:
    """A router's directory with a bucket."""

    async def main() -> None:
        folder.mkdir(parents=True)
        store = SqliteStore(folder / "metadata.db")
        await store.start()
        await (await Client.open(store)).make(ROOT_INODE, b"bucket", FileKind.DIRECTORY)
        await store.close()

    asyncio.run(main())


def names(folder: Path) -> list[bytes]:
    async def main() -> list[bytes]:
        store = SqliteStore(folder / "metadata.db")
        page = await store.list_directory(wire.ListDirectory(ROOT_INODE))
        await store.close()
        return [entry.name for entry in page.entries]

    return asyncio.run(main())


# --- dump, load ---


@pytest.mark.parametrize("data", ["space", "space/router"])
def test_a_dump_is_loaded_into_an_empty_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str
) -> None:
    make_space(tmp_path / "space" / "router")
    assert run(["meta", "dump", "--data", data, "dump.jsonl"]) == 0
    assert run(["meta", "load", "--data", "new", "dump.jsonl"]) == 0
    assert "2 inodes are in new" in capsys.readouterr().err
    assert names(tmp_path / "new") == [b"bucket"]
    assert run(["meta", "dump", "--data", data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len((tmp_path / "dump.jsonl").read_text().splitlines())


def test_what_is_there_is_never_loaded_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_space(tmp_path / "space")
    assert run(["meta", "dump", "--data", "space", "dump.jsonl"]) == 0
    before = (tmp_path / "space" / "metadata.db").read_bytes()
    assert run(["meta", "load", "--data", "space", "dump.jsonl"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "space" / "metadata.db").read_bytes() == before


def test_a_dump_that_breaks_an_invariant_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_space(tmp_path / "space")
    assert run(["meta", "dump", "--data", "space", "dump.jsonl"]) == 0
    lines = (tmp_path / "dump.jsonl").read_bytes().splitlines(keepends=True)[:-1]
    lines = [line.replace(b'"nlink":3', b'"nlink":4') for line in lines]
    end = {"end": {"rows": len(lines) - 1, "blake3": digest_of(lines).hex()}}
    (tmp_path / "dump.jsonl").write_bytes(b"".join(lines) + json.dumps(end).encode() + b"\n")
    assert run(["meta", "load", "--data", "new", "dump.jsonl"]) == 8
    assert "not true that" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["router.lock"]


def test_without_a_space_a_dump_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["meta", "dump"]) == 2
    assert "--data" in capsys.readouterr().err
    assert run(["meta", "dump", "--data", "nowhere"]) == 2
    assert "there is no metadata at" in capsys.readouterr().err


# --- restore from folders ---


def test_a_space_comes_back_from_the_folders_of_its_peers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the peers left them: their index, their files, who they were."""

    async def scenario(rig: Rig) -> str:
        for name, length in ((b"small", 900), (b"large", 70_000), (b"lost", 80_000)):
            await rig.write(name, length)
        await rig.keeper.snapshot()
        return rig.store.space_id

    folder = tmp_path / "peers"
    folder.mkdir()
    with object_peers(folder) as peers:
        for peer in peers.peers:
            identity = PeerIdentity(peer.info.id, peer.info.number, peer.url, peer.info.zone)
            data = DataFolder(peer.folder)
            data.remember_peer(identity)
            data.close()
        space_id = with_rig(tmp_path / "router", peers, scenario)
        fill(peers, space_id)
    args = ["server", "restore", "--data", "restored", "--from-data"]
    folders = [str(path) for path in sorted(folder.iterdir())]
    assert run([*args, *folders]) == 8
    text = capsys.readouterr().out
    assert f"space {space_id} is as it was at 20" in text
    assert "missing       1 chunk, of these files:\n  bucket/lost" in text
    assert sorted(path.name for path in (tmp_path / "restored").iterdir()) == [
        "metadata.db",
        "router.lock",
    ]
    assert run([*args[:3], "again", "--json", *folders]) == 8
    found = json.loads(capsys.readouterr().out)
    assert (found["missing_paths"], found["peers_not_asked"]) == (["bucket/lost"], [])


def fill(peers: ObjectPeers, space_id: str) -> None:
    """Let folders really hold what their peers say, but for the files of the largest chunk."""
    lengths = sorted({c.length for peer in peers.peers for c in peer.chunks.held.values()})
    for peer in peers.peers:
        data = DataFolder(peer.folder)
        data.remember_space(space_id)
        data.close()
        with open_store(peer.folder) as store:
            for chunk in peer.chunks.held.values():
                _, body = make_chunk(chunk.length, lengths.index(chunk.length))
                errors = asyncio.run(store.put_many([(chunk, body)]))
                assert errors == [None]
        for path in (peer.folder / "chunks").rglob("*.*"):
            if path.stat().st_size == lengths[-1]:
                path.unlink()


def test_a_folder_that_is_no_peer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["server", "restore", "--data", "new", "--from-data", str(tmp_path)]) == 2
    assert "is not the data of a peer" in capsys.readouterr().err
    assert run(["server", "restore", "--data", "new"]) == 2
    assert "--peers URL" in capsys.readouterr().err


def test_options_of_a_restore_reach_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    async def restore(
        given: list[sources.Source], folder: Path, say: object, **how: object
    ) -> Report:
        seen.update(how, names=[source.name for source in given], folder=folder.name)
        return Report("s" * 32, 10**18, 7, 5, peers_not_asked=["p"], elsewhere_chunks=2)

    monkeypatch.setattr(restoring, "restore", restore)
    words = "--data d --peers http://h:1/ http://h:2 --at 2026-11-30T14:05 --force"
    assert run(["server", "restore", *words.split()]) == 0
    assert seen["names"] == ["http://h:1", "http://h:2"]
    assert (seen["folder"], seen["is_forced"]) == ("d", True)
    assert isinstance(seen["until_ns"], int)
    assert 1_795_900_000 < seen["until_ns"] // 10**9 < 1_796_200_000
    text = capsys.readouterr().out
    assert "not asked     p" in text
    assert "2 chunks: only peers that were not asked may have them" in text
