"""Damage to what real peers hold: found, told, never returned, as users and operators meet it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mictlanfs import wire
from mictlanfs.blocksums import BLOCK_SIZE_BYTES
from mictlanfs.checksums import digest_of
from mictlanfs.model import ChunkId
from tests.support import kernelcaches
from tests.support.damaging import DAMAGES, flip_a_bit
from tests.support.spaces import LooseServers, Mount, free_ports, mictlanfs, mounted, wait_until

pytestmark = pytest.mark.fuse

LARGE, SMALL = 200_000, 20_000
PEERS = (0, 1)
FLIPPED_PARTS = 4


@dataclass
class Rig:
    """A router, two peers with a copy of everything each, and a mount."""

    servers: LooseServers
    mount: Mount

    def write(self, name: str, size: int, seed: int) -> bytes:
        """A file, durable."""
        content = random.Random(seed).randbytes(size)
        with (self.mount.bucket / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return content

    def chunk_of(self, name: str) -> str:
        """The id of the only chunk of a file."""
        query = "SELECT lower(hex(chunk)) FROM extent JOIN dentry USING (ino) WHERE name = ?"
        [(chunk,)] = self.metadata(query, os.fsencode(name))
        return str(chunk)

    def metadata(self, query: str, value: bytes) -> list[Any]:
        """Rows of the router's database."""
        path = self.servers.data / "router" / "metadata.db"
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        rows = connection.execute(query, (value,)).fetchall()
        connection.close()
        return rows

    def command(self, *words: str, status: int = 0) -> str:
        done = mictlanfs(*words, "--uri", self.servers.uri, check=False)
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self.command(*words, "--json", status=status))

    def files(self, peer: int, chunk: str, folder: str = "chunks") -> list[Path]:
        return list((self.servers.data / f"peer-{peer}" / folder).rglob(f"{chunk}.*"))

    def damage_row(self, peer: int, chunk: str) -> None:
        """Flip a bit of a small chunk behind the peer's back."""
        path = self.servers.data / f"peer-{peer}" / "index.sqlite"
        connection = sqlite3.connect(path)
        with connection:
            [(number, body)] = connection.execute(
                "SELECT number, bodies.body FROM chunks JOIN bodies ON number = chunks.body"
                " WHERE id = ?",
                (bytes.fromhex(chunk),),
            ).fetchall()
            changed = body[:-1] + bytes([body[-1] ^ 1])
            connection.execute("UPDATE bodies SET body = ? WHERE number = ?", (changed, number))
        connection.close()

    def small_body(self, peer: int, chunk: str) -> bytes:
        """The bytes of a small chunk as the peer has them."""
        path = self.servers.data / f"peer-{peer}" / "index.sqlite"
        connection = sqlite3.connect(path)
        [(body,)] = connection.execute(
            "SELECT bodies.body FROM chunks JOIN bodies ON number = chunks.body WHERE id = ?",
            (bytes.fromhex(chunk),),
        ).fetchall()
        connection.close()
        assert isinstance(body, bytes)
        return body

    def held_by(self, chunk: str) -> list[int]:
        """The peers that the metadata names for a chunk, in the order of its writer."""
        query = (
            "SELECT peer.id FROM replica JOIN peer ON number = peer WHERE chunk = ? ORDER BY rank"
        )
        rows = self.metadata(query, bytes.fromhex(chunk))
        return [int(row[0].rpartition("-")[2]) for row in rows]

    def read_from(self, chunk: str) -> int:
        """The peer whose file of a chunk the mount has open."""
        wait_until(lambda: self._opened(chunk), f"{chunk} is open")
        [path] = self._opened(chunk)
        folder = Path(path).relative_to(self.servers.data).parts[0]
        return int(folder.removeprefix("peer-"))

    def _opened(self, chunk: str) -> set[str]:
        found = set()
        for descriptor in Path(f"/proc/{self.mount.pid()}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(descriptor))
        return {path for path in found if Path(path).name.startswith(chunk)}

    def status(self) -> Any:
        return self.servers.status()

    def request(self, peer: int, method: str, chunk: str, body: bytes = b"") -> int:
        """The status with which a peer answers a request about a chunk."""
        connection = http.client.HTTPConnection("127.0.0.1", self.servers.ports[peer], timeout=20)
        headers = {wire.HEADER_DIGEST: digest_of([body]).hex()} if body else {}
        connection.request(method, wire.Path.CHUNK + chunk, body or None, headers)
        status = connection.getresponse().status
        connection.close()
        return status

    def read_part(self, peer: int, chunk: str, start: int, end: int) -> bytes | None:
        """What a peer says bytes `[start, end)` of a chunk are; None: it does not say."""
        connection = http.client.HTTPConnection("127.0.0.1", self.servers.ports[peer], timeout=20)
        headers = {"range": f"bytes={start}-{end - 1}"}
        connection.request("GET", wire.Path.CHUNK + chunk, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return body if answer.status == 206 else None

    def put(self, peer: int, chunk: str, body: bytes) -> None:
        assert self.request(peer, "PUT", chunk, body) == 201


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    data = tmp_path_factory.mktemp("servers")
    data.chmod(0o755)
    servers = LooseServers(data)
    ports = free_ports(3)
    try:
        servers.start_router(ports[0], "--orphan-age", "0", "--gc-grace", "0")
        for index in PEERS:
            servers.start_peer(index, ports[index + 1], "--scrub-rate", "1G")
        servers.wait_for_peers(2)
        with mounted(servers.uri, data, "cache_size=0") as mount:
            yield Rig(servers, mount)
    finally:
        servers.stop()


def is_mended(rig: Rig, peer: int, chunk: str, content: bytes) -> bool:
    """Whether a bad copy is no longer one: not named, or good again."""
    if peer not in rig.held_by(chunk):
        return True
    return [path.read_bytes() for path in rig.files(peer, chunk)] == [content]


def test_reads_find_every_damage_and_return_none_of_it(rig: Rig) -> None:
    files = {}
    for seed, damage in enumerate(DAMAGES):
        name = f"read-{seed}"
        content = rig.write(name, LARGE, seed)
        files[name] = (content, damage, rig.chunk_of(name))
    rig.mount.remount_cold()
    damaged = []
    for name, (content, damage, chunk) in files.items():
        # The mount has opened the file of the peer, and compared some of its blocks, by now.
        with (rig.mount.bucket / name).open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4096, 0) == content[:4096]
        peer = rig.read_from(chunk)
        [path] = rig.files(peer, chunk)
        DAMAGES[damage](path)
        if damage != "extended":
            # Nobody reads a byte too many: that is for the scrub.
            damaged.append((damage, peer, chunk, content))
    # The kernel has read ahead; what it has is right, and would hide the rest.
    kernelcaches.drop()
    for name, (content, _, _) in files.items():
        with (rig.mount.bucket / name).open("rb", buffering=0) as file:
            for offset in range(0, LARGE, 32_768):
                found = os.pread(file.fileno(), 4096, offset)
                assert found == content[offset : offset + 4096], (name, offset)
        assert (rig.mount.bucket / name).read_bytes() == content
    for damage, *one in damaged:
        if damage != "missing":
            wait_until(lambda one=one: is_mended(rig, *one), f"mended: {damage}")
    # What was open is read on although its name is gone; now it is asked for anew.
    rig.mount.remount_cold()
    for name, (content, _, _) in files.items():
        assert (rig.mount.bucket / name).read_bytes() == content
    # The mount may ask other peers first than the one before it did: these are asked by name.
    for _, peer, chunk, content in damaged:
        assert rig.read_part(peer, chunk, 0, 4096) in (None, content[:4096])
    # One that no mount and no cache is in front of.
    [name, (content, _, _)] = next(iter(files.items()))
    got = rig.servers.data / "got"
    rig.command("get", f"bucket/{name}", str(got))
    assert got.read_bytes() == content
    wait_until(lambda: all(is_mended(rig, *one[1:]) for one in damaged), "all are mended")


def test_a_scrub_finds_every_damage_and_the_files_stay_readable(rig: Rig) -> None:
    damages: list[Callable[[Path], None]] = [*DAMAGES.values(), lambda _: None, lambda _: None]
    contents = [rig.write(f"scrub-{seed}", LARGE, 50 + seed) for seed in range(len(damages))]
    chunks = [rig.chunk_of(f"scrub-{seed}") for seed in range(len(damages))]
    # What is written to a mount and synced is kept in the metadata at first.
    source = rig.servers.data / "small"
    small = random.Random(99).randbytes(SMALL)
    source.write_bytes(small)
    rig.command("put", str(source), "bucket/scrub-small")
    small_chunk = rig.chunk_of("scrub-small")
    paths = [rig.files(0, chunk)[0] for chunk in chunks]
    for path, damage in zip(paths, damages, strict=True):
        damage(path)
    swapped = rig.servers.data / "swapped"
    paths[-1].rename(swapped)
    paths[-2].rename(paths[-1])
    swapped.rename(paths[-2])
    rig.damage_row(0, small_chunk)
    told = rig.json("scrub", "--peer", "mictlanx-peer-0", "--wait", status=8)["mictlanx-peer-0"]
    passes = told["passes"]
    assert told["bad_count"] >= len(damages) + 1
    assert (told["is_running"], told["untold_count"]) == (False, 0)
    for chunk, content in zip(chunks, contents, strict=True):
        assert is_mended(rig, 0, chunk, content)
    assert 0 not in rig.held_by(small_chunk) or rig.small_body(0, small_chunk) == small
    assert len([chunk for chunk in chunks if rig.files(0, chunk, "quarantine")]) == len(chunks) - 1
    rig.mount.remount_cold()
    for seed, content in enumerate(contents):
        assert (rig.mount.bucket / f"scrub-{seed}").read_bytes() == content
    assert (rig.mount.bucket / "scrub-small").read_bytes() == small
    told = rig.json("scrub", "--peer", "mictlanx-peer-0", "--wait")["mictlanx-peer-0"]
    assert (told["passes"], told["bad_count"]) == (passes + 1, 0)


def flip_a_bit_of_every_file(
    rig: Rig, peer: int, part: int, chance: random.Random
) -> dict[str, tuple[bytes, int]]:
    """Flip a bit in one of the parts of every chunk file of a peer.

    Returns the right bytes, and the place of the flipped bit, by chunk.
    """
    found = {}
    for path in sorted((rig.servers.data / f"peer-{peer}" / "chunks").rglob("*.*")):
        body = path.read_bytes()
        start, end = len(body) * part // FLIPPED_PARTS, len(body) * (part + 1) // FLIPPED_PARTS
        place = chance.choice((start, end - 1, chance.randrange(start, end)))
        flip_a_bit(path, place)
        found[path.name.partition(".")[0]] = (body, place)
    return found


def read_every_block(rig: Rig, peer: int, chunk: str, body: bytes, place: int) -> None:
    """Read all of a chunk from its peer, as mounts do: right bytes, or none; none of the bad."""
    for start in range(0, len(body), BLOCK_SIZE_BYTES):
        end = min(len(body), start + BLOCK_SIZE_BYTES)
        found = rig.read_part(peer, chunk, start, end)
        assert found in (None, body[start:end]), (chunk, start)
        assert found is None or not start <= place < end, (chunk, place)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("finder", ["reads", "scrub"])
def test_a_flipped_bit_in_every_part_of_every_file_is_found_mended_and_never_returned(
    rig: Rig, finder: str
) -> None:
    chance = random.Random(finder)
    for number, size in enumerate((66_000, 131_072, 500_001, 5_000_000)):
        rig.write(f"flip-{finder}-{number}", size, 200 + number)
    files = {path: path.read_bytes() for path in rig.mount.bucket.iterdir()}
    rig.command("fsck", "--deep", "--repair")
    for part in range(FLIPPED_PARTS):
        wait_until(lambda: is_whole(rig), "all copies are there")
        peer = PEERS[part % len(PEERS)]
        rig.mount.umount()
        damaged = flip_a_bit_of_every_file(rig, peer, part, chance)
        assert {rig.chunk_of(f"flip-{finder}-{number}") for number in range(3)} <= damaged.keys()
        kernelcaches.drop()
        rig.mount.mount()
        if finder == "scrub":
            told = rig.json("scrub", "--peer", f"mictlanx-peer-{peer}", "--wait", status=8)
            assert told[f"mictlanx-peer-{peer}"]["bad_count"] == len(damaged)
        else:
            for chunk, (body, place) in damaged.items():
                read_every_block(rig, peer, chunk, body, place)
        for path, content in files.items():
            assert path.read_bytes() == content, (part, path.name)
        for chunk, (body, _) in damaged.items():
            wait_until(
                lambda one=(peer, chunk, body): is_mended(rig, *one),
                f"mended: {chunk} of {peer}, part {part}",
            )
    wait_until(lambda: is_whole(rig), "all copies are there")
    assert rig.json("fsck", "--deep")["is_sound"]


def is_whole(rig: Rig) -> bool:
    """Whether nothing is short, and no copy waits for its deletion."""
    told = rig.status()
    if not told:
        return False
    counts = [told[name] for name in ("under_replicated_count", "lost_count", "damaged_count")]
    return not any(counts) and not told["upkeep"]["given_up_count"]


def test_a_file_without_a_good_copy_gives_an_error_and_is_named(rig: Rig) -> None:
    content = rig.write("lost", LARGE, 7)
    chunk = rig.chunk_of("lost")
    for peer in PEERS:
        flip_a_bit(rig.files(peer, chunk)[0], 100_000)
    rig.mount.remount_cold()
    with (rig.mount.bucket / "lost").open("rb", buffering=0) as file:
        with pytest.raises(OSError, match="Input/output error") as caught:
            os.pread(file.fileno(), LARGE, 0)
        assert caught.value.errno == errno.EIO
    # The reader has complained of both.
    wait_until(lambda: rig.status()["damaged_paths"] == ["bucket/lost"], "the file is named")
    told = rig.status()
    assert (told["damaged_count"], told["is_healthy"]) == (1, False)
    assert "damaged in every copy: bucket/lost" in "".join(told["problems"])
    assert len(rig.held_by(chunk)) == 1
    assert "damaged   bucket/lost" in rig.command("fsck", status=8)
    # Somebody who kept a copy aside brings it back.
    for peer in PEERS:
        [aside] = rig.files(peer, chunk, "quarantine")
        flip_a_bit(aside, 100_000)
        assert aside.read_bytes() == content
    [holder] = rig.held_by(chunk)
    rig.put(holder, chunk, content)
    assert rig.json("fsck", "--repair")["damaged"] == []
    assert (rig.mount.bucket / "lost").read_bytes() == content
    assert rig.command("rm", "bucket/lost") == ""


def test_fsck_finds_what_is_missing_and_repairs_it(rig: Rig) -> None:
    rig.write("fsck", LARGE, 8)
    chunk = rig.chunk_of("fsck")

    def is_all_good() -> bool:
        told = rig.json("fsck", "--deep", "--repair")
        return bool(told["is_sound"]) and told["bad_count"] == 0

    wait_until(is_all_good, "what other tests damaged is mended")
    [path] = rig.files(1, chunk)
    path.unlink()
    # Without --deep nothing is read: the peer believes that it has it.
    assert rig.json("fsck")["missing_count"] == 0
    told = rig.json("fsck", "--deep", "--repair")
    assert (told["is_sound"], told["bad_count"]) == (True, 1)
    assert 1 not in rig.held_by(chunk) or rig.files(1, chunk)


def test_orphans_are_counted_and_removed(rig: Rig) -> None:
    kept = rig.write("kept", LARGE, 9)
    rig.command("gc")
    orphan = ChunkId(bytes(6) + os.urandom(10))
    body = b"nobody needs this" * 1000
    for peer in PEERS:
        rig.put(peer, orphan.hex(), body)
    told = rig.json("gc", "--dry-run")
    assert (told["orphan_count"], told["orphan_bytes"]) == (2, 2 * len(body))
    assert told["collected_count"] == 0
    assert rig.json("gc")["collected_count"] == 2
    wait_until(
        lambda: all(rig.request(peer, "HEAD", orphan.hex()) == 404 for peer in PEERS),
        "the orphans are gone",
    )
    assert rig.json("gc", "--dry-run")["orphan_count"] == 0
    rig.mount.remount_cold()
    assert (rig.mount.bucket / "kept").read_bytes() == kept
