import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import SessionId
from mictlanfs_server.metadata.base import SessionRecord
from mictlanfs_server.router.sessions import SessionTable
from tests.unit.server.router.fakes import FakeClock

ONE, TWO = SessionId("one"), SessionId("two")


def record(session: SessionId, epoch: int = 1) -> SessionRecord:
    return SessionRecord(session, epoch, "host", 7, f"label of {session}", 5)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock) -> SessionTable:
    return SessionTable(clock, 30, [record(ONE, 1), record(TWO, 2)])


def expired(table: SessionTable) -> list[SessionId]:
    return [record.session for record in table.expired()]


def test_silent_session_expires_and_stays_until_removed(
    clock: FakeClock, table: SessionTable
) -> None:
    clock.advance(29)
    assert expired(table) == []
    table.touch(TWO, 2)
    clock.advance(2)
    assert expired(table) == expired(table) == [ONE]
    table.remove(ONE)
    assert expired(table) == []


def test_sessions_loaded_after_a_restart_have_their_whole_time(table: SessionTable) -> None:
    assert expired(table) == []


def test_touch_refuses_unknown_removed_and_old(table: SessionTable) -> None:
    table.remove(TWO)
    table.remove(TWO)
    for session, epoch in ((ONE, 2), (ONE, 0), (TWO, 2), (SessionId("none"), 1)):
        with pytest.raises(MictlanError) as raised:
            table.touch(session, epoch)
        assert raised.value.kind is Kind.FENCED
    table.touch(ONE, 1)


def test_refused_touch_keeps_nobody_alive(clock: FakeClock, table: SessionTable) -> None:
    clock.advance(20)
    with pytest.raises(MictlanError):
        table.touch(ONE, 99)
    clock.advance(11)
    assert ONE in expired(table)


def test_pause_of_the_router_expires_nobody(clock: FakeClock, table: SessionTable) -> None:
    clock.advance(500)
    table.forgive(500)
    assert expired(table) == []
    clock.advance(31)
    assert expired(table) == [ONE, TWO]


def test_time_seen_is_taken_once_for_each_sign_of_life(
    clock: FakeClock, table: SessionTable
) -> None:
    assert table.take_unsaved() == {}
    table.touch(ONE, 1)
    seen_ns = clock.wall_ns()
    clock.advance(4)
    assert table.take_unsaved() == {ONE: seen_ns}
    assert table.take_unsaved() == {}


def test_statuses_tell_who_and_how_silent(clock: FakeClock, table: SessionTable) -> None:
    table.remove(TWO)
    clock.advance(3)
    (status,) = table.statuses()
    assert (status.label, status.host, status.pid) == ("label of one", "host", 7)
    assert status.last_seen_s == pytest.approx(3)
