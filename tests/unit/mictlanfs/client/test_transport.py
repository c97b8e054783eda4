import inspect
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from mictlanfs import tracecontext
from mictlanfs.client.transport import HttpTransport, StreamedResponse, translated_errors
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer
from tests.support.clientloops import NAMES, ClientLoop, client_loop

FOREIGN = [
    error
    for _, error in inspect.getmembers(httpx, inspect.isclass)
    if issubclass(error, Exception) and not issubclass(error, Warning)
]


def make(error: type[Exception]) -> Exception:
    """An instance, whatever its constructor asks for."""
    if issubclass(error, httpx.HTTPStatusError):
        request = httpx.Request("GET", "http://x")
        return error("text", request=request, response=httpx.Response(500, request=request))
    for arguments in (("text",), ()):
        try:
            return error(*arguments)
        except TypeError:
            continue
    raise AssertionError(f"how is {error.__name__} made?")


@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: str(error.__name__))
def test_every_exception_of_httpx_is_translated(error: type[Exception]) -> None:
    with pytest.raises(MictlanError) as caught, translated_errors("GET", "http://x/y"):
        raise make(error)
    expected = Kind.UNAVAILABLE
    if issubclass(error, httpx.TimeoutException):
        expected = Kind.TIMED_OUT
    elif issubclass(error, httpx.InvalidURL):
        expected = Kind.INVALID
    elif not issubclass(error, httpx.HTTPError):
        expected = Kind.INTERNAL
    assert caught.value.kind is expected
    assert "http://x/y" in str(caught.value)


def test_an_exception_that_says_nothing_is_named() -> None:
    with pytest.raises(MictlanError) as caught, translated_errors("GET", "http://x"):
        raise httpx.ReadError("")
    assert "ReadError" in str(caught.value)


# --- a real exchange, on every event loop --------------------------------------------------------


@pytest.fixture(params=NAMES)
def loop(request: pytest.FixtureRequest) -> Iterator[ClientLoop]:
    with client_loop(request.param) as found:
        yield found


class Echo:
    """An HTTP server that answers 418 with what it was sent, head and body."""

    def __init__(self) -> None:
        self.connection_count = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connection_count += 1
        received = b""
        async for part in stream:
            received += part
            head, end, body = received.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            if end and len(body) == length:
                answer = b"HTTP/1.1 418 No\r\nX-Got: it\r\nContent-Length: %d\r\n\r\n%s"
                await stream.send_all(answer % (len(received), received))
                received = b""


@asynccontextmanager
async def echo_server() -> AsyncIterator[tuple[Echo, str]]:
    echo = Echo()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, echo.serve, 0)
        yield echo, f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def exchange(url: str) -> None:
    transport = HttpTransport()
    bodies: list[Buffer | Sequence[Buffer] | None] = [
        None,
        b"",
        b"whole",
        bytearray(b"array"),
        [b"in ", memoryview(b"pieces"), bytearray(b"!")],
        b"x" * 3_000_000,
    ]
    for body in bodies:
        response = await transport.request(
            "POST", url + "/a?b=c", body=body, headers={"x-sent": "yes"}
        )
        assert response.status == 418
        assert response.headers["x-got"] == "it"
        head, _, got = bytes(response.body).partition(b"\r\n\r\n")
        assert head.startswith(b"POST /a?b=c HTTP/1.1\r\n")
        assert b"\r\nx-sent: yes" in head.lower()
        sent = body or b""
        assert got == (bytes(sent) if isinstance(sent, Buffer) else b"".join(sent))
    await transport.aclose()


async def test_a_request_and_its_answer_arrive_whole(loop: ClientLoop) -> None:
    async with echo_server() as (echo, url):
        await loop.run(exchange, url)
    # One connection is kept for all of them.
    assert echo.connection_count == 1


async def get_refusal(url: str) -> MictlanError:
    transport = HttpTransport()
    with pytest.raises(MictlanError) as caught:
        await transport.request("GET", url, timeout_s=0.1)
    await transport.aclose()
    return caught.value


