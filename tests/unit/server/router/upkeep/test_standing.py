"""Whose copies count, and for how long a peer that is down is missed."""

from mictlanfs.model import PeerState
from mictlanfs_server.router.upkeep.standing import DELAY_S_MAX, StandingTable
from tests.unit.server.router.upkeep.copying import ONE, TWO
from tests.unit.server.router.upkeep.test_planning import peer

DOWN = PeerState.DOWN


def test_down_peer_counts_for_its_delay_and_is_waited_for() -> None:
    table = StandingTable(60.0)
    table.observe([peer(1), peer(2)], 0.0)
    seen = table.observe([peer(1), peer(2, state=DOWN)], 10.0)
    assert seen.counted == {ONE, TWO}
    assert seen.up == {ONE}
    assert seen.waiting_s == {"peer-2": 60.0}
    seen = table.observe([peer(1), peer(2, state=DOWN)], 70.0)
    assert seen.counted == {ONE}
    assert seen.waiting_s == {}
    assert seen.sources == (ONE,)


def test_delay_doubles_with_each_fall_within_an_hour_up_to_an_hour() -> None:
    table = StandingTable(60.0)
    now_s = 0.0
    table.observe([peer(1)], now_s)
    delays = []
    for _ in range(9):
        now_s += 1
        seen = table.observe([peer(1, state=DOWN)], now_s)
        delays.append(round(seen.waiting_s["peer-1"]))
        now_s += 1
        table.observe([peer(1)], now_s)
    assert delays[:4] == [60, 120, 240, 480]
    assert delays[-1] == DELAY_S_MAX
    now_s += 3601
    table.observe([peer(1)], now_s)
    assert table.observe([peer(1, state=DOWN)], now_s).waiting_s == {"peer-1": 60.0}


def test_peer_that_fell_is_steady_only_after_it_stayed_for_its_delay() -> None:
    table = StandingTable(60.0)
    assert table.observe([peer(1)], 0.0).steady == {ONE}
    table.observe([peer(1, state=DOWN)], 1.0)
    assert table.observe([peer(1)], 2.0).steady == set()
    assert table.observe([peer(1)], 61.0).steady == set()
    assert table.observe([peer(1)], 62.0).steady == {ONE}


def test_signature_changes_with_what_can_be_done_only() -> None:
    table = StandingTable(60.0)
    before = table.observe([peer(1), peer(2)], 0.0).signature
    assert table.observe([peer(1), peer(2)], 50.0).signature == before
    assert table.observe([peer(1), peer(2, is_full=True)], 51.0).signature != before
    assert table.observe([peer(1), peer(2, is_draining=True)], 52.0).signature != before
