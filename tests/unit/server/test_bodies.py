"""Large bodies on their way past uvicorn: `bodies.py`, and the connections of `serving.py`."""

import asyncio
import functools
import re
from collections.abc import Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from mictlanfs_server import serving
from mictlanfs_server.bodies import EXTENSION, LARGE_BODY_SIZE_BYTES, RequestBody

P = ParamSpec("P")
Message = MutableMapping[str, Any]

LARGE = LARGE_BODY_SIZE_BYTES


def on_asyncio(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def body_of(length: int, seed: int = 0) -> bytes:
    return bytes((seed + n * n // 7) % 251 for n in range(1000)) * (length // 1000 + 1)


# --- one body ------------------------------------------------------------------------------------


@dataclass
class Tap:
    """A flow, and how often the application was ready."""

    reads: list[str] = field(default_factory=list)
    wanted_count: int = 0

    def pause_reading(self) -> None:
        self.reads.append("pause")

    def resume_reading(self) -> None:
        self.reads.append("resume")

    def wanted(self) -> None:
        self.wanted_count += 1


def arrive(body: RequestBody, data: bytes) -> None:
    """Bytes come from the network, as far as there is room for them."""
    while data:
        target = body.target()
        count = min(len(target), len(data))
        target[:count] = data[:count]
        body.received(count)
        data = data[count:]


def new_body(length: int) -> tuple[RequestBody, Tap]:
    tap = Tap()
    return RequestBody(length, tap, tap.wanted), tap


@on_asyncio
async def test_bytes_go_into_the_readers_buffer() -> None:
    body, tap = new_body(10)
    buffer = bytearray(10)
    body.hold()
    read = asyncio.create_task(body.read_into(memoryview(buffer)))
    await asyncio.sleep(0)
    assert tap.reads == ["pause", "resume"]
    arrive(body, b"abcd")
    await asyncio.sleep(0)
    assert not read.done()
    arrive(body, b"efghij")
    assert await read == 10
    assert buffer == b"abcdefghij"
    assert (body.left, body.unread) == (0, 0)
    assert tap.reads == ["pause", "resume"]
    assert tap.wanted_count == 1


@on_asyncio
async def test_nothing_is_received_between_two_reads() -> None:
    body, tap = new_body(10)
    buffer = bytearray(4)
    read = asyncio.create_task(body.read_into(memoryview(buffer)))
    await asyncio.sleep(0)
    assert len(body.target()) == 4
    arrive(body, b"abcd")
    assert tap.reads == ["resume", "pause"]
    assert await read == 4
    assert body.unread == 6


@on_asyncio
async def test_bytes_that_came_with_the_head_are_read_first() -> None:
    body, _ = new_body(10)
    body.feed(b"ab")
    body.feed(b"cd")
    assert (body.left, body.unread) == (6, 10)
    first, second = bytearray(3), bytearray(7)
    assert await body.read_into(memoryview(first)) == 3
    read = asyncio.create_task(body.read_into(memoryview(second)))
    await asyncio.sleep(0)
    arrive(body, b"efghij")
    assert await read == 7
    assert first + second == b"abcdefghij"


@on_asyncio
async def test_a_buffer_that_is_too_large_is_filled_in_part() -> None:
    body, _ = new_body(3)
    body.feed(b"abc")
    buffer = bytearray(b"-----")
    assert await body.read_into(memoryview(buffer)) == 3
    assert buffer == b"abc--"
    assert await body.read_into(memoryview(buffer)) == 0


@on_asyncio
async def test_a_lost_connection_ends_a_read_and_those_after_it() -> None:
    body, _ = new_body(10)
    read = asyncio.create_task(body.read_into(memoryview(bytearray(10))))
    await asyncio.sleep(0)
    arrive(body, b"abc")
    body.lost()
    with pytest.raises(ConnectionError):
        await read
    with pytest.raises(ConnectionError):
        await body.read_into(memoryview(bytearray(10)))


@on_asyncio
async def test_a_body_that_is_whole_is_read_though_the_connection_is_lost() -> None:
    body, _ = new_body(3)
    body.feed(b"abc")
    body.lost()
    buffer = bytearray(3)
    assert await body.read_into(memoryview(buffer)) == 3
    assert buffer == b"abc"


@on_asyncio
async def test_after_a_cancelled_read_the_rest_goes_nowhere() -> None:
    body, _ = new_body(10)
    buffer = bytearray(10)
    read = asyncio.create_task(body.read_into(memoryview(buffer)))
    await asyncio.sleep(0)
    arrive(body, b"abc")
    read.cancel()
    await asyncio.wait([read])
    arrive(body, b"defghij")
    assert body.left == 0
    assert buffer == b"abc" + bytes(7)


@on_asyncio
async def test_the_rest_of_an_abandoned_body_is_received_and_dropped() -> None:
    body, tap = new_body(10)
    body.abandon()
    body.hold()
    assert tap.reads == []
    arrive(body, b"abcdefghij")
    assert body.left == 0


# --- connections ---------------------------------------------------------------------------------


@dataclass
class Wire(asyncio.Transport):
    """The network's end of a connection."""

    written: bytearray = field(default_factory=bytearray)
    is_paused: bool = False
    is_shut: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_shut

    def close(self) -> None:
        self.is_shut = True

    @property
    def answers(self) -> list[tuple[int, bytes]]:
        """Status and body of each whole answer."""
        found, rest = [], bytes(self.written)
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            match = re.search(rb"content-length: (\d+)", head)
            length = int(match[1]) if match else 0
            found.append((int(head.split(b" ")[1]), rest[:length]))
            rest = rest[length:]
        return found


async def digest_app(scope: Message, receive: Any, send: Any) -> None:
    """Answers with the length and the sum of the body, read in the way that the path asks for."""
    path = scope["path"]
    body: RequestBody | None = scope.get("extensions", {}).get(EXTENSION)
    data = bytearray()
    if path.startswith("/direct/") and body is not None:
        size = int(path.rsplit("/", 1)[1])
        while body.unread:
            piece = bytearray(min(size, body.unread))
            assert await body.read_into(memoryview(piece)) == len(piece)
            data += piece
    elif path != "/early":
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            data += message["body"]
            more = message["more_body"]
    answer = b"%d %d" % (len(data), sum(data))
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class Client:
    """Sends bytes to a connection as a network does: when it may, in pieces of any size."""

    def __init__(self, app: Any = digest_app) -> None:
        config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none")
        config.load()
        self.connection = serving._Connection(
            config=config,
            server_state=ServerState(),
            app_state={},
            _loop=asyncio.get_running_loop(),
        )
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    async def send(self, data: bytes, sizes: list[int]) -> None:
        """Send `data` in pieces of these sizes, over and over."""
        turn = 0
        while data:
            await self.settle()
            assert not self.wire.is_paused, "nobody reads"
            buffer = self.connection.get_buffer(-1)
            count = min(len(buffer), len(data), sizes[turn % len(sizes)])
            buffer[:count] = data[:count]
            self.connection.buffer_updated(count)
            data = data[count:]
            turn += 1
        await self.settle()

    async def settle(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    def hang_up(self) -> None:
        self.connection.eof_received()
        self.connection.connection_lost(None)


def request(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"PUT {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def expected(body: bytes) -> tuple[int, bytes]:
    return 200, b"%d %d" % (len(body), sum(body))


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(["/direct/1000000", "/direct/70001", "/receive"]),
            st.sampled_from([0, 5, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE]),
        ),
        min_size=1,
        max_size=4,
    ),
    sizes=st.lists(st.sampled_from([7000, 40_000, 65_536, 1_000_000]), min_size=1, max_size=5),
)
def test_bodies_arrive_whole_however_the_network_cuts_them(
    requests: list[tuple[str, int]], sizes: list[int]
) -> None:
    async def main() -> None:
        client = Client()
        bodies = [body_of(length, seed)[:length] for seed, (_, length) in enumerate(requests)]
        for (path, _), body in zip(requests, bodies, strict=True):
            await client.send(request(path, body), sizes)
        assert client.wire.answers == [expected(body) for body in bodies]
        client.hang_up()

    asyncio.run(main())


@pytest.mark.parametrize("cut", range(1, 100, 3))
@on_asyncio
async def test_a_head_may_be_cut_anywhere(cut: int) -> None:
    client = Client()
    body = body_of(LARGE)[:LARGE]
    data = request("/direct/100000", body)
    await client.send(data[:cut], [cut])
    await client.send(data[cut:], [65_536])
    assert client.wire.answers == [expected(body)]


@on_asyncio
async def test_requests_sent_ahead_are_answered_in_order() -> None:
    client = Client()
    bodies = [body_of(length, length)[:length] for length in (LARGE, 10, LARGE + 7)]
    data = b"".join(request("/direct/90000", body) for body in bodies)
    await client.send(data, [65_536])
    assert client.wire.answers == [expected(body) for body in bodies]


@on_asyncio
async def test_large_requests_sent_ahead_of_their_turn_are_answered_in_order() -> None:
    """Both heads come with one read, so the second request waits behind the first."""
    client = Client()
    small, large = b"x" * 10, body_of(LARGE)[:LARGE]
    data = request("/receive", small) + request("/direct/90000", large)
    await client.send(data, [len(request("/receive", small)) + 200, 65_536])
    assert client.wire.answers == [expected(small), expected(large)]


@on_asyncio
async def test_an_early_answer_leaves_the_connection_usable() -> None:
    client = Client()
    body = body_of(3 * LARGE)[: 3 * LARGE]
    await client.send(request("/early", body), [65_536])
    await client.send(request("/direct/50000", body), [65_536])
    assert client.wire.answers == [expected(b""), expected(body)]


@pytest.mark.parametrize("path", ["/direct/50000", "/receive"])
@on_asyncio
async def test_a_client_that_waits_is_told_to_continue(path: str) -> None:
    client = Client()
    body = body_of(LARGE)[:LARGE]
    head = request(path, body, "expect: 100-continue")[: -len(body)]
    await client.send(head, [65_536])
    assert client.wire.answers == [(100, b"")]
    await client.send(body, [65_536])
    assert client.wire.answers == [(100, b""), expected(body)]


@pytest.mark.parametrize("path", ["/direct/50000", "/receive"])
@on_asyncio
async def test_a_client_that_hangs_up_ends_the_request(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        try:
            await digest_app(scope, receive, send)
        except ConnectionError:
            ended.append("hung up")
        else:
            ended.append("returned")

    client = Client(app)
    body = body_of(LARGE)[:LARGE]
    await client.send(request(path, body)[:-1000], [65_536])
    client.hang_up()
    await client.settle()
    assert ended == ["hung up" if path.startswith("/direct") else "returned"]
    assert client.wire.answers == []
    assert caplog.records == []


@on_asyncio
async def test_nothing_is_received_while_nobody_reads() -> None:
    gate = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await gate.wait()
        await digest_app(scope, receive, send)

    client = Client(app)
    body = body_of(4 * LARGE)[: 4 * LARGE]
    data = request("/direct/100000", body)
    await client.send(data[:65_536], [65_536])
    assert client.wire.is_paused
    gate.set()
    await client.settle()
    await client.send(data[65_536:], [65_536])
    assert client.wire.answers == [expected(body)]


@on_asyncio
async def test_what_is_not_http_is_refused() -> None:
    client = Client()
    await client.send(b"\x16\x03\x01 this is TLS\r\n\r\n", [65_536])
    assert [status for status, _ in client.wire.answers] == [400]
    assert client.wire.is_shut


@on_asyncio
async def test_an_application_that_fails_gives_an_error_and_keeps_the_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        del scope, receive, send
        raise ZeroDivisionError("a bug")

    client = Client(app)
    await client.send(request("/direct/100000", body_of(LARGE)[:LARGE])[:1000], [1000])
    assert [status for status, _ in client.wire.answers] == [500]
    assert "a bug" in caplog.text