async def test_a_proxy_of_the_environment_is_not_used(
    loop: ClientLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def use(url: str) -> None:
        transport = HttpTransport()
        assert (await transport.request("GET", url)).status == 418
        await transport.aclose()

    async with echo_server() as (_, url):
        await loop.run(use, url)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nobody_there_is_unavailable(scheme: str, loop: ClientLoop) -> None:
    error = await loop.run(get_refusal, f"{scheme}://127.0.0.1:1/x")
    assert error.kind is Kind.UNAVAILABLE
    assert "127.0.0.1:1" in str(error)


async def test_a_server_that_says_nothing_is_too_late(loop: ClientLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await loop.run(get_refusal, f"http://127.0.0.1:{silent.getsockname()[1]}/")
    assert error.kind is Kind.TIMED_OUT


async def test_an_address_that_is_none_is_an_error(loop: ClientLoop) -> None:
    for url in ("http://[", "http://127.0.0.1:99999999/"):
        await loop.run(get_refusal, url)


async def test_closing_without_any_request_is_fine(loop: ClientLoop) -> None:
    await loop.run(HttpTransport().aclose)


# --- bodies in pieces ----------------------------------------------------------------------------


class Counter:
    """Answers every request with its body in chunks, once it has it whole; then breaks off."""

    def __init__(self, *, breaks_off: bool = False) -> None:
        self.breaks_off = breaks_off

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        async for part in stream:
            received += part
            if received.endswith(b"\r\n0\r\n\r\n") or b"transfer-encoding" not in received.lower():
                break
        head, _, coded = received.partition(b"\r\n\r\n")
        if b"transfer-encoding" not in head.lower():
            coded = b"3\r\nget\r\n0\r\n\r\n"
        if self.breaks_off:
            coded = coded[:-9]
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded)
        await stream.aclose()


@asynccontextmanager
async def counting(counter: Counter) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, counter.serve, 0)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/x"
        nursery.cancel_scope.cancel()


async def pieces() -> AsyncIterator[bytes]:
    for index in range(3):
        yield bytes([index]) * 100_000


async def read_all(response: StreamedResponse) -> bytes:
    return b"".join([piece async for piece in response.pieces])


async def exchange_in_pieces(url: str, *requests: tuple[str, AsyncIterator[bytes] | None]) -> bytes:
    """What the last of `requests` gets."""
    transport = HttpTransport()
    try:
        for method, body in requests:
            async with transport.stream(method, url, body=body) as response:
                got = await read_all(response)
                assert response.status == 200
    finally:
        await transport.aclose()
    return got


async def test_a_body_in_pieces_is_sent_and_read(loop: ClientLoop) -> None:
    async with counting(Counter()) as url:
        got = await loop.run(exchange_in_pieces, url, ("POST", pieces()))
        assert got == b"".join([piece async for piece in pieces()])
        got = await loop.run(exchange_in_pieces, url, ("POST", pieces()), ("GET", None))
        assert got == b"get"


async def test_an_answer_that_breaks_off_in_the_middle_is_an_error(loop: ClientLoop) -> None:
    async with counting(Counter(breaks_off=True)) as url:
        with pytest.raises(MictlanError) as caught:
            await loop.run(exchange_in_pieces, url, ("POST", pieces()))
    assert caught.value.kind is Kind.UNAVAILABLE


async def test_an_error_of_the_body_passes_as_it_is(loop: ClientLoop) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise OSError("no such disk")

    async with counting(Counter()) as url:
        with pytest.raises(OSError, match="no such disk"):
            await loop.run(exchange_in_pieces, url, ("POST", broken()))


async def test_nobody_there_is_unavailable_for_a_stream_too(loop: ClientLoop) -> None:
    with pytest.raises(MictlanError) as caught:
        await loop.run(exchange_in_pieces, "http://127.0.0.1:1/", ("GET", None))
    assert caught.value.kind is Kind.UNAVAILABLE


# --- traces --------------------------------------------------------------------------------------


async def test_a_request_and_a_stream_carry_the_trace_that_there_is(loop: ClientLoop) -> None:
    traces = [{"traceparent": "one"}, {"traceparent": "two"}, {}]
    heads: list[bytes] = []

    async def exchange_thrice(url: str) -> None:
        transport = HttpTransport()
        heads.append(bytes((await transport.request("GET", url, headers={"a": "b"})).body))
        async with transport.stream("GET", url) as response:
            heads.append(await read_all(response))
        heads.append(bytes((await transport.request("GET", url)).body))
        await transport.aclose()

    async with echo_server() as (_, url):
        tracecontext.set_source(lambda: traces.pop(0))
        try:
            await loop.run(exchange_thrice, url)
        finally:
            tracecontext.set_source(None)
    first, second, third = (head.lower() for head in heads)
    assert b"\r\na: b\r\n" in first
    assert b"\r\ntraceparent: one\r\n" in first
    assert b"\r\ntraceparent: two\r\n" in second
    assert b"traceparent" not in third
