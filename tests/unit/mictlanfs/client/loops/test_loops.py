"""What `base.Loop` promises, on every loop."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
import sniffio
import trio
import uvloop

from mictlanfs.client import loops
from mictlanfs.client.loops import base, onasyncio, ontrio
from mictlanfs.client.loops.base import ByteStream, Outgoing, TooLateError
from mictlanfs.model import Buffer

Main = Callable[[], Coroutine[Any, Any, None]]
Run = Callable[[Main], None]
RUNS: dict[str, Run] = {
    "trio": trio.run,
    "asyncio": lambda main: asyncio.run(main()),
    "uvloop": lambda main: uvloop.run(main()),
}


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]


async def sleep(seconds: float) -> None:
    if sniffio.current_async_library() == "trio":
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


@asynccontextmanager
async def connected(host: str = "127.0.0.1") -> AsyncIterator[tuple[ByteStream, socket.socket]]:
    """A stream and its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = await loops.current().connect(host, listener.getsockname()[1])
        with closing(stream), listener.accept()[0] as other:
            yield stream, other


def test_each_loop_has_its_adapter(run: Run) -> None:
    async def main() -> None:
        is_trio = sniffio.current_async_library() == "trio"
        assert loops.current() is (ontrio if is_trio else onasyncio)

    run(main)


def test_without_a_loop_there_is_none() -> None:
    with pytest.raises(sniffio.AsyncLibraryNotFoundError):
        loops.current()


