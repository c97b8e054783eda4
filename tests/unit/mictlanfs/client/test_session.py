from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
import trio
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.client import session as session_module
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import CLOSE_TIMEOUT_S, INODES_LOW_COUNT, Session, open_session
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import NAME_SIZE_BYTES_MAX, ROOT_INODE, Attributes, FileKind, InodeNumber
from mictlanfs.taskerrors import raising_single_errors
from mictlanfs.uri import parse_routers
from tests.support.fakenet import FakeNet
from tests.support.fakerouter import FakeRouter
from tests.support.strategies import operation_types, values_of

URI = "mictlanx://router@router:60666/?protocol=http"
DEADLINE_S = 30.0


@dataclass
class Space:
    """A router, the network to it, and what sessions were granted."""

    router: FakeRouter = field(default_factory=FakeRouter)
    net: FakeNet = field(default_factory=FakeNet)
    grants: list[wire.SessionGrant] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.net.servers[self.router.url] = self.router

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        client = RouterClient(parse_routers(URI), self.net, RetryPolicy(deadline_s=DEADLINE_S))
        with raising_single_errors():
            async with open_session(
                client, "test", deadline_s=DEADLINE_S, on_grant=self.grants.append
            ) as session:
                yield session

    @property
    def names(self) -> list[bytes]:
        return self.router.tree()

    @property
    def batch_sizes(self) -> list[int]:
        return [len(batch.ops) for batch in self.router.commits]


@pytest.fixture
def space() -> Space:
    return Space()


async def make(session: Session, name: bytes) -> wire.MakeNode:
    """The operation that makes a directory in the root."""
    ino = await session.new_inode()
    return wire.MakeNode(ROOT_INODE, name, ino, FileKind.DIRECTORY, 0o755, 0, 0, 1)


async def kind_of_failure(work: Awaitable[object]) -> Kind:
    with pytest.raises(MictlanError) as caught:
        await work
    return caught.value.kind


# --- applying ------------------------------------------------------------------------------------


async def test_an_operation_is_applied_and_its_attributes_come_back(space: Space) -> None:
    async with space.session() as session:
        op = await make(session, b"a")
        node, parent = await session.apply(op)
    assert (node.ino, parent.ino) == (op.ino, ROOT_INODE)
    assert space.names == [b"a"]
    assert not space.router.commits[0].sync


async def test_an_operation_that_fails_raises_its_error(space: Space) -> None:
    async with space.session() as session:
        await session.apply(await make(session, b"a"))
        assert await kind_of_failure(session.apply(await make(session, b"a"))) is Kind.EXISTS
        await session.apply(await make(session, b"b"))
    assert [batch.first_number for batch in space.router.commits] == [1, 2, 3]


async def test_concurrent_operations_travel_together(
    space: Space, autojump_clock: MockClock
) -> None:
    space.net.latency_s = 0.1
    touched: dict[bytes, InodeNumber] = {}

    async def apply(session: Session, name: bytes) -> None:
        op = await make(session, name)
        touched[name] = (await session.apply(op))[0].ino
        assert touched[name] == op.ino

    async with space.session() as session, trio.open_nursery() as nursery:
        nursery.start_soon(apply, session, b"first")
        await trio.sleep(0.01)
        for n in range(100):
            nursery.start_soon(apply, session, b"%d" % n)
    assert space.batch_sizes == [1, 100]
    assert len(space.names) == len(touched) == 101


async def test_each_caller_of_a_batch_gets_its_own_error(
    space: Space, autojump_clock: MockClock
) -> None:
    space.net.latency_s = 0.1
    kinds: list[Kind | None] = []

    async def apply(session: Session, name: bytes) -> None:
        try:
            await session.apply(await make(session, name))
            kinds.append(None)
        except MictlanError as error:
            kinds.append(error.kind)

    async with space.session() as session, trio.open_nursery() as nursery:
        for name in (b"first", b"a", b"a", b"b"):
            nursery.start_soon(apply, session, name)
            await trio.testing.wait_all_tasks_blocked()
    assert sorted(kinds, key=str) == sorted([None, None, Kind.EXISTS, None], key=str)
    assert space.names == [b"a", b"b", b"first"]


