"""The space as the v4 door reaches it, and the changes that it makes there.

`SpaceAccess` is the protocol of a router, one request at a time, in process or over the network.
`Changes` is the writing side: one session, whose batches carry what concurrent requests change
together, so that a thousand puts are few transactions.

Invariants of `Changes`: one batch is under way at a time and keeps its number until it is answered;
operations of one caller stay together and in order. The session holds no leases: routers recall
those of mounts that are in the way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, InodeNumber, PeerMap, Struct

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Struct)

# Enough for a thousand small puts; the rest of a batch's limit is for one caller with many.
BATCH_OPS_WANTED: Final = 3 * 1024
# Upper bounds of encoded sizes, as in `mictlanfs.client.session`.
_OP_SIZE_BYTES: Final = 640
_EXTENT_SIZE_BYTES: Final = 48
_CHUNK_SIZE_BYTES: Final = 112
INODES_LOW_COUNT: Final = 128
CLOSE_TIMEOUT_S: Final = 3.0
# The session cannot go on; see `mictlanfs.client.session`.
_LOST: Final = frozenset({Kind.FENCED, Kind.CONFLICT})


class SpaceAccess(Protocol):
    """Requests of the router protocol. Belongs to one event loop."""

    async def ask(self, path: str, request: Struct, answer: type[T]) -> T:
        """Answer one request, as the router would.

        Raises:
            MictlanError: as the request documents; UNAVAILABLE or TIMED_OUT without a router.
        """
        ...

    async def peer_map(self) -> PeerMap:
        """The peers, as new as is known without asking around."""
        ...


@dataclass(eq=False, slots=True)
class _Request:
    """Operations of one caller and the future of their results."""

    ops: tuple[wire.Operation, ...]
    size: int
    is_strict: bool
    done: asyncio.Future[tuple[wire.OpResult, ...]]


class Changes:
    """Applies operations in a session of its own, opened when first needed.

    Args:
        space: where.
        label: what `status` shows of the session.
    """

    def __init__(self, space: SpaceAccess, label: str) -> None:
        self._space = space
        self._label = label
        self._grant: wire.SessionGrant | None = None
        self._next_number = 1
        self._inodes: deque[wire.InodeRange] = deque()
        self._opening = asyncio.Lock()
        self._waiting: deque[_Request] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._pulse: asyncio.Task[None] | None = None

    # --- operations ------------------------------------------------------------------------------

    async def apply(
        self, ops: Sequence[wire.Operation], *, is_strict: bool = False
    ) -> list[tuple[Attributes, ...]]:
        """As `submit`; the attributes of the inodes that each operation touched.

        Raises:
            MictlanError: also of the first operation that failed.
        """
        results = await self.submit(ops, is_strict=is_strict)
        for result in results:
            if result.error is not None:
                raise result.error.to_error()
        return [result.touched for result in results]

    async def submit(
        self, ops: Sequence[wire.Operation], *, is_strict: bool = False
    ) -> tuple[wire.OpResult, ...]:
        """Apply operations in order, durably; what became of each.

        With `is_strict` they travel alone and end at the first that fails. Without it each is
        applied whatever became of those before it, so that many callers share a batch.

        Cancellation: they may or may not be applied.

        Raises:
            MictlanError: nothing, or nobody knows what, was applied.
        """
        size = sum(map(_size_of, ops))
        done: asyncio.Future[tuple[wire.OpResult, ...]]
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(tuple(ops), size, is_strict, done))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_batches(), name="v4-changes")
        return await done

    async def new_inode(self) -> InodeNumber:
        """A number for a new inode that nobody else has. Waits only when none is left."""
        while not self._inodes:
            await self._more_inodes()
        first = self._inodes[0]
        if first.count == 1:
            self._inodes.popleft()
        else:
            self._inodes[0] = wire.InodeRange(first.first + 1, first.count - 1)
        return InodeNumber(first.first)

    async def _more_inodes(self) -> None:
        grant = await self._session()
        if self._inodes:
            return
        async with self._opening:
            if self._inodes:
                return
            request = wire.TakeInodes(grant.session, grant.epoch, wire.INODE_BATCH_COUNT)
            try:
                taken = await self._space.ask(wire.Path.SESSION_INODES, request, wire.InodeRange)
            except MictlanError as error:
                if error.kind is not Kind.FENCED:
                    raise
                self._forget(grant)
            else:
                self._inodes.append(taken)

    # --- batches ---------------------------------------------------------------------------------

    async def _send_batches(self) -> None:
        while self._waiting:
            requests = self._take_batch()
            try:
                results = await self._send(requests)
            except MictlanError as error:
                for request in requests:
                    if not request.done.done():
                        request.done.set_exception(error)
                continue
            except BaseException:
                for request in (*requests, *self._waiting):
                    request.done.cancel()
                self._waiting.clear()
                raise
            for request in requests:
                own, results = results[: len(request.ops)], results[len(request.ops) :]
                if not request.done.done():
                    request.done.set_result(tuple(own))

    def _take_batch(self) -> list[_Request]:
        first = self._waiting.popleft()
        batch, count, size = [first], len(first.ops), first.size
        if first.is_strict:
            return batch
        while self._waiting and not self._waiting[0].is_strict:
            request = self._waiting[0]
            count += len(request.ops)
            size += request.size
            if count > BATCH_OPS_WANTED or size > wire.BATCH_SIZE_BYTES_MAX:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self, requests: Sequence[_Request]) -> Sequence[wire.OpResult]:
        ops = tuple([op for request in requests for op in request.ops])
        for is_last in (False, True):
            grant = await self._session()
            batch = wire.Commit(
                grant.session,
                grant.epoch,
                self._next_number,
                ops,
                sync=True,
                stop_on_error=requests[0].is_strict,
            )
            try:
                answer = await self._space.ask(wire.Path.COMMIT, batch, wire.CommitAnswer)
            except MictlanError as error:
                # Whether it was applied is not known; the session with its numbers is of no use.
                self._forget(grant)
                if is_last or error.kind not in _LOST:
                    raise
                continue
            self._next_number += len(answer.results)
            return answer.results
        raise AssertionError("the last attempt returns or raises")

    # --- the session -----------------------------------------------------------------------------

    async def _session(self) -> wire.SessionGrant:
        if self._grant is not None:
            return self._grant
        async with self._opening:
            if self._grant is None:
                host = socket.gethostname()
                request = wire.OpenSession(wire.PROTOCOL_VERSION, host, os.getpid(), self._label)
                self._grant = await self._space.ask(
                    wire.Path.SESSION_OPEN, request, wire.SessionGrant
                )
                self._next_number = 1
                self._inodes.append(self._grant.inodes)
                if self._pulse is not None:
                    self._pulse.cancel()
                self._pulse = asyncio.create_task(self._beat(self._grant), name="v4-heartbeat")
            return self._grant

    def _forget(self, grant: wire.SessionGrant) -> None:
        """The session is over, as far as is known; its inode numbers stay ours."""
        if self._grant is grant:
            self._grant = None

    async def _beat(self, grant: wire.SessionGrant) -> None:
        while True:
            await asyncio.sleep(grant.heartbeat_s)
            try:
                request = wire.SessionRef(grant.session, grant.epoch)
                await self._space.ask(wire.Path.SESSION_HEARTBEAT, request, wire.Done)
            except MictlanError as error:
                log.info("no heartbeat of the v4 door: %s", error)
                if error.kind is Kind.FENCED:
                    self._forget(grant)
                    return

    async def close(self) -> None:
        """End what is under way and the session. Never fails; twice is once."""
        for task in (self._pulse, self._sender):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        grant, self._grant = self._grant, None
        if grant is not None:
            request = wire.SessionRef(grant.session, grant.epoch)
            with suppress(MictlanError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._space.ask(wire.Path.SESSION_CLOSE, request, wire.Done)


def _size_of(op: wire.Operation) -> int:
    """An upper bound of the bytes of an operation when it is encoded."""
    if isinstance(op, wire.WriteExtents):
        described = _EXTENT_SIZE_BYTES * len(op.extents) + _CHUNK_SIZE_BYTES * len(op.chunks)
        return _OP_SIZE_BYTES + described + sum(map(len, op.inline))
    if isinstance(op, wire.SetRecord):
        return _OP_SIZE_BYTES + sum(len(piece.body) + 16 for piece in op.pieces)
    if isinstance(op, wire.PutPart):
        return 2 * _OP_SIZE_BYTES + len(op.body)
    return _OP_SIZE_BYTES
