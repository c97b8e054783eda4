"""A session with the space: the right to change it, and the numbered log of changes.

Owns the session's identity, its heartbeat, its inode numbers and the order in which operations
reach the router. Operations of concurrent callers that wait together travel in one batch.

Invariants: one batch is under way at a time; a batch keeps its number until it is answered, however
often it is sent; numbers have no gaps. When the session is fenced (it expired while the network was
away) a new one is opened and the batch goes on under it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from mictlanfs import wire
from mictlanfs.client.retry import FOR_EVER
from mictlanfs.client.router import RouterClient
from mictlanfs.clock import Clock, SystemClock
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, InodeNumber

log = logging.getLogger(__name__)

# Ask for the next batch of inode numbers while this many are left.
INODES_LOW_COUNT = 128
# What was posted leaves once this much waits, or when the first of it is this old.
POSTED_COUNT_MAX = 128
POSTED_AGE_S_MAX = 0.25
# Who posts waits while this much has not been answered.
UNANSWERED_COUNT_MAX = 8192
CLOSE_TIMEOUT_S = 5.0
# The session cannot go on. CONFLICT: a power cut took the router back behind batches that it had
# answered and nobody had asked to be durable, so the numbers do not fit any more.
_LOST = frozenset({Kind.FENCED, Kind.CONFLICT})
# Upper bounds of encoded sizes: an operation with two names of the largest size and its numbers,
# an extent, and a chunk with the most peers.
OP_SIZE_BYTES = 640
EXTENT_SIZE_BYTES = 48
CHUNK_SIZE_BYTES = 112


@dataclass(eq=False)
class _Request:
    """Operations of one caller, `size` bytes when encoded: they stay together and in order.

    Attributes:
        grant: of the session whose leases cover them.
    """

    ops: tuple[wire.Operation, ...]
    size: int
    sync: bool
    stop_on_error: bool
    is_covered: bool = False
    grant: wire.SessionGrant | None = None
    done: trio.Event = field(default_factory=trio.Event)
    results: tuple[wire.OpResult, ...] = ()
    error: MictlanError | None = None

    def settle(self) -> None:
        """It was answered."""
        self.done.set()


@dataclass(eq=False, slots=True)
class _Posted:
    """An operation that is covered by leases for writing; no task of its own waits for it."""

    ops: tuple[wire.Operation, ...]
    size: int
    on_result: Callable[[wire.Operation, wire.OpResult], None]
    sync: bool = False
    grant: wire.SessionGrant | None = None
    results: tuple[wire.OpResult, ...] = ()
    error: MictlanError | None = None
    stop_on_error = False
    is_covered = True

    def settle(self) -> None:
        """It was answered."""
        error = self.error
        result = wire.OpResult((), wire.WireError.of(error)) if error else self.results[0]
        self.on_result(self.ops[0], result)


@asynccontextmanager
async def open_session(
    router: RouterClient,
    label: str,
    *,
    deadline_s: float = 30.0,
    on_grant: Callable[[wire.SessionGrant], None] | None = None,
    leases: bool = False,
    clock: Clock | None = None,
) -> AsyncIterator[Session]:
    """Open a session and keep it alive inside the block; close it on leaving.

    Args:
        router: where the session is opened.
        label: what `status` shows of this session, e.g. a mountpoint.
        deadline_s: how long `apply` waits for an answer before it gives up.
        on_grant: called with each grant: at once, and again after a fenced session is replaced.
        leases: whether the session will hold leases; see `wire.OpenSession`.
        clock: the system's when None.

    Cancellation: operations not answered yet may or may not be applied.

    Raises:
        MictlanError: the router cannot be reached or refuses.
    """
    request = wire.OpenSession(
        wire.PROTOCOL_VERSION, socket.gethostname(), os.getpid(), label, leases
    )
    clock = clock or SystemClock()
    asked_s = clock.monotonic_s()
    grant = await router.open_session(request)
    async with trio.open_nursery() as nursery:
        session = Session(nursery, router, request, grant, deadline_s, on_grant, clock, asked_s)
        nursery.start_soon(session.keep_alive)
        nursery.start_soon(session.send_batches)
        try:
            yield session
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_TIMEOUT_S):
                await session.close()


class Session:
    """The writing side of a space; made by `open_session`.

    Attributes:
        grant: as the router gave it last.
        grant_asked_s: when (monotonic) it was asked for.
        on_replaced: called with the grant of a session that takes the place of a fenced one.
    """

    on_replaced: Callable[[wire.SessionGrant], None] | None = None

    def __init__(
        self,
        nursery: trio.Nursery,
        router: RouterClient,
        request: wire.OpenSession,
        grant: wire.SessionGrant,
        deadline_s: float,
        on_grant: Callable[[wire.SessionGrant], None] | None,
        clock: Clock,
        asked_s: float,
    ) -> None:
        self._clock = clock
        self._nursery = nursery
        self._router = router
        self._request = request
        self._deadline_s = deadline_s
        self._on_grant = on_grant
        self._waiting: deque[_Request | _Posted] = deque()
        self._under_way: list[_Request | _Posted] = []
        # How many requests were ever made, and how many of them were answered, in order.
        self._asked_count = 0
        self._answered_count = 0
        self._answered = trio.Event()
        self._has_timer = False
        self._has_work = trio.Event()
        self._inodes: deque[wire.InodeRange] = deque()
        self._inode_lock = trio.Lock()
        self._reopen_lock = trio.Lock()
        self._is_refilling = False
        self._accept(grant, asked_s)

    def _accept(self, grant: wire.SessionGrant, asked_s: float) -> None:
        self.grant = grant
        self.grant_asked_s = asked_s
        self._next_number = 1
        self._durable_number = 0
        self._inodes.append(grant.inodes)
        if self._on_grant is not None:
            self._on_grant(grant)
        if self.on_replaced is not None:
            self.on_replaced(grant)

    @property
    def ref(self) -> wire.SessionRef:
        """What names this session in requests."""
        return wire.SessionRef(self.grant.session, self.grant.epoch)

    # --- operations ------------------------------------------------------------------------------

    async def apply(
        self,
        op: wire.Operation,
        *,
        sync: bool = False,
        deadline_s: float | None = None,
        is_covered: bool = False,
    ) -> tuple[Attributes, ...]:
        """Apply one operation and return the attributes of the inodes it touched.

        With `sync` it is on the router's disk before this returns. `deadline_s` replaces the
        session's. `is_covered` as in `wire.Commit`. It has its place in the log when this first
        suspends, so what was found of leases just before still holds.

        Cancellation: the operation may or may not be applied.

        Raises:
            MictlanError: the operation failed; or TIMED_OUT: no answer within the deadline, and
                the operation may or may not be applied later.
        """
        (result,) = await self._submit(
            (op,),
            sync=sync,
            stop_on_error=False,
            deadline_s=deadline_s,
            is_covered=is_covered,
        )
        if result.error is not None:
            raise result.error.to_error()
        return result.touched

    async def apply_all(
        self, ops: Sequence[wire.Operation], *, sync: bool = False
    ) -> list[tuple[Attributes, ...]]:
        """Apply operations in order, up to the first that fails; those before it stay applied.

        Cancellation and errors: as for `apply`; an error is that of the operation that failed.
        """
        results = await self._submit(tuple(ops), sync=sync, stop_on_error=True)
        for result in results:
            if result.error is not None:
                raise result.error.to_error()
        return [result.touched for result in results]

    async def apply_each(
        self, ops: Sequence[wire.Operation], *, sync: bool = False
    ) -> list[tuple[Attributes, ...] | MictlanError]:
        """Apply operations in order, each whatever became of those before it.

        Unlike those of `apply_all` they travel together with what other callers apply.

        Returns:
            For each operation the attributes of the inodes it touched, or its error.

        Cancellation and errors: as for `apply`, but for the errors of single operations.
        """
        results = await self._submit(tuple(ops), sync=sync, stop_on_error=False)
        return [result.error.to_error() if result.error else result.touched for result in results]

    async def sync(self) -> None:
        """Make every operation applied so far durable on the router's disk.

        Costs nothing when all are durable already. Errors and cancellation: as for `apply`.
        """
        if self.unanswered_count or self._durable_number < self._next_number - 1:
            await self._submit((), sync=True, stop_on_error=False)

    # --- operations that nobody waits for --------------------------------------------------------

    @property
    def unanswered_count(self) -> int:
        """How many operations, or groups of them, wait or are under way."""
        return self._asked_count - self._answered_count

    def post(
        self,
        op: wire.Operation,
        on_result: Callable[[wire.Operation, wire.OpResult], None],
        *,
        sync: bool = False,
    ) -> None:
        """Put an operation that leases for writing cover into the log; it leaves within a while.

        `on_result` is called with it and its result, in the order of the log, without a
        suspension. The error of an operation that was never applied is that of the batch. With
        `sync` it leaves now, and is on the router's disk when it has a result.
        """
        self._enqueue(_Posted((op,), _size_of(op), on_result, sync))
        if sync or len(self._waiting) >= POSTED_COUNT_MAX:
            self._has_work.set()
        elif not self._has_timer:
            self._has_timer = True
            self._nursery.start_soon(self._send_in_a_while)

    def hurry(self) -> None:
        """Let what was posted leave now."""
        if self._waiting:
            self._has_work.set()

    async def _send_in_a_while(self) -> None:
        await trio.sleep(POSTED_AGE_S_MAX)
        self._has_timer = False
        if self._waiting:
            self._has_work.set()

    async def flush(self) -> None:
        """Wait until everything posted or applied before is answered, however long it takes."""
        await self._answered_until(self._asked_count)

    async def flush_within_deadline(self) -> None:
        """As `flush`. Raises TIMED_OUT after the deadline of the session."""
        with trio.move_on_after(self._deadline_s):
            return await self.flush()
        raise MictlanError(Kind.TIMED_OUT, "commit", "", "the router does not answer")

    async def wait_for_room(self) -> None:
        """Wait while too much is unanswered. Raises TIMED_OUT after the deadline of the session."""
        if self.unanswered_count <= UNANSWERED_COUNT_MAX:
            return None
        with trio.move_on_after(self._deadline_s):
            return await self._answered_until(self._asked_count - UNANSWERED_COUNT_MAX // 2)
        raise MictlanError(Kind.TIMED_OUT, "commit", "", "the router does not answer")

    def give_up(self, error: MictlanError) -> None:
        """Fail all that was posted and is not answered; it may be applied all the same.

        For the very end: nothing may be posted or applied afterwards.
        """
        unanswered = [*self._under_way, *self._waiting]
        self._under_way.clear()
        self._waiting.clear()
        for request in unanswered:
            request.error = error
            request.settle()
        self._count_answered(len(unanswered))

    async def _answered_until(self, count: int) -> None:
        self._has_work.set()
        while self._answered_count < count:
            await self._answered.wait()

    def _enqueue(self, request: _Request | _Posted) -> None:
        request.grant = self.grant
        self._waiting.append(request)
        self._asked_count += 1

    def _count_answered(self, count: int) -> None:
        self._answered_count += count
        self._answered.set()
        self._answered = trio.Event()

    async def _submit(
        self,
        ops: tuple[wire.Operation, ...],
        *,
        sync: bool,
        stop_on_error: bool,
        deadline_s: float | None = None,
        is_covered: bool = False,
    ) -> tuple[wire.OpResult, ...]:
        if len(ops) > wire.BATCH_OPS_MAX:
            raise ValueError(f"{len(ops)} operations, more than {wire.BATCH_OPS_MAX}")
        size = sum(map(_size_of, ops))
        if size > wire.BATCH_SIZE_BYTES_MAX:
            raise ValueError(f"{size} bytes of operations, more than {wire.BATCH_SIZE_BYTES_MAX}")
        request = _Request(ops, size, sync, stop_on_error, is_covered)
        self._enqueue(request)
        self._has_work.set()
        try:
            with trio.move_on_after(self._deadline_s if deadline_s is None else deadline_s):
                await request.done.wait()
        finally:
            if not request.done.is_set():
                self._withdraw(request)
        if not request.done.is_set():
            detail = f"the router did not answer within {self._deadline_s:g} s"
            raise MictlanError(Kind.TIMED_OUT, "commit", "", detail)
        if request.error is not None:
            raise request.error
        return request.results

    def _withdraw(self, request: _Request | _Posted) -> None:
        """It is not sent any more. Its place stays: who waits for all before must go on waiting."""
        if request in self._waiting:
            self._waiting[self._waiting.index(request)] = _Request((), 0, False, False)

    async def send_batches(self) -> None:
        """Send what waits, batch by batch, for as long as the session lives."""
        while True:
            await self._has_work.wait()
            self._has_work = trio.Event()
            # What is posted meanwhile leaves when there is enough of it, or in a while.
            asked_count = self._asked_count
            while self._waiting and self._answered_count < asked_count:
                await self._send_batch(self._take_batch())

    def _take_batch(self) -> list[_Request | _Posted]:
        batch = [self._waiting.popleft()]
        is_covered = batch[0].is_covered or not batch[0].ops
        count, size = len(batch[0].ops), batch[0].size
        while self._waiting and not batch[0].stop_on_error:
            following = self._waiting[0]
            count += len(following.ops)
            size += following.size
            if (
                following.stop_on_error
                or (following.ops and following.is_covered != is_covered)
                or self._lost_cover(following) != self._lost_cover(batch[0])
                or count > wire.BATCH_OPS_MAX
                or size > wire.BATCH_SIZE_BYTES_MAX
            ):
                break
            batch.append(self._waiting.popleft())
        return batch

    def _lost_cover(self, request: _Request | _Posted) -> bool:
        """Whether the leases that covered a request went with a session that was replaced."""
        return request.is_covered and request.grant is not self.grant

    async def _send_batch(self, batch: list[_Request | _Posted]) -> None:
        # Without those that `give_up` takes away meanwhile.
        self._under_way = batch
        ops = tuple(op for request in batch for op in request.ops)
        sync = any(request.sync for request in batch)
        is_covered = any(request.is_covered for request in batch)
        try:
            if self._lost_cover(batch[0]):
                raise _lost_with_session()
            answer = wire.CommitAnswer(())
            if ops or sync:
                answer = await self._commit(ops, sync, batch[0].stop_on_error, is_covered)
        except MictlanError as error:
            for request in batch:
                request.error = error
                request.settle()
        else:
            start = 0
            for request in batch:
                request.results = answer.results[start : start + len(request.ops)]
                start += len(request.ops)
                request.settle()
        self._under_way = []
        self._count_answered(len(batch))

    async def _commit(
        self,
        ops: tuple[wire.Operation, ...],
        sync: bool,
        stop_on_error: bool,
        is_covered: bool,
    ) -> wire.CommitAnswer:
        while True:
            ref = self.ref
            commit = wire.Commit(
                ref.session, ref.epoch, self._next_number, ops, sync, stop_on_error, is_covered
            )
            try:
                # Without a deadline: a batch once sent may have been applied, so nothing may
                # follow it until its fate is known. Its callers have deadlines of their own.
                answer = await self._router.commit(commit, FOR_EVER)
            except MictlanError as error:
                if error.kind not in _LOST:
                    raise
                await self.replace(ref)
                if is_covered:
                    raise _lost_with_session() from error
                continue
            self._next_number += len(answer.results)
            if sync:
                self._durable_number = self._next_number - 1
            return answer

    # --- life ------------------------------------------------------------------------------------

    async def keep_alive(self) -> None:
        """Send heartbeats for as long as the session lives."""
        while True:
            await trio.sleep(self.grant.heartbeat_s)
            try:
                await self._router.heartbeat(self.ref)
            except MictlanError as error:
                if error.kind is Kind.FENCED:
                    # The next commit finds out and reopens; without one there is nothing to save.
                    log.warning("the session expired: %s", error)
                else:
                    log.info("heartbeat failed: %s", error)

    async def close(self) -> None:
        """End the session at the router. Never raises a `MictlanError`: it would expire anyway."""
        try:
            await self._router.close_session(self.ref)
        except MictlanError as error:
            log.info("the session was not closed: %s", error)

    async def replace(self, fenced: wire.SessionRef) -> None:
        """Replace the session `fenced`, unless another task has done so meanwhile.

        Raises:
            MictlanError: the router cannot be reached.
        """
        async with self._reopen_lock:
            if self.ref != fenced:
                return
            log.warning("the session was fenced or forgotten; opening a new one")
            asked_s = self._clock.monotonic_s()
            grant = await self._router.open_session(self._request)
            self._inodes.clear()
            self._accept(grant, asked_s)

    # --- inode numbers ---------------------------------------------------------------------------

    async def new_inode(self) -> InodeNumber:
        """A number for a new inode. Suspends only when none is left.

        Raises:
            MictlanError: the router cannot be reached.
        """
        while not self._inodes:
            await self._refill_inodes()
        first = self._inodes[0]
        if first.count == 1:
            self._inodes.popleft()
        else:
            self._inodes[0] = wire.InodeRange(first.first + 1, first.count - 1)
        if self._inodes_left <= INODES_LOW_COUNT and not self._is_refilling:
            self._is_refilling = True
            self._nursery.start_soon(self._refill_in_background)
        return InodeNumber(first.first)

    @property
    def _inodes_left(self) -> int:
        return sum(numbers.count for numbers in self._inodes)

    async def _refill_in_background(self) -> None:
        try:
            await self._refill_inodes()
        except MictlanError as error:
            log.info("no inode numbers: %s", error)
        finally:
            self._is_refilling = False

    async def _refill_inodes(self) -> None:
        async with self._inode_lock:
            if self._inodes_left > INODES_LOW_COUNT:
                return
            ref = self.ref
            request = wire.TakeInodes(ref.session, ref.epoch, wire.INODE_BATCH_COUNT)
            try:
                self._inodes.append(await self._router.take_inodes(request))
            except MictlanError as error:
                if error.kind is not Kind.FENCED:
                    raise
                await self.replace(ref)


def _lost_with_session() -> MictlanError:
    """What became of a change that leases covered: others may have changed the same since."""
    detail = "the session was fenced before this was applied"
    return MictlanError(Kind.FENCED, "commit", "", detail)


def _size_of(op: wire.Operation) -> int:
    """An upper bound of the bytes of an operation when it is encoded."""
    if isinstance(op, wire.WriteExtents):
        return (
            OP_SIZE_BYTES
            + EXTENT_SIZE_BYTES * len(op.extents)
            + CHUNK_SIZE_BYTES * len(op.chunks)
            + sum(map(len, op.inline))
        )
    if isinstance(op, wire.SetXattr):
        return OP_SIZE_BYTES + len(op.value)
    if isinstance(op, wire.MakeNode):
        return OP_SIZE_BYTES + len(op.target)
    return OP_SIZE_BYTES