async def test_a_batch_is_durable_when_anybody_in_it_asked_for_that(
    space: Space, autojump_clock: MockClock
) -> None:
    space.net.latency_s = 0.1

    async def apply(session: Session, number: int) -> None:
        await session.apply(await make(session, b"%d" % number), sync=number == 2)

    async with space.session() as session, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(apply, session, number)
            await trio.testing.wait_all_tasks_blocked()
    assert [batch.sync for batch in space.router.commits] == [False, True]


async def test_apply_all_stops_at_the_first_error(space: Space) -> None:
    async with space.session() as session:
        ops = [await make(session, name) for name in (b"a", b"b", b"a", b"c")]
        assert await kind_of_failure(session.apply_all(ops)) is Kind.EXISTS
        assert space.names == [b"a", b"b"]
        # The failed operation counts, those behind it do not: the next number is the fourth.
        results = await session.apply_all([await make(session, b"d")], sync=True)
    assert [len(touched) for touched in results] == [2]
    assert [batch.first_number for batch in space.router.commits] == [1, 4]
    assert [batch.stop_on_error for batch in space.router.commits] == [True, True]


async def test_apply_each_goes_on_after_an_error(space: Space) -> None:
    async with space.session() as session:
        ops = [await make(session, name) for name in (b"a", b"a", b"b")]
        results = await session.apply_each(ops, sync=True)
    kinds = [result.kind if isinstance(result, MictlanError) else None for result in results]
    assert kinds == [None, Kind.EXISTS, None]
    assert space.names == [b"a", b"b"]
    assert [batch.sync for batch in space.router.commits] == [True]


async def test_operations_that_stop_on_error_never_stop_those_of_others(
    space: Space, autojump_clock: MockClock
) -> None:
    space.net.latency_s = 0.1

    async def fail(session: Session) -> None:
        ops = [await make(session, b"x"), await make(session, b"x")]
        assert await kind_of_failure(session.apply_all(ops)) is Kind.EXISTS

    async def succeed(session: Session, name: bytes) -> None:
        await session.apply(await make(session, name))

    async with space.session() as session, trio.open_nursery() as nursery:
        for name in (b"1", b"2", b"", b"3", b""):
            if name:
                nursery.start_soon(succeed, session, name)
            else:
                nursery.start_soon(fail, session)
            await trio.testing.wait_all_tasks_blocked()
    assert space.names == [b"1", b"2", b"3", b"x"]
    for batch in space.router.commits:
        assert not batch.stop_on_error or len(batch.ops) <= 2


async def test_a_batch_has_at_most_so_many_operations(
    space: Space, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "BATCH_OPS_MAX", 10)
    space.net.latency_s = 0.1

    async def apply(session: Session, n: int) -> None:
        await session.apply(await make(session, b"%d" % n))

    async with space.session() as session:
        async with trio.open_nursery() as nursery:
            for n in range(35):
                nursery.start_soon(apply, session, n)
        ops = [await make(session, b"more%d" % n) for n in range(11)]
        with pytest.raises(ValueError, match="11 operations, more than 10"):
            await session.apply_all(ops)
    assert max(space.batch_sizes) <= 10
    assert len(space.names) == 35


async def test_a_batch_is_never_larger_than_a_router_takes(
    space: Space, autojump_clock: MockClock
) -> None:
    space.net.latency_s = 0.1

    async def apply(session: Session, n: int) -> None:
        # The largest value of an extended attribute, 300 times: 19 MB.
        op = wire.SetXattr(ROOT_INODE, b"user.%d" % n, bytes(64 * 1024), 1)
        with pytest.raises(MictlanError):
            await session.apply(op)

    def refuse(op: wire.Operation) -> None:
        raise MictlanError(Kind.UNSUPPORTED)

    space.router.before_apply = refuse
    async with space.session() as session, trio.open_nursery() as nursery:
        for n in range(300):
            nursery.start_soon(apply, session, n)
    sizes = [len(request.body) for request in space.net.requests]
    assert max(sizes) <= wire.BATCH_SIZE_BYTES_MAX
    assert sum(space.batch_sizes) == 300