@pytest.mark.parametrize(("loop", "other"), [("trio", "asyncio"), ("asyncio", "trio")])
def test_a_process_loads_no_loop_but_its_own(loop: str, other: str) -> None:
    program = f"""
import sys, {loop}
from mictlanfs.client.transport import HttpTransport

async def main():
    try:
        await HttpTransport().request("GET", "http://127.0.0.1:1/")
    except Exception as error:
        assert "refused" in str(error), error

{"trio.run(main)" if loop == "trio" else "asyncio.run(main())"}
print("{other}" in sys.modules)
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


# --- streams -------------------------------------------------------------------------------------


def test_bytes_are_received_as_they_come(run: Run) -> None:
    async def main() -> None:
        async with connected() as (stream, other):
            assert not stream.is_readable()
            other.sendall(b"some")
            assert await stream.receive(3) == b"som"
            assert stream.is_readable()
            assert await stream.receive(3) == b"e"
            other.close()
            assert await stream.receive(3) == b""
            assert stream.is_readable()

    run(main)


def test_a_buffer_is_filled_or_the_other_side_has_ended(run: Run) -> None:
    async def main() -> None:
        async with connected() as (stream, other):
            buffer = bytearray(5)
            other.sendall(b"1234567")
            assert await stream.fill(memoryview(buffer)) == 5
            assert buffer == b"12345"
            assert await stream.fill(memoryview(b"")) == 0
            other.close()
            assert await stream.fill(memoryview(buffer)) == 2
            assert buffer == b"67345"

    run(main)


def test_more_than_the_kernel_takes_is_sent_when_it_takes_more(run: Run) -> None:
    pieces: list[Buffer] = [b"a" * 3_000_000, bytearray(b"b"), b"", memoryview(b"c" * 3_000_000)]

    async def main() -> None:
        received = bytearray(6_000_001)
        async with connected() as (stream, other):

            def read_all() -> None:
                view = memoryview(received)
                while view:
                    view = view[other.recv_into(view) :]

            reader = threading.Thread(target=read_all)
            reader.start()
            await stream.send_all(pieces)
            reader.join()
        assert received == b"".join(pieces)

    run(main)


def is_trio() -> bool:
    return sniffio.current_async_library() == "trio"


def test_a_broken_connection_is_an_error_to_both_sides(run: Run) -> None:
    async def main() -> None:
        async with connected() as (stream, other):
            # Closing with unread bytes resets the connection.
            await stream.send_all([b"unread"])
            await sleep(0.01)
            other.close()
            assert stream.is_readable()
            with pytest.raises(ConnectionError):
                await stream.receive(10)
            with pytest.raises(ConnectionError):
                await stream.send_all([b"x"])

    run(main)


def test_an_error_that_is_none_of_the_network_ends_the_wait_too(run: Run) -> None:
    async def main() -> None:
        async with connected() as (stream, other):
            other.sendall(b"some")
            with pytest.raises(ValueError, match="negative"):
                await stream.receive(-1)

    run(main)


@pytest.mark.parametrize("way", ["receive", "fill", "send_all"])
def test_a_deadline_ends_every_wait_and_nothing_watches_the_socket_any_more(
    way: str, run: Run
) -> None:
    async def main() -> None:
        waits: dict[str, Callable[[ByteStream], Coroutine[Any, Any, object]]] = {
            "receive": lambda stream: stream.receive(10),
            "fill": lambda stream: stream.fill(memoryview(bytearray(10))),
            "send_all": lambda stream: stream.send_all([bytes(64_000_000)]),
        }
        async with connected() as (stream, other):
            other.sendall(b"some" if way == "fill" else b"")
            with pytest.raises(TooLateError):
                async with loops.current().deadline(0.02):
                    await waits[way](stream)
            if isinstance(stream, onasyncio.AsyncioStream):
                loop = asyncio.get_running_loop()
                fd = stream._socket.fileno()
                assert not loop.remove_reader(fd)
                assert not loop.remove_writer(fd)

    run(main)


# --- deadlines -----------------------------------------------------------------------------------


def test_a_deadline_can_be_moved_both_ways(run: Run) -> None:
    async def main() -> None:
        async with loops.current().deadline(0.02) as deadline:
            deadline.move(60)
            await sleep(0.05)
        with pytest.raises(TooLateError):
            await sleep_long_with_a_deadline_moved_to(0.01)

    async def sleep_long_with_a_deadline_moved_to(timeout_s: float) -> None:
        async with loops.current().deadline(60) as deadline:
            deadline.move(timeout_s)
            await sleep(60)

    run(main)


def test_an_error_passes_a_deadline_as_it_is(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError) as caught:
            async with loops.current().deadline(60):
                raise TimeoutError(errno.ETIMEDOUT, "of the kernel")
        assert caught.value.errno == errno.ETIMEDOUT

    run(main)


def test_cancelling_from_outside_is_no_deadline() -> None:
    async def wait() -> None:
        async with loops.current().deadline(60):
            await sleep(60)

    async def on_trio() -> None:
        with trio.move_on_after(0.01) as scope:
            await wait()
        assert scope.cancelled_caught

    async def on_asyncio() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    trio.run(on_trio)
    asyncio.run(on_asyncio())
    uvloop.run(on_asyncio())


# --- connecting ----------------------------------------------------------------------------------


def give_addresses(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)
        for address in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)


def test_a_name_is_looked_up(run: Run) -> None:
    async def main() -> None:
        async with connected("localhost") as (stream, other):
            other.sendall(b"x")
            assert await stream.receive(1) == b"x"

    run(main)


def test_nobody_there_says_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError) as caught:
            await loops.current().connect("127.0.0.1", 1)
        assert caught.value.strerror == "Connection refused"
        give_addresses(monkeypatch, ("127.0.0.1", 1), ("127.0.0.1", 2))
        with pytest.raises(ConnectionRefusedError):
            await loops.current().connect("both", 1)

    run(main)


def test_a_name_that_nobody_knows_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def main() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", find)
        # uvloop does not ask the `socket` module.
        loop = asyncio.get_running_loop() if not is_trio() else None
        if isinstance(loop, uvloop.Loop):
            return
        with pytest.raises(socket.gaierror, match="not known"):
            await loops.current().connect("nobody", 1)

    run(main)


@pytest.mark.parametrize("first", ["refusing", "silent"])
def test_the_next_address_is_tried_as_well(
    first: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onasyncio, "NEXT_ADDRESS_AFTER_S", 0.02)
    monkeypatch.setattr(ontrio, "NEXT_ADDRESS_AFTER_S", 0.02)

    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=0) as silent,
            socket.create_connection(silent.getsockname()),
            socket.create_server(("127.0.0.1", 0)) as listener,
        ):
            addresses = {"refusing": ("127.0.0.1", 1), "silent": silent.getsockname()}
            give_addresses(monkeypatch, addresses[first], listener.getsockname())
            stream = await loops.current().connect("both", 1)
            with closing(stream), listener.accept()[0] as other:
                await stream.send_all([b"hello"])
                assert other.recv(10) == b"hello"

    run(main)


def test_a_connect_that_is_cancelled_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=0) as silent,
            socket.create_connection(silent.getsockname()),
        ):
            before = os.listdir("/proc/self/fd")
            with pytest.raises(TooLateError):
                async with loops.current().deadline(0.02):
                    await loops.current().connect(*silent.getsockname())
            assert os.listdir("/proc/self/fd") == before

    run(main)


# --- the limiter, and what is going out ----------------------------------------------------------


def test_a_limiter_lets_so_many_in() -> None:
    inside: list[int] = []

    async def use(limiter: Any, busy: list[int]) -> None:
        async with limiter:
            busy.append(1)
            inside.append(len(busy))
            await sleep(0.001)
            busy.pop()

    async def on_trio() -> None:
        limiter, busy = loops.current().limiter(3), list[int]()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use, limiter, busy)

    async def on_asyncio() -> None:
        limiter, busy = loops.current().limiter(3), list[int]()
        await asyncio.gather(*(use(limiter, busy) for _ in range(10)))

    trio.run(on_trio)
    assert (max(inside), len(inside)) == (3, 10)
    inside.clear()
    asyncio.run(on_asyncio())
    assert (max(inside), len(inside)) == (3, 10)


@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_what_was_sent_is_not_sent_again(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BUFFERS_PER_SEND_MAX", 2)
    outgoing = Outgoing([b"ab", bytearray(), memoryview(b"c"), b"defg", b"h"])
    sent = b""
    is_all = False
    while not is_all:
        taken = b"".join(outgoing.next())[:step]
        assert taken
        sent += taken
        is_all = outgoing.sent(len(taken))
    assert sent == b"abcdefgh"
