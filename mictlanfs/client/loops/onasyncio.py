"""The adapter for asyncio, and for uvloop; see `base.Loop`.

Uses non-blocking sockets itself, past the transports and the `sock_*` methods of the loop. The loop
only says when a socket is ready, and the callback that it calls then does the work: a body of any
length wakes its task once. The callback is gone before anything else runs on, also when the task
is cancelled.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from asyncio.staggered import staggered_race
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from mictlanfs.client.loops.base import NEXT_ADDRESS_AFTER_S, ByteStream, Outgoing, TooLateError
from mictlanfs.model import Buffer

T = TypeVar("T")
_Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


class AsyncioStream:
    """A `ByteStream` over a connected, non-blocking socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def receive(self, size_max: int) -> bytes:
        """See `ByteStream`."""
        # Without a first attempt: what is asked for is hardly ever there yet.
        return await _when_readable(self._socket, lambda: self._socket.recv(size_max))

    async def fill(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        start = 0

        def receive_once() -> int | None:
            nonlocal start
            count = self._socket.recv_into(buffer[start:])
            start += count
            return start if count == 0 or start == len(buffer) else None

        if not buffer:
            return 0
        done = _attempted(receive_once)
        return await _when_readable(self._socket, receive_once) if done is None else done

    async def send_all(self, buffers: Sequence[Buffer]) -> None:
        """See `ByteStream`."""
        outgoing = Outgoing(buffers)

        def send_once() -> bool | None:
            return outgoing.sent(self._socket.sendmsg(outgoing.next())) or None

        if _attempted(send_once) is None:
            await _when_writable(self._socket, send_once)

    def is_readable(self) -> bool:
        """See `ByteStream`."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """See `ByteStream`."""
        self._socket.close()


class AsyncioDeadline:
    """A `Deadline` by `asyncio.timeout`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout = asyncio.timeout(timeout_s)

    def move(self, timeout_s: float) -> None:
        """See `Deadline`."""
        self._timeout.reschedule(asyncio.get_running_loop().time() + timeout_s)

    async def __aenter__(self) -> AsyncioDeadline:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A TimeoutError of the kernel, which is an OSError, is not raised here: it is `error`.
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as too_late:
            raise TooLateError from too_late


deadline = AsyncioDeadline


def limiter(count: int) -> AbstractAsyncContextManager[None]:
    """See `Loop`."""
    return asyncio.Semaphore(count)


async def connect(host: str, port: int) -> ByteStream:
    """See `Loop`."""
    attempts = [partial(_connected, *address) for address in await _addresses(host, port)]
    if len(attempts) == 1:
        return AsyncioStream(await attempts[0]())
    sock, _, errors = await staggered_race(attempts, NEXT_ADDRESS_AFTER_S)
    if sock is None:
        raise next(error for error in errors if error is not None)
    return AsyncioStream(sock)


async def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, _Address]]:
    """At least one."""
    find = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = find(flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        # Only a name has to be looked up, which may take long: a thread of the loop does it.
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def _connected(family: socket.AddressFamily, address: _Address) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            code = await _when_writable(
                sock, lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            )
        if code:
            raise OSError(code, os.strerror(code))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _attempted(attempt: Callable[[], T | None]) -> T | None:
    """What `attempt` gives; None when it would have to wait."""
    try:
        return attempt()
    except BlockingIOError:
        return None


async def _when_readable(sock: socket.socket, attempt: Callable[[], T | None]) -> T:
    loop = asyncio.get_running_loop()
    return await _attempts(sock, attempt, loop.add_reader, loop.remove_reader)


async def _when_writable(sock: socket.socket, attempt: Callable[[], T | None]) -> T:
    loop = asyncio.get_running_loop()
    return await _attempts(sock, attempt, loop.add_writer, loop.remove_writer)


async def _attempts(
    sock: socket.socket,
    attempt: Callable[[], T | None],
    add: Callable[[int, Callable[[], None]], Any],
    remove: Callable[[int], Any],
) -> T:
    """Call `attempt` each time `sock` is ready, until it gives something or raises."""
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    fd = sock.fileno()

    def on_ready() -> None:
        if done.done():
            return
        try:
            result = _attempted(attempt)
        except Exception as error:  # noqa: BLE001 - for the task; the loop would only log it.
            remove(fd)
            done.set_exception(error)
        else:
            if result is not None:
                remove(fd)
                done.set_result(result)

    add(fd, on_ready)
    try:
        return await done
    finally:
        remove(fd)