async def test_operations_that_belong_together_and_are_too_large_are_a_defect(
    space: Space,
) -> None:
    ops = [wire.SetXattr(ROOT_INODE, b"user.%d" % n, bytes(64 * 1024), 1) for n in range(130)]
    async with space.session() as session:
        with pytest.raises(ValueError, match="bytes of operations, more than"):
            await session.apply_all(ops)


@given(data=st.data())
@settings(max_examples=100)
def test_the_size_of_an_operation_is_never_underestimated(data: st.DataObject) -> None:
    op = data.draw(st.one_of([values_of(kind) for kind in operation_types]))
    names = [value for name, value in msgspec.structs.asdict(op).items() if "name" in name]
    assume(all(len(name) <= NAME_SIZE_BYTES_MAX for name in names))
    assert len(wire.encode(op)) <= session_module._size_of(op)


# --- when things go wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("is_late", [False, True], ids=["request lost", "answer lost"])
async def test_a_lost_exchange_is_repeated_with_the_same_number(
    space: Space, autojump_clock: MockClock, is_late: bool
) -> None:
    async with space.session() as session:
        space.net.fail(wire.Path.COMMIT, Kind.TIMED_OUT, count=2, is_late=is_late)
        op = await make(session, b"a")
        assert (await session.apply(op))[0].ino == op.ino
        await session.apply(await make(session, b"b"))
    numbers = [batch.first_number for batch in space.router.commits]
    assert numbers == ([1, 1, 1, 2] if is_late else [1, 2])
    assert space.names == [b"a", b"b"]


async def test_what_comes_while_a_batch_is_repeated_waits_and_keeps_its_order(
    space: Space, autojump_clock: MockClock
) -> None:
    finished: list[bytes] = []

    async def apply(session: Session, name: bytes) -> None:
        await session.apply(await make(session, name))
        finished.append(name)

    async with space.session() as session:
        space.net.fail(wire.Path.COMMIT, count=3, is_late=True)
        async with trio.open_nursery() as nursery:
            for name in (b"a", b"b", b"c"):
                nursery.start_soon(apply, session, name)
                await trio.testing.wait_all_tasks_blocked()
    assert finished[0] == b"a"
    assert {batch.ops for batch in space.router.commits[:4]} == {space.router.commits[0].ops}
    assert [batch.first_number for batch in space.router.commits] == [1, 1, 1, 1, 2]


