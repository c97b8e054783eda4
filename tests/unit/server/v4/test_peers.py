from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.transport import HttpTransport, Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import (
    BucketPolicy,
    Buffer,
    Chunk,
    ChunkId,
    PeerInfo,
    PeerMap,
    PeerNumber,
    PeerState,
    Struct,
)
from mictlanfs.protection import coded
from mictlanfs.wirecopies import Locate, Located
from mictlanfs.wireverify import ReportCopy
from mictlanfs_server.v4.peers import Peers
from tests.unit.server.router.fakes import FakeClock

BODY = b"body of a chunk"
DIGEST = digest_of([BODY])


class FakeSpace:
    """Tells a peer map of `count` peers, number 1 and up, and where chunks are that moved."""

    def __init__(self, count: int) -> None:
        self.moved: dict[ChunkId, Chunk] = {}
        self.peers = tuple(
            PeerInfo(PeerNumber(n), f"p{n}", f"http://peer{n}", "", 100, 0, PeerState.UP)
            for n in range(1, count + 1)
        )
        self.complaints: list[Struct] = []

    async def ask(self, path: str, request: Struct, answer: type[Any]) -> Any:
        if isinstance(request, ReportCopy):
            self.complaints.append(request)
            return wire.Done()
        assert isinstance(request, Locate), "nothing else is asked"
        return Located(tuple([self.moved.get(chunk_id) for chunk_id in request.ids]))

    async def peer_map(self) -> PeerMap:
        return PeerMap(1, self.peers)


