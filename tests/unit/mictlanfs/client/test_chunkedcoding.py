import asyncio
import socket
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import httpx
import pytest
import trio
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.client.chunkedcoding import LINE_SIZE_BYTES_MAX, TRAILER_COUNT_MAX, ChunkedBody
from mictlanfs.client.loops.base import ByteStream
from mictlanfs.client.loops.onasyncio import AsyncioStream
from mictlanfs.client.loops.ontrio import TrioStream

SIZE_MAX = 100_000


Main = Callable[[], Coroutine[Any, Any, bytes]]


def stream_on_trio(sock: socket.socket) -> ByteStream:
    return TrioStream(trio.socket.from_stdlib_socket(sock))


def stream_on_asyncio(sock: socket.socket) -> ByteStream:
    sock.setblocking(False)
    return AsyncioStream(sock)


Run = Callable[[Main], bytes]
LOOPS: dict[str, tuple[Run, Callable[[socket.socket], ByteStream]]] = {
    "trio": (trio.run, stream_on_trio),
    "asyncio": (lambda main: asyncio.run(main()), stream_on_asyncio),
    "uvloop": (lambda main: uvloop.run(main()), stream_on_asyncio),
}


@pytest.fixture(params=LOOPS, scope="module")
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def decoded(parts: list[bytes], loop: str, *, announced: list[int] | None = None) -> bytes:
    """What `parts` mean, the first of which comes along with the head; then the server hangs up."""
    run, stream_on = LOOPS[loop]

    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            stream = stream_on(ours)
            try:
                theirs.sendall(b"".join(parts[1:]))
                theirs.close()
                sizes = announced if announced is not None else []
                return bytes(await ChunkedBody(stream, parts[0], SIZE_MAX, sizes.append).receive())
            finally:
                stream.close()

    return run(main)


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    st.sampled_from(["{:x}", "{:X}", "000{:x}", "{:x} ; name=value"]),
    st.lists(st.integers(0, 2000), max_size=1),
    st.sampled_from([b"", b"X-Checksum: 1\r\nX-Other: 2\r\n"]),
)
def test_chunks_are_joined_however_they_are_cut(
    loop: str, chunks: list[bytes], form: str, cuts: list[int], trailers: bytes
) -> None:
    coded = b"".join(form.format(len(c)).encode() + b"\r\n" + c + b"\r\n" for c in chunks)
    coded += b"0\r\n" + trailers + b"\r\n"
    bounds = [0, *sorted(min(cut, len(coded)) for cut in cuts), len(coded)]
    sizes: list[int] = []
    joined = decoded([coded[a:b] for a, b in pairwise(bounds)], loop, announced=sizes)
    assert joined == b"".join(chunks)
    assert sizes == [len(chunk) for chunk in chunks]


@pytest.mark.parametrize(
    "coded",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"1_0\r\n",
        b"f" * 16 + b"\r\n",
        b"2\r\nabc\r\n0\r\n\r\n",
        b"1\r\na\n\r\n0\r\n\r\n",
        b"0\r\n\r\nmore",
        b"%x\r\n" % (SIZE_MAX + 1),
        b"1\r\na\r\n%x\r\n" % SIZE_MAX,
        b"1;" + b"x" * (LINE_SIZE_BYTES_MAX + 100_000),
        b"0\r\n" + b"a: b\r\n" * (TRAILER_COUNT_MAX + 1) + b"\r\n",
    ],
)
def test_what_is_no_chunked_body_is_refused(coded: bytes, loop: str) -> None:
    for parts in ([coded], [b"", coded]):
        with pytest.raises(httpx.RemoteProtocolError):
            decoded(parts, loop)


@pytest.mark.parametrize("coded", [b"", b"1", b"5\r\nab", b"1\r\na", b"1\r\na\r\n", b"0\r\n"])
def test_a_body_that_ends_too_early_is_a_read_error(coded: bytes, loop: str) -> None:
    with pytest.raises(httpx.ReadError, match="hung up"):
        decoded([coded], loop)