async def test_a_fenced_session_is_replaced_and_the_batch_sent_again(
    space: Space, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with space.session() as session:
        await session.apply(await make(session, b"a"))
        space.router.forget_sessions()
        await session.apply(await make(session, b"b"))
        await session.apply(await make(session, b"c"))
        assert session.grant is space.grants[-1]
    assert space.names == [b"a", b"b", b"c"]
    assert [grant.epoch for grant in space.grants] == [1, 2]
    assert [(batch.epoch, batch.first_number) for batch in space.router.commits] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    assert "fenced" in caplog.text


async def test_a_session_whose_last_batches_a_power_cut_undid_is_replaced(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        await session.apply(await make(session, b"a"))
        space.net.fail(wire.Path.COMMIT, Kind.CONFLICT)
        await session.apply(await make(session, b"b"))
    assert space.names == [b"a", b"b"]
    assert [grant.epoch for grant in space.grants] == [1, 2]


async def test_an_operation_without_an_answer_times_out(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        space.net.hold(wire.Path.COMMIT)
        start = trio.current_time()
        assert await kind_of_failure(session.apply(await make(session, b"a"))) is Kind.TIMED_OUT
        assert trio.current_time() - start == pytest.approx(DEADLINE_S)
        start = trio.current_time()
        late = session.apply(await make(session, b"b"), deadline_s=3.0)
        assert await kind_of_failure(late) is Kind.TIMED_OUT
        assert trio.current_time() - start == pytest.approx(3.0)


async def test_a_batch_that_timed_out_is_applied_before_later_ones(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        gate = space.net.hold(wire.Path.COMMIT)
        assert await kind_of_failure(session.apply(await make(session, b"a"))) is Kind.TIMED_OUT
        gate.set()
        # It says that the first was applied, since this name is taken.
        assert await kind_of_failure(session.apply(await make(session, b"a"))) is Kind.EXISTS
    assert [batch.first_number for batch in space.router.commits] == [1, 2]


async def test_an_operation_that_timed_out_while_it_waited_is_never_sent(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        gate = space.net.hold(wire.Path.COMMIT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.apply, await make(session, b"sent"))
            await trio.testing.wait_all_tasks_blocked()
            op = await make(session, b"waiting")
            late = session.apply(op, deadline_s=1.0)
            assert await kind_of_failure(late) is Kind.TIMED_OUT
            gate.set()
        await session.apply(await make(session, b"later"))
    assert space.names == [b"later", b"sent"]


async def test_a_cancelled_operation_that_waits_is_taken_back(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        gate = space.net.hold(wire.Path.COMMIT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.apply, await make(session, b"sent"))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(1.0):
                await session.apply(await make(session, b"waiting"))
            gate.set()
    assert space.names == [b"sent"]


async def test_a_batch_that_is_refused_fails_its_callers_and_no_others(space: Space) -> None:
    async with space.session() as session:
        space.net.fail(wire.Path.COMMIT, Kind.INVALID)
        assert await kind_of_failure(session.apply(await make(session, b"a"))) is Kind.INVALID
        await session.apply(await make(session, b"b"))
    assert space.names == [b"b"]


async def test_a_router_that_is_not_there_refuses_the_session(
    space: Space, autojump_clock: MockClock
) -> None:
    space.net.servers.clear()

    async def enter() -> None:
        async with space.session():
            pass

    assert await kind_of_failure(enter()) is Kind.UNAVAILABLE


# --- durability ----------------------------------------------------------------------------------


async def test_sync_makes_what_was_applied_durable_and_costs_nothing_otherwise(
    space: Space,
) -> None:
    async with space.session() as session:
        await session.sync()
        assert not space.router.commits
        await session.apply(await make(session, b"a"))
        await session.sync()
        await session.sync()
        await session.apply(await make(session, b"b"), sync=True)
        await session.sync()
    assert [(len(batch.ops), batch.sync) for batch in space.router.commits] == [
        (1, False),
        (0, True),
        (1, True),
    ]


# --- life ----------------------------------------------------------------------------------------


async def test_a_session_is_kept_alive_and_closed(space: Space, autojump_clock: MockClock) -> None:
    async with space.session() as session:
        await trio.sleep(3.5 * session.grant.heartbeat_s)
        assert len(space.net.paths(wire.Path.SESSION_HEARTBEAT)) == 3
        assert space.router.sessions
    assert not space.router.sessions


async def test_a_heartbeat_that_fails_does_not_end_the_session(
    space: Space, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with space.session() as session:
        space.net.fail(wire.Path.SESSION_HEARTBEAT, count=1000)
        await trio.sleep(10 * session.grant.heartbeat_s)
        await session.apply(await make(session, b"a"))
    assert space.names == [b"a"]


async def test_a_heartbeat_that_is_fenced_is_mended_by_the_next_change(
    space: Space, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with space.session() as session:
        space.router.forget_sessions()
        await trio.sleep(3 * session.grant.heartbeat_s)
        await session.apply(await make(session, b"a"))
    assert "expired" in caplog.text
    assert space.names == [b"a"]


async def test_closing_gives_up_when_the_router_does_not_answer(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session():
        space.net.hold(wire.Path.SESSION_CLOSE)
        start = trio.current_time()
    assert trio.current_time() - start == pytest.approx(CLOSE_TIMEOUT_S)


async def test_a_cancelled_session_is_closed_too(space: Space) -> None:
    with trio.CancelScope() as scope:
        async with space.session():
            scope.cancel()
            await trio.sleep_forever()
    assert not space.router.sessions


# --- inode numbers -------------------------------------------------------------------------------


async def take(session: Session, count: int) -> list[InodeNumber]:
    taken = []
    for _ in range(count):
        taken.append(await session.new_inode())
        # Lets the refill happen that goes on in the background.
        await trio.testing.wait_all_tasks_blocked()
    return taken


async def test_inode_numbers_never_repeat_and_are_fetched_ahead(space: Space) -> None:
    space.router.inodes_per_grant = INODES_LOW_COUNT + 10
    async with space.session() as session:
        first = await take(session, 9)
        assert not space.net.paths(wire.Path.SESSION_INODES)
        second = await take(session, 5)
        assert len(space.net.paths(wire.Path.SESSION_INODES)) == 1
        rest = await take(session, 2 * INODES_LOW_COUNT)
        assert len(space.net.paths(wire.Path.SESSION_INODES)) == 1
    numbers = [*first, *second, *rest]
    assert len(set(numbers)) == len(numbers)


async def test_many_tasks_that_need_numbers_share_a_request(space: Space) -> None:
    space.router.inodes_per_grant = 1
    numbers: list[InodeNumber] = []

    async def one(session: Session) -> None:
        numbers.append(await session.new_inode())

    async with space.session() as session, trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(one, session)
    assert len(set(numbers)) == 200
    assert len(space.net.paths(wire.Path.SESSION_INODES)) <= 2


async def test_numbers_are_taken_up_again_after_the_router_was_away(
    space: Space, autojump_clock: MockClock
) -> None:
    space.router.inodes_per_grant = 3
    async with space.session() as session:
        space.net.fail(wire.Path.SESSION_INODES, count=1000)
        await take(session, 3)
        assert await kind_of_failure(session.new_inode()) is Kind.UNAVAILABLE
        space.net.clear_faults()
        assert len(await take(session, 5)) == 5


async def test_a_session_fenced_while_it_takes_numbers_is_replaced(
    space: Space, caplog: pytest.LogCaptureFixture
) -> None:
    space.router.inodes_per_grant = 2
    async with space.session() as session:
        space.router.forget_sessions()
        numbers = await take(session, 50)
        await session.apply(await make(session, b"a"))
    assert len(set(numbers)) == 50
    assert len(space.grants) == 2


async def test_attributes_of_the_root_come_with_the_grant(space: Space) -> None:
    async with space.session() as session:
        root: Attributes = session.grant.root
        assert (root.ino, root.kind) == (ROOT_INODE, FileKind.DIRECTORY)
    opened: Sequence[wire.SessionGrant] = space.grants
    assert len(opened) == 1


# --- operations that nobody waits for ------------------------------------------------------------


def post(
    session: Session, op: wire.Operation, results: list[Kind | None], *, sync: bool = False
) -> None:
    """Post an operation; what becomes of it is appended."""

    def on_result(_: wire.Operation, result: wire.OpResult) -> None:
        results.append(None if result.error is None else result.error.to_error().kind)

    session.post(op, on_result, sync=sync)


async def test_posted_operations_leave_together_within_a_while(
    space: Space, autojump_clock: MockClock
) -> None:
    results: list[Kind | None] = []
    async with space.session() as session:
        for name in (b"a", b"b", b"a"):
            post(session, await make(session, name), results)
        assert (space.batch_sizes, session.unanswered_count) == ([], 3)
        await trio.sleep(session_module.POSTED_AGE_S_MAX)
        await session.flush()
    assert (space.batch_sizes, results) == ([3], [None, None, Kind.EXISTS])
    assert space.router.commits[0].is_covered


async def test_operation_posted_to_be_durable_leaves_at_once_with_those_before(
    space: Space, autojump_clock: MockClock
) -> None:
    results: list[Kind | None] = []
    async with space.session() as session:
        started_s = trio.current_time()
        post(session, await make(session, b"a"), results)
        post(session, await make(session, b"b"), results, sync=True)
        while session.unanswered_count:
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == started_s
        await session.sync()
    assert (space.batch_sizes, results) == ([2], [None, None]), "no barrier follows"
    assert space.router.commits[0].sync


async def test_operation_posted_to_be_durable_does_not_wait_for_others_behind_a_batch(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        gate = space.net.hold(wire.Path.COMMIT)
        post(session, await make(session, b"a"), [], sync=True)
        await trio.testing.wait_all_tasks_blocked()
        post(session, await make(session, b"b"), [], sync=True)
        started_s = trio.current_time()
        gate.set()
        while session.unanswered_count:
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == started_s
    assert [commit.sync for commit in space.router.commits] == [True, True]


async def test_many_posted_operations_do_not_wait(
    space: Space, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "POSTED_COUNT_MAX", 2)
    async with space.session() as session:
        started_s = trio.current_time()
        for name in (b"a", b"b"):
            post(session, await make(session, name), [])
        while session.unanswered_count:
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == started_s
    assert space.batch_sizes == [2]


async def test_what_is_posted_while_a_batch_is_under_way_leaves_together_later(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        gate = space.net.hold(wire.Path.COMMIT)
        post(session, await make(session, b"a"), [])
        session.hurry()
        await trio.testing.wait_all_tasks_blocked()
        for name in (b"b", b"c"):
            post(session, await make(session, name), [])
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        post(session, await make(session, b"d"), [])
        await trio.sleep(session_module.POSTED_AGE_S_MAX)
        await session.flush()
    assert space.batch_sizes == [1, 3]


async def test_covered_operations_and_others_travel_apart_and_in_order(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        post(session, await make(session, b"a"), [])
        await session.apply(await make(session, b"b"))
        post(session, await make(session, b"c"), [])
        await session.sync()
    batches = [(len(batch.ops), batch.is_covered, batch.sync) for batch in space.router.commits]
    assert batches == [(1, True, False), (1, False, False), (1, True, True)]


async def test_a_flush_within_the_deadline_says_when_nothing_is_answered(
    space: Space, autojump_clock: MockClock
) -> None:
    async with space.session() as session:
        post(session, await make(session, b"a"), [])
        gate = space.net.hold(wire.Path.COMMIT)
        assert await kind_of_failure(session.flush_within_deadline()) is Kind.TIMED_OUT
        gate.set()
        await session.flush()
    assert space.names == [b"a"]


async def test_too_much_that_is_unanswered_is_waited_for(
    space: Space, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "UNANSWERED_COUNT_MAX", 2)
    async with space.session() as session:
        for name in (b"a", b"b"):
            post(session, await make(session, name), [])
        await session.wait_for_room()
        assert session.unanswered_count == 2
        post(session, await make(session, b"c"), [])
        await session.wait_for_room()
        assert session.unanswered_count < 2
        gate = space.net.hold(wire.Path.COMMIT)
        for name in (b"d", b"e", b"f"):
            post(session, await make(session, name), [])
        assert await kind_of_failure(session.wait_for_room()) is Kind.TIMED_OUT
        gate.set()


async def test_who_gave_up_leaves_a_place_behind(space: Space, autojump_clock: MockClock) -> None:
    # Else what waits for all that was posted before would count it as one of them.
    results: list[Kind | None] = []
    async with space.session() as session, trio.open_nursery() as nursery:
        gate = space.net.hold(wire.Path.COMMIT)
        post(session, await make(session, b"a"), results)
        nursery.start_soon(session.flush)
        await trio.sleep(1)
        post(session, await make(session, b"b"), results)
        late = session.apply(await make(session, b"late"), deadline_s=2)
        assert await kind_of_failure(late) is Kind.TIMED_OUT
        with trio.move_on_after(5) as scope:
            await session.flush()
        assert scope.cancelled_caught
        gate.set()
        await session.flush()
        assert (results, session.unanswered_count) == ([None, None], 0)
    assert space.names == [b"a", b"b"]


async def test_a_fence_takes_what_leases_covered_with_it(
    space: Space, autojump_clock: MockClock
) -> None:
    results: list[Kind | None] = []
    async with space.session() as session, trio.open_nursery() as nursery:
        gate = space.net.hold(wire.Path.COMMIT)
        post(session, await make(session, b"sent"), results)
        nursery.start_soon(session.flush)
        await trio.sleep(1)
        post(session, await make(session, b"waiting"), results)
        uncovered = await make(session, b"uncovered")
        nursery.start_soon(session.apply, uncovered)
        await trio.sleep(1)
        space.router.forget_sessions()
        await session.replace(session.ref)
        assert results == [], "in the order of the log: the one that was sent comes first"
        gate.set()
        await session.flush()
    assert results == [Kind.FENCED, Kind.FENCED]
    assert space.names == [b"uncovered"]
