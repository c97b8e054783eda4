import pytest

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.transport import Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from tests.support.fakenet import FakeNet, Request
from tests.support.fakepeer import FakePeer

CHUNK_ID = new_chunk_id()
BODY = b"0123456789"


class Odd:
    """A server that answers what it was told to."""

    def __init__(self, status: int, body: bytes) -> None:
        self.response = Response(status, {}, body)

    def handle(self, request: Request) -> Response:
        return self.response


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer(1)


@pytest.fixture
def net(peer: FakePeer) -> FakeNet:
    return FakeNet({peer.url: peer})


def odd_client(status: int, body: bytes) -> tuple[PeerClient, str]:
    return PeerClient(FakeNet({"http://odd:1": Odd(status, body)})), "http://odd:1"


async def test_a_chunk_is_put_and_got(net: FakeNet, peer: FakePeer) -> None:
    client = PeerClient(net)
    await client.put(peer.url, CHUNK_ID, digest_of([BODY]), [BODY[:4], BODY[4:]])
    assert peer.chunks == {CHUNK_ID: BODY}
    assert bytes(await client.get(peer.url, CHUNK_ID, 0, len(BODY))) == BODY
    assert bytes(await client.get(peer.url, CHUNK_ID, 3, 5)) == BODY[3:5]
    assert client.request_count == 3


async def test_the_error_that_a_peer_answers_is_raised(net: FakeNet, peer: FakePeer) -> None:
    client = PeerClient(net)
    with pytest.raises(MictlanError) as caught:
        await client.put(peer.url, CHUNK_ID, bytes(32), [BODY])
    assert caught.value.kind is Kind.CORRUPT
    with pytest.raises(MictlanError) as caught:
        await client.get(peer.url, CHUNK_ID, 0, 1)
    assert caught.value.kind is Kind.NOT_FOUND


@pytest.mark.parametrize("body", [b"", BODY[:-1], BODY + b"x"])
async def test_another_number_of_bytes_than_asked_is_damage(body: bytes) -> None:
    client, url = odd_client(206, body)
    with pytest.raises(MictlanError) as caught:
        await client.get(url, CHUNK_ID, 0, len(BODY))
    assert caught.value.kind is Kind.CORRUPT


async def test_frames_carry_one_result_for_each_chunk(net: FakeNet, peer: FakePeer) -> None:
    client = PeerClient(net)
    good, bad, absent = new_chunk_id(), new_chunk_id(), new_chunk_id()
    chunks = [
        wire.FrameChunk(good, 4, digest_of([b"good"])),
        wire.FrameChunk(bad, 3, bytes(32)),
    ]
    results = await client.put_frame(peer.url, chunks, [b"go", b"od", b"bad"])
    assert [result.error is None for result in results] == [True, False]
    got = await client.get_frame(peer.url, [absent, good])
    assert isinstance(got[0], MictlanError)
    assert got[0].kind is Kind.NOT_FOUND
    assert isinstance(got[1], memoryview)
    assert got[1].tobytes() == b"good"


@pytest.mark.parametrize("count", [0, 2])
async def test_another_number_of_results_than_chunks_is_a_protocol_error(count: int) -> None:
    answer = b"".join(wire.frame(wire.FrameAnswer((wire.FrameResult(),) * count)))
    client, url = odd_client(200, answer)
    with pytest.raises(MictlanError) as caught:
        await client.get_frame(url, [CHUNK_ID])
    assert caught.value.kind is Kind.PROTOCOL
    with pytest.raises(MictlanError) as caught:
        await client.put_frame(url, [wire.FrameChunk(CHUNK_ID, 1, bytes(32))], [b"x"])
    assert caught.value.kind is Kind.PROTOCOL


async def test_bodies_that_do_not_fit_their_lengths_are_a_protocol_error() -> None:
    answer = b"".join(wire.frame(wire.FrameAnswer((wire.FrameResult(5),)), [b"four"]))
    client, url = odd_client(200, answer)
    with pytest.raises(MictlanError) as caught:
        await client.get_frame(url, [CHUNK_ID])
    assert caught.value.kind is Kind.PROTOCOL


@pytest.mark.parametrize("status", [301, 404, 500])
async def test_a_stranger_at_the_address_is_an_error(status: int) -> None:
    client, url = odd_client(status, b"<html>")
    with pytest.raises(MictlanError) as caught:
        await client.get(url, CHUNK_ID, 0, 1)
    assert caught.value.kind is Kind.INTERNAL
