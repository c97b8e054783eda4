from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from mictlanfs import tracecontext
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer
from mictlanfs_server.v4.links import Links

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-Name: v\r\n\r\nok"


class Server:
    """A server that answers each request by the next of `answers`, then hangs up."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.requests: list[bytes] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._answer(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self.answers:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            answer = self.answers.pop(0)
            writer.write(answer)
            await writer.drain()
            if not answer:
                break


@asynccontextmanager
async def linked(server: Server) -> AsyncIterator[tuple[Links, str]]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    links = Links()
    try:
        yield links, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        await links.aclose()
        listening.close()
        await asyncio.gather(*server.tasks)


def run(server: Server, scenario: Callable[[Links, str], Awaitable[None]]) -> None:
    async def main() -> None:
        async with linked(server) as (links, url):
            await scenario(links, url)

    asyncio.run(main())


def test_requests_share_a_connection() -> None:
    server = Server(OK, OK, OK)

    async def scenario(links: Links, url: str) -> None:
        bodies: list[Sequence[Buffer] | Buffer | None] = [None, b"abc", [b"a", memoryview(b"bc")]]
        for body in bodies:
            response = await links.request("PUT", url + "/p", body=body, headers={"x-a": "1"})
            assert (response.status, response.body) == (200, b"ok")
            assert response.headers["x-name"] == "v"

    run(server, scenario)
    assert server.connections == 1
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [
        b"",
        b"abc",
        b"abc",
    ]
    assert all(request.startswith(b"PUT /p HTTP/1.1\r\nhost: 127.") for request in server.requests)
    assert all(b"x-a: 1\r\n" in request for request in server.requests)


def test_many_at_once_have_a_connection_each() -> None:
    server = Server(*[OK] * 20)

    async def scenario(links: Links, url: str) -> None:
        await asyncio.gather(*(links.request("GET", url) for _ in range(10)))
        await asyncio.gather(*(links.request("GET", url) for _ in range(10)))

    run(server, scenario)
    assert server.connections == 10


def test_connection_that_was_closed_while_idle_is_replaced() -> None:
    server = Server(OK, b"", OK)

    async def scenario(links: Links, url: str) -> None:
        await links.request("GET", url)
        # The second answer is none: the server hangs up.
        assert (await links.request("GET", url)).status == 200

    run(server, scenario)
    assert server.connections == 2


def test_server_that_hangs_up_on_a_new_connection_is_unavailable() -> None:
    async def scenario(links: Links, url: str) -> None:
        with pytest.raises(MictlanError) as caught:
            await links.request("GET", url)
        assert caught.value.kind is Kind.UNAVAILABLE

    run(Server(b""), scenario)


def test_answer_that_says_it_closes_is_the_last_of_its_connection() -> None:
    closing = OK.replace(b"X-Name: v", b"connection: close")
    server = Server(closing, OK)

    async def scenario(links: Links, url: str) -> None:
        assert (await links.request("GET", url)).body == b"ok"
        assert (await links.request("GET", url)).body == b"ok"

    run(server, scenario)
    assert server.connections == 2


def test_answers_of_unknown_length_are_read_whole() -> None:
    chunked = (
        b"HTTP/1.1 404 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )

    async def scenario(links: Links, url: str) -> None:
        response = await links.request("GET", url)
        assert (response.status, response.body) == (404, b"abcde")

    run(Server(chunked), scenario)


def test_what_is_no_http_is_unavailable() -> None:
    async def scenario(links: Links, url: str) -> None:
        with pytest.raises(MictlanError) as caught:
            await links.request("GET", url)
        assert caught.value.kind is Kind.UNAVAILABLE

    run(Server(b"SSH-2.0\r\n\r\n"), scenario)


def test_server_that_says_nothing_is_given_up() -> None:
    async def scenario(links: Links, url: str) -> None:
        with pytest.raises(MictlanError) as caught:
            await links.request("GET", url, timeout_s=0.05)
        assert caught.value.kind is Kind.TIMED_OUT
        # The answer that may still come belongs to nobody: the connection is not used again.
        assert (await links.request("GET", url)).status == 200

    server = Server(b"HTTP/1.1 200 OK\r\n", OK)
    run(server, scenario)
    assert server.connections == 2


def test_server_that_is_not_there_is_unavailable() -> None:
    async def main() -> None:
        listening = await asyncio.start_server(Server().serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        listening.close()
        await listening.wait_closed()
        with pytest.raises(MictlanError) as caught:
            await Links().request("GET", f"http://127.0.0.1:{port}")
        assert caught.value.kind is Kind.UNAVAILABLE

    asyncio.run(main())


def test_the_trace_of_a_request_is_passed_on() -> None:
    server = Server(OK)

    async def ask() -> None:
        async with linked(server) as (links, url):
            await links.request("GET", url + "/x", headers={"a": "b"})

    tracecontext.set_source(lambda: {"traceparent": "00-1-2-01"})
    try:
        asyncio.run(ask())
    finally:
        tracecontext.set_source(None)
    [request] = server.requests
    assert b"traceparent: 00-1-2-01\r\n" in request
    assert b"a: b\r\n" in request
