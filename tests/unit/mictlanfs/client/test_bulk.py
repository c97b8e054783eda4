import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise

import httpx
import pytest
import trio

from mictlanfs.client import bulk
from mictlanfs.client.bulk import BODY, CONNECTIONS_PER_SERVER_MAX, INTO, BulkTransport
from mictlanfs.client.loops import base
from mictlanfs.client.reception import STEP_SIZE_BYTES, Reception
from mictlanfs.model import MIB, Buffer
from tests.support.clientloops import NAMES, ClientLoop, client_loop
from tests.support.waiting import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n"
CLOSE = b""


class Script:
    """A server that takes requests and sends the answers it was given, in turn.

    An answer is a list of parts to send; CLOSE ends the connection there.

    Attributes:
        received: what each request looked like.
        connection_count: how often somebody connected.
        ended_count: how many of these connections were ended by the other side.
    """

    def __init__(self, *answers: Sequence[bytes]) -> None:
        self.answers = list(answers)
        self.received: list[bytes] = []
        self.connection_count = self.ended_count = 0
        self.busy_max = 0
        self._busy = 0
        self.gate = trio.Event()
        self.gate.set()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connection_count += 1
        while (request := await self._receive(stream)) is not None:
            self.received.append(request)
            self._busy += 1
            self.busy_max = max(self.busy_max, self._busy)
            await self.gate.wait()
            self._busy -= 1
            for part in self.answers.pop(0) if self.answers else [OK]:
                if part == CLOSE:
                    return
                await stream.send_all(part)
                await trio.testing.wait_all_tasks_blocked()
        self.ended_count += 1

    async def _receive(self, stream: trio.SocketStream) -> bytes | None:
        received = b""
        async for part in stream:
            received += part
            head, end, body = received.partition(b"\r\n\r\n")
            if end and len(body) == int(head.rpartition(b"content-length: ")[2]):
                return received
        return None


class Client:
    """A `BulkTransport` on the event loop of `loop`."""

    def __init__(self, loop: ClientLoop) -> None:
        self._loop = loop
        self._transport = BulkTransport()

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self._loop.run(self._transport.handle_async_request, request)

    async def aclose(self) -> None:
        await self._loop.run(self._transport.aclose)


@pytest.fixture(params=NAMES)
def loop(request: pytest.FixtureRequest) -> Iterator[ClientLoop]:
    with client_loop(request.param) as found:
        yield found


@asynccontextmanager
async def serving(script: Script, loop: ClientLoop) -> AsyncIterator[tuple[Client, str]]:
    transport = Client(loop)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, script.serve, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        yield transport, f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/path?q=1"
        await transport.aclose()
        nursery.cancel_scope.cancel()


async def ask(
    transport: Client, url: str, *pieces: Buffer, timeout_s: float = 5.0
) -> tuple[int, bytes]:
    # Connecting is another matter: a busy machine takes its time.
    extensions = {"timeout": {"read": timeout_s, "connect": 5.0}, BODY: pieces}
    request = httpx.Request("PUT", url, extensions=extensions)
    response = await transport.send(request)
    return response.status_code, bytes(response.extensions[BODY])


# --- requests ------------------------------------------------------------------------------------


