"""Chunked transfer coding, as servers use it for bodies whose length they do not know before.

Reads from a stream straight into one buffer. Never looks at the content of trailers. Source:
RFC 9112, section 7.1.
"""

from __future__ import annotations

from collections.abc import Callable

from mictlanfs.client.leanhttpx import httpx
from mictlanfs.client.loops.base import ByteStream

RECEIVE_SIZE_BYTES = 64 * 1024
LINE_SIZE_BYTES_MAX = 8 * 1024
TRAILER_COUNT_MAX = 100
_SIZE_DIGITS_MAX = 15


class ChunkedBody:
    """The body of one answer.

    Args:
        stream: where it comes from.
        received: what came along with the head of the answer.
        size_max: a longer body is an error.
        on_chunk: called with the size of each chunk before it is received.
    """

    def __init__(
        self,
        stream: ByteStream,
        received: bytes | bytearray,
        size_max: int,
        on_chunk: Callable[[int], None],
    ) -> None:
        self._stream = stream
        self._pending = bytearray(received)
        self._size_max = size_max
        self._on_chunk = on_chunk

    async def receive(self) -> bytearray:
        """The whole body, decoded.

        Raises:
            httpx.RemoteProtocolError: the coding is broken, or something follows the body.
            httpx.ReadError: the server hung up in the middle.
            OSError: the connection broke.
        """
        body = bytearray()
        while size := _chunk_size(await self._line()):
            if len(body) + size > self._size_max:
                raise httpx.RemoteProtocolError(
                    f"a body of more than {self._size_max} bytes is too long"
                )
            self._on_chunk(size)
            await self._append(body, size)
            if await self._line():
                raise httpx.RemoteProtocolError("a chunk is longer than it says")
        for _ in range(TRAILER_COUNT_MAX):
            if not await self._line():
                break
        else:
            raise httpx.RemoteProtocolError("too many trailers")
        if self._pending:
            raise httpx.RemoteProtocolError("the server sent more than it announced")
        return body

    async def _append(self, body: bytearray, size: int) -> None:
        taken = self._pending[:size]
        del self._pending[:size]
        body += taken
        start = len(body)
        body += bytes(size - len(taken))
        with memoryview(body) as view:
            count = await self._stream.fill(view[start:])
        if count < len(body) - start:
            raise httpx.ReadError("the server hung up in the middle of a body")

    async def _line(self) -> bytes:
        """The next line, without its end."""
        while (end := self._pending.find(b"\r\n")) < 0:
            if len(self._pending) > LINE_SIZE_BYTES_MAX:
                raise httpx.RemoteProtocolError("a line between two chunks is too long")
            part = await self._stream.receive(RECEIVE_SIZE_BYTES)
            if not part:
                raise httpx.ReadError("the server hung up in the middle of a body")
            self._pending += part
        line = bytes(self._pending[:end])
        del self._pending[: end + 2]
        return line


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > _SIZE_DIGITS_MAX or digits.strip(b"0123456789abcdefABCDEF"):
        raise httpx.RemoteProtocolError(f"not the size of a chunk: {line[:60]!r}")
    return int(digits, 16)