class FakePeers(HttpTransport):
    """Peers in memory: those in `failing` answer with an error, those in `dead` not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks: dict[str, dict[str, bytes]] = {}
        self.failing: dict[str, MictlanError] = {}
        self.dead: set[str] = set()

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Response:
        host, _, path = url.removeprefix("http://").partition("/")
        if host in self.dead:
            raise MictlanError(Kind.UNAVAILABLE, method, url)
        if (error := self.failing.get(host)) is not None:
            return Response(500, {}, wire.encode_error(error))
        held = self.chunks.setdefault(host, {})
        data = b"".join([body] if isinstance(body, Buffer) else body or [])
        name = path.rpartition("/")[2]
        if method == "PUT":
            if held.setdefault(name, data) != data:
                raise MictlanError(Kind.CONFLICT, method, url)
            return Response(201, {}, b"")
        if method == "GET":
            if name not in held:
                raise MictlanError(Kind.NOT_FOUND, method, url)
            start, end = (headers or {})["range"].removeprefix("bytes=").split("-")
            return Response(206, {}, held[name][int(start) : int(end) + 1])
        asked, _ = wire.unframe(data, wire.FrameDelete)
        for chunk_id in asked.ids:
            held.pop(chunk_id.hex(), None)
        results = tuple([wire.FrameResult(0)] * len(asked.ids))
        return Response(200, {}, b"".join(wire.frame(wire.FrameAnswer(results))))

    def holders(self, chunk_id: ChunkId) -> list[str]:
        return sorted(host for host, held in self.chunks.items() if chunk_id.hex() in held)


def run(
    scenario: Callable[[Peers, FakePeers], Awaitable[None]], count: int = 3, preferred: str = ""
) -> None:
    async def main() -> None:
        transport = FakePeers()
        await scenario(Peers(FakeSpace(count), transport, FakeClock(), preferred), transport)

    asyncio.run(main())


def framed() -> wire.FrameChunk:
    return wire.FrameChunk(new_chunk_id(), len(BODY), DIGEST)


async def stored(peers: Peers, copies: int = 2, copies_min: int = 1) -> Chunk:
    return await peers.store(framed(), BODY, copies, copies_min, set())


def test_chunk_is_on_as_many_peers_as_wanted() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        chunk = await stored(peers)
        assert len(chunk.peers) == 2
        assert transport.holders(chunk.id) == sorted(f"peer{n}" for n in chunk.peers)

    run(scenario)


def test_preferred_peer_gets_the_first_copy() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        for _ in range(10):
            assert (await stored(peers, 1)).peers == (2,)

    run(scenario, preferred="p2")


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.NO_SPACE, Kind.INTERNAL])
def test_peer_that_fails_is_replaced_by_the_next(kind: Kind) -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        transport.failing["peer2"] = MictlanError(kind)
        for _ in range(5):
            tried: set[PeerNumber] = set()
            chunk = await peers.store(framed(), BODY, 2, 2, tried)
            assert sorted(chunk.peers) == [1, 3]
            assert set(chunk.peers) <= tried

    run(scenario)


def test_fewer_copies_will_do_down_to_the_least() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        transport.dead = {"peer1", "peer2"}
        assert (await stored(peers, 2, 1)).peers == (3,)
        with pytest.raises(MictlanError) as caught:
            await stored(peers, 2, 2)
        assert caught.value.kind is Kind.UNAVAILABLE

    run(scenario)


def test_no_peer_is_an_error() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        with pytest.raises(MictlanError) as caught:
            await stored(peers)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert await peers.candidates(new_chunk_id()) == []

    run(scenario, count=0)


def test_any_copy_will_do_for_a_read_and_a_wrong_one_is_passed_over() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        chunk = await stored(peers)
        first, second = transport.holders(chunk.id)
        assert await peers.fetch(chunk, 5, 7) == b"of"
        transport.chunks[first][chunk.id.hex()] = b"x" * len(BODY)
        for _ in range(3):
            assert await peers.fetch(chunk, 0, len(BODY)) == BODY
        transport.dead.add(second)
        with pytest.raises(MictlanError) as caught:
            await peers.fetch(chunk, 0, len(BODY))
        assert caught.value.kind is Kind.UNAVAILABLE

    run(scenario)


def test_copies_that_are_all_wrong_are_corrupt() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        chunk = await stored(peers)
        for host in transport.holders(chunk.id):
            transport.chunks[host][chunk.id.hex()] = b"x" * len(BODY)
        with pytest.raises(MictlanError) as caught:
            await peers.fetch(chunk, 0, len(BODY))
        assert caught.value.kind is Kind.CORRUPT

    run(scenario)


def test_chunk_that_moved_is_found() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        chunk = await stored(peers, 1)
        [host] = transport.holders(chunk.id)
        other = next(number for number in (1, 2, 3) if f"peer{number}" != host)
        transport.chunks[f"peer{other}"] = transport.chunks.pop(host)
        transport.failing[host] = MictlanError(Kind.NOT_FOUND)
        space = peers._space
        assert isinstance(space, FakeSpace)
        space.moved[chunk.id] = msgspec.structs.replace(chunk, peers=(PeerNumber(other),))
        assert bytes(await peers.fetch(chunk, 0, len(BODY))) == BODY

    run(scenario)


def test_one_more_copy_is_on_another_peer_or_the_one_asked_for() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        chunk = await stored(peers, 1)
        grown = await peers.copy(chunk, "")
        assert len(set(grown.peers)) == 2
        assert grown.peers[0] == chunk.peers[0]
        [missing] = {1, 2, 3} - set(grown.peers)
        whole = await peers.copy(grown, f"p{missing}")
        assert sorted(whole.peers) == [1, 2, 3]
        assert await peers.copy(whole, "p1") == whole
        with pytest.raises(MictlanError):
            await peers.copy(whole, "")

    run(scenario)


def test_what_came_to_nothing_is_deleted_and_a_dead_peer_is_no_error() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        chunks = [await stored(peers, 3) for _ in range(300)]
        transport.dead.add("peer1")
        await peers.delete({chunk.id: set(chunk.peers) for chunk in chunks})
        assert [len(held) for _, held in sorted(transport.chunks.items())] == [300, 0, 0]

    run(scenario)


# --- coded chunks --------------------------------------------------------------------------------

CODE = coded(3, 2).applied(BucketPolicy())
LARGE = bytes(range(256)) * 1025


async def stored_coded(peers: Peers, tried: set[PeerNumber]) -> Chunk:
    chunk = wire.FrameChunk(new_chunk_id(), len(LARGE), digest_of([LARGE]))
    return await peers.store(chunk, LARGE, 3, 2, tried, CODE)


def test_a_coded_chunk_is_read_without_any_two_of_its_peers() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        tried: set[PeerNumber] = set()
        chunk = await stored_coded(peers, tried)
        assert chunk.coding is not None
        assert tried == set(chunk.peers) == {1, 2, 3, 4, 5}
        assert chunk.digest == digest_of([LARGE])
        for lost in combinations(range(1, 6), 2):
            transport.dead = {f"peer{number}" for number in lost}
            assert await peers.fetch(chunk, 0, len(LARGE)) == LARGE
            assert await peers.fetch(chunk, 80_000, 180_000) == LARGE[80_000:180_000]
        assert await peers.copy(chunk, "") == chunk

    run(scenario, count=5)


def test_a_damaged_fragment_is_passed_over() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        chunk = await stored_coded(peers, set())
        for number in chunk.peers[:2]:
            held = transport.chunks[f"peer{number}"]
            held[chunk.id.hex()] = bytes(len(held[chunk.id.hex()]))
        assert await peers.fetch(chunk, 0, len(LARGE)) == LARGE

    run(scenario, count=5)


def test_with_too_few_peers_for_a_code_there_are_copies() -> None:
    async def scenario(peers: Peers, transport: FakePeers) -> None:
        transport.dead = {"peer1", "peer2"}
        for _ in range(3):
            chunk = await stored_coded(peers, set())
            assert (chunk.coding, sorted(chunk.peers)) == (None, [3, 4, 5])
            assert await peers.fetch(chunk, 0, len(LARGE)) == LARGE

    run(scenario, count=5)
