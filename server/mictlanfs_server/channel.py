"""The control channel of a supervisor: a socket on which commands ask it to change its space.

::

    command                         supervisor
       | -- request, one JSON line ---> |
       | <-- "said", any number ------- |    progress
       | <-- "finished" or "failed" --- |

Owns the socket `DIR/control` and the form of what travels. Never knows what a request means. Only
the owner of the space can connect. One request a connection; a command that goes away does not end
what it asked for.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import msgspec
import trio

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.jsontext import from_json, to_json
from mictlanfs.wire import WireError
from mictlanfs_server.space import SpaceDirectory

log = logging.getLogger(__name__)

LINE_SIZE_BYTES_MAX = 64 * 1024
REQUEST_TIMEOUT_S = 5.0
# Between two lines of the supervisor: above what it grants one peer to start or to stop.
ANSWER_TIMEOUT_S = 60.0
_BACKLOG = 8


class AddPeers(msgspec.Struct, frozen=True, tag="add-peers"):
    """Start `count` new peers."""

    count: int


class StartPeer(msgspec.Struct, frozen=True, tag="start-peer"):
    """Start a peer that was stopped."""

    peer: str


class StopPeer(msgspec.Struct, frozen=True, tag="stop-peer"):
    """Stop a peer; `force`: also when chunks can then not be read."""

    peer: str
    force: bool = False


Request: TypeAlias = AddPeers | StartPeer | StopPeer


class Asked(msgspec.Struct, frozen=True):
    """The line of a command."""

    request: Request


class Said(msgspec.Struct, frozen=True, tag="said"):
    """Progress, for people."""

    text: str


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """It is done; `text` says what, for people."""

    text: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It is not done; `is_usage` tells a `UsageError`."""

    error: WireError
    is_usage: bool


Answer: TypeAlias = Said | Finished | Failed


class Answered(msgspec.Struct, frozen=True):
    """A line of the supervisor."""

    answer: Answer


Say: TypeAlias = Callable[[str], Awaitable[None]]
# Does what is asked for, and returns what it did, for people; raises MictlanError.
Handler: TypeAlias = Callable[[Request, Say], Awaitable[str]]


@contextmanager
def listening(directory: SpaceDirectory) -> Iterator[trio.SocketListener | None]:
    """The socket, for who holds the space; None, with a warning, where sockets cannot be."""
    path = directory.control_path
    try:
        listener = _listener(path)
    except OSError as error:
        log.warning("peers can be changed while the space is stopped only: %s: %s", path, error)
        yield None
        return
    try:
        yield listener
    finally:
        listener.socket.close()
        with suppress(OSError):
            path.unlink()


async def serve(listener: trio.SocketListener, handler: Handler) -> None:
    """Answer requests until cancelled."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await _answer(stream, handler)

    await trio.serve_listeners(answer, [listener])


async def ask(directory: SpaceDirectory, request: Request, say: Callable[[str], None]) -> str:
    """Have the supervisor of a space do something, tell its progress to `say`; what it did.

    Cancellation: the supervisor goes on.

    Raises:
        MictlanError: as the supervisor says; UNAVAILABLE: it ended meanwhile; TIMED_OUT: it is
            silent; UsageError: none runs.
    """
    async with await _connected(directory) as stream:
        lines = _Lines(stream)
        try:
            await stream.send_all(to_json(Asked(request)))
            while True:
                with trio.fail_after(ANSWER_TIMEOUT_S):
                    line = await lines.next()
                if line is None:
                    raise _broken(Kind.UNAVAILABLE, "the supervisor ended")
                match from_json(line, Answered).answer:
                    case Said(text):
                        say(text)
                    case Finished(text):
                        return text
                    case Failed(error, is_usage):
                        raise UsageError(error.detail) if is_usage else error.to_error()
        except trio.TooSlowError as error:
            raise _broken(Kind.TIMED_OUT, "the supervisor does not answer") from error
        except trio.BrokenResourceError as error:
            raise _broken(Kind.UNAVAILABLE, "the supervisor ended") from error
        except ValueError as error:
            raise _broken(Kind.PROTOCOL, f"the answer is not readable: {error}") from error


def _broken(kind: Kind, detail: str) -> MictlanError:
    return MictlanError(kind, "ask supervisor", detail=detail)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for `path` that is short enough for the address of a socket, 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _listener(path: Path) -> trio.SocketListener:
    # Of a supervisor that was killed: whoever gets here holds the lock of the space.
    path.unlink(missing_ok=True)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            ours.bind(name)
        # Before anybody can connect.
        path.chmod(0o600)
        ours.listen(_BACKLOG)
    except OSError:
        ours.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(ours))


async def _connected(directory: SpaceDirectory) -> trio.SocketStream:
    ours = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(directory.control_path) as name:
            await ours.connect(name)
    except OSError as error:
        ours.close()
        owner = directory.owner()
        if owner is None:
            raise UsageError(
                f"nothing serves {directory.path}: start it first, with `mictlanfs server start` "
                "or `mictlanfs up`"
            ) from error
        raise UsageError(
            f"process {owner.pid}, which serves {directory.path}, takes no requests "
            f"({error.strerror}): it may not be ready yet"
        ) from error
    return trio.SocketStream(ours)


async def _answer(stream: trio.SocketStream, handler: Handler) -> None:
    async def send(answer: Answer) -> None:
        # Who asked may be gone.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(to_json(Answered(answer)))

    async def say(text: str) -> None:
        await send(Said(text))

    try:
        with trio.fail_after(REQUEST_TIMEOUT_S):
            line = await _Lines(stream).next()
        if line is None:
            return
        request = from_json(line, Asked).request
    except (trio.TooSlowError, trio.BrokenResourceError):
        return
    except ValueError as error:
        failure = MictlanError(Kind.PROTOCOL, "request", detail=f"it is not readable: {error}")
        await send(Failed(WireError.of(failure), is_usage=False))
        return
    try:
        await send(Finished(await handler(request, say)))
    except MictlanError as error:
        await send(Failed(WireError.of(error), isinstance(error, UsageError)))
    except Exception:
        log.exception("a request failed unexpectedly")
        failure = MictlanError(
            Kind.INTERNAL, "request", detail="the log of the supervisor says why"
        )
        await send(Failed(WireError.of(failure), is_usage=False))


class _Lines:
    """The lines that arrive on a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffered = b""

    async def next(self) -> bytes | None:
        """The next line; None at the end. Raises ValueError for one that is too long."""
        while b"\n" not in self._buffered:
            if len(self._buffered) > LINE_SIZE_BYTES_MAX:
                raise ValueError("a line is too long")
            received = await self._stream.receive_some()
            if not received:
                return None
            self._buffered += received
        line, _, self._buffered = self._buffered.partition(b"\n")
        return line
