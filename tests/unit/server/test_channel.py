"""The control channel: what is asked arrives, what is answered comes back, whatever happens."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_server import channel
from mictlanfs_server.channel import AddPeers, Handler, Request, Say, StartPeer, StopPeer
from mictlanfs_server.space import SpaceDirectory, claimed
from tests.support.waiting import DEADLINE_S


@pytest.fixture
def directory(tmp_path: Path) -> SpaceDirectory:
    # Longer than the address of a socket may be.
    path = tmp_path / ("d" * 120)
    path.mkdir(mode=0o700)
    return SpaceDirectory(path)


@asynccontextmanager
async def served(directory: SpaceDirectory, handler: Handler) -> AsyncIterator[None]:
    with channel.listening(directory) as listener:
        assert listener is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.serve, listener, handler)
            with trio.fail_after(DEADLINE_S):
                yield
            nursery.cancel_scope.cancel()


def silent(_: str) -> None:
    """For what nobody wants to hear."""


@pytest.mark.parametrize(
    "request_", [AddPeers(3), StartPeer("peer-1"), StopPeer("peer-1", force=True)]
)
async def test_a_request_arrives_and_its_progress_and_answer_come_back(
    directory: SpaceDirectory, request_: Request
) -> None:
    async def handler(request: Request, say: Say) -> str:
        await say("begun")
        await say("ä line\nbreak")
        return f"did {request}"

    said: list[str] = []
    async with served(directory, handler):
        assert await channel.ask(directory, request_, said.append) == f"did {request_}"
    assert said == ["begun", "ä line\nbreak"]


@pytest.mark.parametrize(
    "error", [UsageError("cannot be"), MictlanError(Kind.BUSY, "stop", "peer-1", "wait")]
)
async def test_a_refusal_is_raised_as_it_was(
    directory: SpaceDirectory, error: MictlanError
) -> None:
    async def refuse(_: Request, __: Say) -> str:
        raise error

    async with served(directory, refuse):
        with pytest.raises(type(error)) as caught:
            await channel.ask(directory, AddPeers(1), silent)
    assert (caught.value.kind, str(caught.value)) == (error.kind, str(error))


async def test_a_failure_of_the_supervisor_is_told_and_logged(
    directory: SpaceDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Request, __: Say) -> str:
        raise RuntimeError("bug")

    async with served(directory, fail):
        with pytest.raises(MictlanError, match="log of the supervisor says why") as caught:
            await channel.ask(directory, AddPeers(1), silent)
        assert caught.value.kind is Kind.INTERNAL
    assert "bug" in caplog.text


async def test_who_goes_away_does_not_end_what_was_asked_for(directory: SpaceDirectory) -> None:
    begun, go_on, ended = trio.Event(), trio.Event(), trio.Event()

    async def slow(_: Request, say: Say) -> str:
        begun.set()
        await go_on.wait()
        for _n in range(100):
            await say("x" * 10_000)
        ended.set()
        return "done"

    async with served(directory, slow):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.ask, directory, AddPeers(1), silent)
            await begun.wait()
            nursery.cancel_scope.cancel()
        go_on.set()
        await ended.wait()


async def raw(directory: SpaceDirectory, data: bytes) -> bytes:
    """What the supervisor answers to `data`."""
    async with await channel._connected(directory) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        received = b""
        while piece := await stream.receive_some():
            received += piece
        return received


async def test_what_is_no_request_is_refused(directory: SpaceDirectory) -> None:
    async def handler(_: Request, __: Say) -> str:
        raise AssertionError("nothing may be asked for")

    async with served(directory, handler):
        for text in (b"{}\n", b"nonsense\n", b'{"request": {"type": "rm"}}\n', b"\xff\n"):
            assert b"not readable" in await raw(directory, text)
        assert await raw(directory, b"") == b""
        assert await raw(directory, b"half a line") == b""


async def test_a_line_without_end_is_refused(
    directory: SpaceDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(_: Request, __: Say) -> str:
        raise AssertionError("nothing may be asked for")

    monkeypatch.setattr(channel, "LINE_SIZE_BYTES_MAX", 100)
    async with served(directory, handler):
        assert b"too long" in await raw(directory, b"x" * 200)


async def test_who_asks_nothing_is_not_waited_for(
    directory: SpaceDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(_: Request, __: Say) -> str:
        raise AssertionError("nothing may be asked for")

    monkeypatch.setattr(channel, "REQUEST_TIMEOUT_S", 0.01)
    async with served(directory, handler), await channel._connected(directory) as stream:
        assert await stream.receive_some() == b""


async def test_a_supervisor_that_is_silent_is_not_waited_for_for_ever(
    directory: SpaceDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(_: Request, __: Say) -> str:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(channel, "ANSWER_TIMEOUT_S", 0.01)
    async with served(directory, sleep):
        with pytest.raises(MictlanError) as caught:
            await channel.ask(directory, AddPeers(1), silent)
    assert caught.value.kind is Kind.TIMED_OUT


@pytest.mark.parametrize(
    ("answer", "kind"), [(b"", Kind.UNAVAILABLE), (b"nonsense\n", Kind.PROTOCOL)]
)
async def test_an_answer_that_is_none_is_told(
    directory: SpaceDirectory, answer: bytes, kind: Kind
) -> None:
    async def answer_wrongly(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    with channel.listening(directory) as listener:
        assert listener is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer_wrongly, [listener])
            with trio.fail_after(DEADLINE_S), pytest.raises(MictlanError) as caught:
                await channel.ask(directory, AddPeers(1), silent)
            nursery.cancel_scope.cancel()
    assert caught.value.kind is kind


async def test_without_a_supervisor_the_remedy_is_told(directory: SpaceDirectory) -> None:
    with pytest.raises(UsageError, match=r"nothing serves .*: start it first"):
        await channel.ask(directory, AddPeers(1), silent)
    with pytest.raises(UsageError, match="nothing serves"):
        await channel.ask(SpaceDirectory(directory.path / "missing"), AddPeers(1), silent)
    with claimed(directory) as claim:
        claim.keep = True
        with pytest.raises(UsageError, match=rf"process {os.getpid()}, .* may not be ready yet"):
            await channel.ask(directory, AddPeers(1), silent)


async def test_the_socket_is_private_replaces_a_stale_one_and_goes_with_its_owner(
    directory: SpaceDirectory,
) -> None:
    with socket.socket(socket.AF_UNIX) as stale, channel._short(directory.control_path) as name:
        stale.bind(name)
    with channel.listening(directory) as listener:
        assert listener is not None
        assert stat.S_IMODE(directory.control_path.stat().st_mode) == 0o600
    assert not directory.control_path.exists()


async def test_where_sockets_cannot_be_the_space_works_without(
    directory: SpaceDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    directory.control_path.mkdir()
    with channel.listening(directory) as listener:
        assert listener is None
    assert "while the space is stopped only" in caplog.text
