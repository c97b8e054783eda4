"""Many changes of names at once, past the mount: for what would take too many system calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from mictlanfs import wire
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session, open_session
from mictlanfs.client.transport import HttpTransport
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs.uri import parse_routers

BATCH_SIZE = 1000
DEADLINE_S = 30.0


def apply_all(uri: str, ops: Sequence[wire.Operation]) -> None:
    """Apply operations in order, as a client of its own. Raises the first error."""
    trio.run(_apply_all, uri, ops)


async def _apply_all(uri: str, ops: Sequence[wire.Operation]) -> None:
    async with _session(uri) as session:
        for start in range(0, len(ops), BATCH_SIZE):
            await session.apply_all(ops[start : start + BATCH_SIZE])


def make_files(uri: str, parent: InodeNumber, names: Sequence[bytes]) -> None:
    """Make empty files in a directory that the router knows."""
    trio.run(_make_files, uri, parent, names)


async def _make_files(uri: str, parent: InodeNumber, names: Sequence[bytes]) -> None:
    async with _session(uri) as session:
        for start in range(0, len(names), BATCH_SIZE):
            ops = [
                wire.MakeNode(
                    parent, name, await session.new_inode(), FileKind.FILE, 0o644, 0, 0, 0
                )
                for name in names[start : start + BATCH_SIZE]
            ]
            await session.apply_all(ops)


@asynccontextmanager
async def _session(uri: str) -> AsyncIterator[Session]:
    transport = HttpTransport()
    try:
        router = RouterClient(parse_routers(uri), transport, RetryPolicy(deadline_s=DEADLINE_S))
        async with open_session(
            router, "batches", deadline_s=DEADLINE_S, on_grant=lambda _: None
        ) as session:
            yield session
    finally:
        await transport.aclose()