async def test_a_request_is_what_http_says(loop: ClientLoop) -> None:
    script = Script()
    async with serving(script, loop) as (transport, url):
        assert await ask(transport, url, b"a", memoryview(b"bc"), bytearray(), b"d") == (200, b"ok")
    head, _, body = script.received[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"PUT /path?q=1 HTTP/1.1"
    assert any(line.lower().startswith(b"host: 127.0.0.1:") for line in lines)
    assert [line for line in lines if line.lower().startswith(b"content-length")] == [
        b"content-length: 4"
    ]
    assert body == b"abcd"


async def test_a_body_of_many_and_of_large_pieces_arrives_in_order(
    loop: ClientLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "BUFFERS_PER_SEND_MAX", 3)
    pieces = [bytes([n]) * (n * 1000) for n in range(1, 50)] + [b"z" * (3 * MIB)]
    script = Script()
    async with serving(script, loop) as (transport, url):
        await ask(transport, url, *pieces)
    assert script.received[0].partition(b"\r\n\r\n")[2] == b"".join(pieces)


# --- answers -------------------------------------------------------------------------------------

BODY_BYTES = bytes(range(256)) * 4096
WHOLE = b"HTTP/1.1 206 Partial Content\r\nX-A: b\r\ncontent-length:1048576 \r\n\r\n" + BODY_BYTES


@pytest.mark.parametrize("cuts", [[], [1], [10, 40], [70], [75, 76], [80, 500_000]])
async def test_an_answer_arrives_whole_however_it_is_cut(loop: ClientLoop, cuts: list[int]) -> None:
    bounds = [0, *cuts, len(WHOLE)]
    parts = [WHOLE[a:b] for a, b in pairwise(bounds)]
    async with serving(Script(parts), loop) as (transport, url):
        assert await ask(transport, url) == (206, BODY_BYTES)


async def test_headers_are_those_of_the_answer(loop: ClientLoop) -> None:
    async with serving(Script([WHOLE]), loop) as (transport, url):
        response = await transport.send(httpx.Request("GET", url))
        assert response.headers["x-a"] == "b"


@pytest.mark.parametrize("status", [200, 204, 304, 404, 503])
async def test_an_answer_without_a_body_is_empty(loop: ClientLoop, status: int) -> None:
    answer = b"HTTP/1.1 %d Word\r\n\r\n" % status
    async with serving(Script([answer], [answer]), loop) as (transport, url):
        for _ in range(2):
            assert await ask(transport, url) == (status, b"")


@pytest.mark.parametrize("cuts", [[], [1], [50, 60], [53, 54, 55], [60, 700_000], [80, 1_048_600]])
async def test_a_chunked_answer_arrives_whole_and_its_connection_is_kept(
    loop: ClientLoop, cuts: list[int]
) -> None:
    middle = len(BODY_BYTES) - 100
    coded = b"%x\r\n%s\r\n64;a=b\r\n%s\r\n0\r\n\r\n"
    answer = CHUNKED + b"\r\n" + coded % (middle, BODY_BYTES[:middle], BODY_BYTES[middle:])
    bounds = [0, *cuts, len(answer)]
    script = Script([answer[a:b] for a, b in pairwise(bounds)])
    async with serving(script, loop) as (transport, url):
        assert await ask(transport, url) == (200, BODY_BYTES)
        assert await ask(transport, url) == (200, b"ok")
    assert script.connection_count == 1


async def test_a_server_may_refuse_a_body_before_it_has_read_it(loop: ClientLoop) -> None:
    refusal = b"HTTP/1.1 507 Full\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull"

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(refusal)
        await stream.send_eof()
        # The client is still sending; a reset now would take the answer away from it.
        async for _ in stream:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        transport = Client(loop)
        assert await ask(transport, url, bytes(20 * MIB)) == (507, b"full")
        await transport.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "parts",
    [
        [b"SSH-2.0-OpenSSH\r\n\r\n"],
        [b"HTTP/1.1 abc\r\n\r\n"],
        [b"HTTP/2 200\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nno header\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999999\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n"],
        [CHUNKED + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
        [CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"],
        [CHUNKED + b"\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n"],
        [CHUNKED + b"\r\n5\r\nok\r\n", CLOSE],
        [CHUNKED + b"\r\n2\r\nokay\r\n0\r\n\r\n"],
        [CHUNKED + b"\r\nFFFFFFFFF\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nok"],
        [b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000],
        [b"HTTP/1.1 200 OK\r\n", CLOSE],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", CLOSE],
        [CLOSE],
    ],
)
async def test_an_answer_that_is_none_is_an_error_and_ends_the_connection(
    loop: ClientLoop, parts: list[bytes]
) -> None:
    script = Script(parts)
    async with serving(script, loop) as (transport, url):
        with pytest.raises(httpx.TransportError):
            await ask(transport, url)
        assert await ask(transport, url) == (200, b"ok")
    assert script.connection_count == 2


# --- connections ---------------------------------------------------------------------------------


async def test_a_connection_is_kept_for_the_next_request(loop: ClientLoop) -> None:
    script = Script()
    async with serving(script, loop) as (transport, url):
        for _ in range(5):
            await ask(transport, url, b"body")
    assert script.connection_count == 1


async def test_a_server_that_says_so_is_not_asked_again_on_the_same_connection(
    loop: ClientLoop,
) -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok"
    script = Script([closing], [closing])
    async with serving(script, loop) as (transport, url):
        for _ in range(3):
            await ask(transport, url)
    assert script.connection_count == 3


async def test_a_connection_closed_while_it_was_idle_is_replaced_without_an_error(
    loop: ClientLoop,
) -> None:
    script = Script([OK, CLOSE], [OK, CLOSE])
    async with serving(script, loop) as (transport, url):
        for _ in range(3):
            assert await ask(transport, url, b"body") == (200, b"ok")
            await trio.testing.wait_all_tasks_blocked()
    assert script.connection_count == 3


async def test_a_connection_that_closes_just_as_it_is_used_is_replaced(loop: ClientLoop) -> None:
    # The second request reaches the server, which closes instead of an answer: a restart.
    script = Script([OK], [CLOSE])
    async with serving(script, loop) as (transport, url):
        assert await ask(transport, url) == (200, b"ok")
        assert await ask(transport, url) == (200, b"ok")
    assert script.connection_count == 2
    assert len(script.received) == 3


async def test_there_are_only_so_many_connections_to_a_server(loop: ClientLoop) -> None:
    script = Script()
    script.gate = trio.Event()
    async with serving(script, loop) as (transport, url), trio.open_nursery() as nursery:
        for _ in range(3 * CONNECTIONS_PER_SERVER_MAX):
            nursery.start_soon(ask, transport, url)
        await until(lambda: len(script.received) == CONNECTIONS_PER_SERVER_MAX)
        await trio.testing.wait_all_tasks_blocked(0.05)
        script.gate.set()
    assert script.connection_count == script.busy_max == CONNECTIONS_PER_SERVER_MAX
    assert len(script.received) == 3 * CONNECTIONS_PER_SERVER_MAX


async def test_servers_that_are_asked_no_more_are_forgotten(
    loop: ClientLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, busy, other = Script(), Script(), Script()
    async with (
        serving(moved, loop) as (transport, url),
        serving(busy, loop) as (_, busy_url),
        serving(other, loop) as (_, other_url),
    ):
        await ask(transport, url)
        busy.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, transport, busy_url)
            await until(lambda: len(busy.received) == 1)
            monkeypatch.setattr(bulk, "UNUSED_S_MAX", 0.0)
            await ask(transport, other_url)
            await until(lambda: moved.ended_count == 1)
            assert busy.ended_count == 0
            busy.gate.set()
        assert await ask(transport, url) == (200, b"ok")
    assert moved.connection_count == 2


@asynccontextmanager
async def cancelled_at_end(ask: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Cancels `ask`, which has not succeeded or failed by itself, at the end of the block."""
    ended: list[object] = []

    async def run() -> None:
        try:
            ended.append(await ask())
        except Exception as error:
            ended.append(error)
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield
        assert not ended
        nursery.cancel_scope.cancel()


async def test_a_request_cancelled_while_it_receives_leaves_no_half_an_answer(
    loop: ClientLoop,
) -> None:
    script = Script([WHOLE[:1000]])
    async with serving(script, loop) as (transport, url):
        async with cancelled_at_end(lambda: ask(transport, url)):
            await until(lambda: bool(script.received))
            await trio.sleep(0.05)
        assert await ask(transport, url) == (200, b"ok")
    assert script.connection_count == 2


async def test_a_request_cancelled_while_it_sends_ends_its_connection(loop: ClientLoop) -> None:
    counts: list[int] = []

    async def read_slowly(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        counts.append(0)
        if len(counts) == 2:
            await stream.send_all(OK)
            return
        await resume.wait()
        async for part in stream:
            counts[0] += len(part)
        end.set()

    resume, end = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, read_slowly, 0, host="127.0.0.1")
        url = f"http://127.0.0.1:{(await nursery.start(serve))[0].socket.getsockname()[1]}/"
        transport = Client(loop)
        async with cancelled_at_end(lambda: ask(transport, url, bytes(64 * MIB))):
            await until(lambda: bool(counts))
            await trio.sleep(0.05)
        resume.set()
        assert await ask(transport, url) == (200, b"ok")
        with trio.fail_after(10):
            await end.wait()
        await transport.aclose()
        nursery.cancel_scope.cancel()
    assert 0 < counts[0] < 64 * MIB


async def test_a_request_cancelled_while_it_waits_for_a_connection_takes_none(
    loop: ClientLoop,
) -> None:
    script = Script()
    script.gate = trio.Event()
    async with serving(script, loop) as (transport, url), trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS_PER_SERVER_MAX):
            nursery.start_soon(ask, transport, url)
        await until(lambda: len(script.received) == CONNECTIONS_PER_SERVER_MAX)
        async with cancelled_at_end(lambda: ask(transport, url)):
            await trio.sleep(0.05)
        script.gate.set()
        for _ in range(3):
            assert await ask(transport, url) == (200, b"ok")
    assert script.connection_count == CONNECTIONS_PER_SERVER_MAX


@pytest.mark.parametrize("parts", [[], [b"HTTP/1.1 200 OK\r\n"], [WHOLE[:1000]]])
async def test_a_server_that_says_no_more_times_out(
    loop: ClientLoop, parts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BYTES_PER_S_MIN", 10**9)
    script = Script(parts)
    async with serving(script, loop) as (transport, url):
        with pytest.raises(httpx.ReadTimeout):
            await ask(transport, url, timeout_s=0.1)


async def test_nobody_there_is_a_connect_error_that_says_why(loop: ClientLoop) -> None:
    with pytest.raises(httpx.ConnectError, match="refused"):
        await ask(Client(loop), "http://127.0.0.1:1/")


async def test_a_network_that_swallows_is_a_connect_timeout(loop: ClientLoop) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        # The queue of the server holds no second one, and the kernel does not answer it.
        socket.create_connection(full.getsockname()),
        pytest.raises(httpx.ConnectTimeout),
    ):
        await ask(Client(loop), f"http://127.0.0.1:{full.getsockname()[1]}/", timeout_s=0.2)


# --- into a buffer of the caller -----------------------------------------------------------------


async def receive(transport: Client, url: str, into: Reception) -> bytes:
    extensions = {"timeout": {"read": 5.0, "connect": 5.0}, INTO: into}
    response = await transport.send(httpx.Request("GET", url, extensions=extensions))
    return bytes(response.extensions[BODY])


@pytest.mark.parametrize("cuts", [[], [1], [75, 76], [80, 500_000]])
async def test_a_body_is_received_where_the_caller_wants_it(
    loop: ClientLoop, cuts: list[int]
) -> None:
    parts = [WHOLE[a:b] for a, b in pairwise([0, *cuts, len(WHOLE)])]
    into = Reception(len(BODY_BYTES) + 3)
    into.add(b"abc")
    script = Script(parts)
    async with serving(script, loop) as (transport, url):
        assert await receive(transport, url, into) == BODY_BYTES
        assert await ask(transport, url) == (200, b"ok")
    assert into.is_complete
    assert into.buffer == b"abc" + BODY_BYTES
    assert script.connection_count == 1


async def test_what_came_before_the_server_hung_up_is_kept(loop: ClientLoop) -> None:
    into = Reception(len(BODY_BYTES))
    async with serving(Script([WHOLE[:700_000], CLOSE]), loop) as (transport, url):
        with pytest.raises(httpx.ReadError):
            await receive(transport, url, into)
    received = 700_000 - (len(WHOLE) - len(BODY_BYTES))
    assert received - STEP_SIZE_BYTES < into.count <= received
    assert into.buffer[: into.count] == BODY_BYTES[: into.count]


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nwhat",
        CHUNKED + b"\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
async def test_an_answer_of_another_kind_or_length_does_not_go_there(
    loop: ClientLoop, answer: bytes
) -> None:
    into = Reception(4)
    async with serving(Script([answer]), loop) as (transport, url):
        assert await receive(transport, url, into) in {b"ok", b"what"}
    assert into.count == 0


async def test_more_than_is_wanted_there_is_an_error(loop: ClientLoop) -> None:
    into = Reception(1)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nok"
    async with serving(Script([answer]), loop) as (transport, url):
        with pytest.raises(httpx.RemoteProtocolError):
            await receive(transport, url, into)
