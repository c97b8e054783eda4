import json

import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.model import BucketPolicy, Chunk, Coding, FileKind, PeerNumber
from mictlanfs.protection import coded
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run
from tests.unit.mictlanfs.client.making import CHUNK, pattern


@pytest.fixture
def stored(cli: Run, space: FakeSpace) -> FakeSpace:
    cli("put", "-", "b/f", stdin=pattern(3 * CHUNK + 1))
    space.router.make(FileKind.SYMLINK, b"b", b"link", target=b"f")
    return space


def lines(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_a_file_is_shown_with_how_it_is_kept(cli: Run, stored: FakeSpace) -> None:
    shown = lines(cli("stat", "b/f").text)
    assert shown["path"] == "b/f"
    assert shown["kind"] == "file"
    assert shown["mode"] == "0644 -rw-r--r--"
    assert shown["size"] == f"{3 * CHUNK + 1} bytes (192.0 KiB), {3 * CHUNK + 1} stored"
    assert shown["chunks"] == "4, at least 2 copies of each on peers"
    assert shown["policy"] == "2 copies, chunks of 64.0 KiB"


@pytest.mark.parametrize(
    ("path", "kind", "field"),
    [("b", "directory", "entries"), ("b/link", "symlink", "target"), ("/", "directory", "entries")],
)
def test_other_kinds_show_what_they_have(
    cli: Run, stored: FakeSpace, path: str, kind: str, field: str
) -> None:
    shown = lines(cli("stat", path).text)
    assert shown["kind"] == kind
    assert field in shown
    assert "chunks" not in shown


def test_json_has_the_same_for_programs(cli: Run, stored: FakeSpace) -> None:
    shown = json.loads(cli("stat", "--json", "b/f").text)
    assert shown["path"] == "b/f"
    assert (shown["size"], shown["allocated"]) == (3 * CHUNK + 1, 3 * CHUNK + 1)
    assert (shown["extents"], shown["chunks"], shown["copies"]) == (4, 4, 2)


def test_a_chunk_short_of_copies_shows(cli: Run, stored: FakeSpace) -> None:
    inode = stored.router.find(b"b", b"f")
    chunk = stored.router.chunks[inode.extents[2].chunk_id]
    stored.router.chunks[chunk.id] = type(chunk)(
        chunk.id, chunk.length, chunk.digest, chunk.peers[:1]
    )
    assert json.loads(cli("stat", "--json", "b/f").text)["copies"] == 1


def test_fragments_are_shown_by_the_losses_that_they_survive(cli: Run, stored: FakeSpace) -> None:
    for extent in stored.router.find(b"b", b"f").extents[:2]:
        chunk = stored.router.chunks[extent.chunk_id]
        peers = tuple(PeerNumber(number) for number in range(5))
        coding = Coding(3, bytes(5 * 32), tuple(range(5)))
        stored.router.chunks[chunk.id] = Chunk(chunk.id, CHUNK, chunk.digest, peers, coding)
    stored.router.find(b"b", b"f").policy = coded(3, 2).applied(BucketPolicy())
    shown = lines(cli("stat", "b/f").text)
    assert shown["chunks"] == "4, 2 as fragments, each survives the loss of any 1"
    assert shown["policy"] == "3+2 code, small chunks 3 copies, chunks of 4.0 MiB"
    described = json.loads(cli("stat", "--json", "b/f").text)
    assert (described["coded"], described["copies"]) == (2, 2)


def test_what_is_not_there_has_its_code(cli: Run, space: FakeSpace) -> None:
    assert cli("stat", "b/none").code == Exit.NOT_FOUND
