"""What becomes of operations that leases covered when their session is replaced, or ends."""

import trio
from trio.testing import wait_all_tasks_blocked

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from tests.unit.mictlanfs.client.test_session import Space, kind_of_failure, make


class Results:
    """What posted operations were answered, in order."""

    def __init__(self) -> None:
        self.kinds: list[tuple[bytes, str]] = []

    def note(self, op: wire.Operation, result: wire.OpResult) -> None:
        assert isinstance(op, wire.MakeNode)
        self.kinds.append((op.name, result.error.kind if result.error else ""))


async def test_what_waited_when_the_session_was_replaced_is_never_sent() -> None:
    space, results = Space(), Results()
    async with space.session() as session:
        for name in (b"a", b"b"):
            session.post(await make(session, name), results.note)
        space.router.forget_sessions()
        await session.replace(session.ref)
        session.post(await make(session, b"c"), results.note)
        await session.flush()
    assert results.kinds == [(b"a", "fenced"), (b"b", "fenced"), (b"c", "")]
    assert space.names == [b"c"]


async def test_the_batch_that_finds_out_is_not_sent_again() -> None:
    space, results = Space(), Results()
    async with space.session() as session:
        session.post(await make(session, b"a"), results.note)
        space.router.forget_sessions()
        await session.flush()
    assert results.kinds == [(b"a", "fenced")]
    assert space.names == []


async def test_what_no_lease_covered_goes_on_under_the_next_session() -> None:
    space, results = Space(), Results()
    async with space.session() as session:
        session.post(await make(session, b"a"), results.note)
        op = await make(session, b"b")
        space.router.forget_sessions()
        await session.replace(session.ref)
        await session.apply(op)
    assert results.kinds == [(b"a", "fenced")]
    assert space.names == [b"b"]


async def test_giving_up_fails_what_waits_and_what_is_under_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    space, results = Space(), Results()
    async with space.session() as session:
        del space.net.servers[space.router.url]
        session.post(await make(session, b"a"), results.note)
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(5):
                await session.flush()
            session.post(await make(session, b"b"), results.note)
            op = await make(session, b"c")

            async def apply() -> None:
                assert await kind_of_failure(session.apply(op)) is Kind.TIMED_OUT

            nursery.start_soon(apply)
            await wait_all_tasks_blocked()
            session.give_up(MictlanError(Kind.TIMED_OUT))
            assert session.unanswered_count == 0
        space.net.servers[space.router.url] = space.router
    assert results.kinds == [(b"a", "timed-out"), (b"b", "timed-out")]


async def test_what_is_lost_is_told_in_the_order_of_the_log(
    autojump_clock: trio.testing.MockClock,
) -> None:
    space, results = Space(), Results()
    async with space.session() as session:
        session.post(await make(session, b"under way"), results.note)
        del space.net.servers[space.router.url]
        with trio.move_on_after(5):
            await session.flush()
        session.post(await make(session, b"behind it"), results.note)
        space.net.servers[space.router.url] = space.router
        space.router.forget_sessions()
        await session.replace(session.ref)
        await session.flush()
    assert results.kinds == [(b"under way", "fenced"), (b"behind it", "fenced")]
