import socket
from itertools import pairwise

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.client.chunkedcoding import LINE_SIZE_BYTES_MAX, TRAILER_COUNT_MAX, ChunkedBody

SIZE_MAX = 100_000


async def decoded(parts: list[bytes], *, announced: list[int] | None = None) -> bytes:
    """What `parts` mean, the first of which comes along with the head; then the server hangs up."""
    ours, theirs = socket.socketpair()
    with trio.socket.from_stdlib_socket(ours) as reading, theirs:
        theirs.sendall(b"".join(parts[1:]))
        theirs.close()
        sizes = announced if announced is not None else []
        return bytes(await ChunkedBody(reading, parts[0], SIZE_MAX, sizes.append).receive())


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    st.sampled_from(["{:x}", "{:X}", "000{:x}", "{:x} ; name=value"]),
    st.lists(st.integers(0, 2000), max_size=1),
    st.sampled_from([b"", b"X-Checksum: 1\r\nX-Other: 2\r\n"]),
)
def test_chunks_are_joined_however_they_are_cut(
    chunks: list[bytes], form: str, cuts: list[int], trailers: bytes
) -> None:
    coded = b"".join(form.format(len(c)).encode() + b"\r\n" + c + b"\r\n" for c in chunks)
    coded += b"0\r\n" + trailers + b"\r\n"
    bounds = [0, *sorted(min(cut, len(coded)) for cut in cuts), len(coded)]
    sizes: list[int] = []

    async def main() -> bytes:
        return await decoded([coded[a:b] for a, b in pairwise(bounds)], announced=sizes)

    assert trio.run(main) == b"".join(chunks)
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
async def test_what_is_no_chunked_body_is_refused(coded: bytes) -> None:
    for parts in ([coded], [b"", coded]):
        with pytest.raises(httpx.RemoteProtocolError):
            await decoded(parts)


@pytest.mark.parametrize("coded", [b"", b"1", b"5\r\nab", b"1\r\na", b"1\r\na\r\n", b"0\r\n"])
async def test_a_body_that_ends_too_early_is_a_read_error(coded: bytes) -> None:
    with pytest.raises(httpx.ReadError, match="hung up"):
        await decoded([coded])
