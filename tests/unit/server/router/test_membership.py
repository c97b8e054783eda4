import logging
from dataclasses import dataclass, field

import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import PeerInfo, PeerMap, PeerNumber, PeerState
from mictlanfs_server.metadata.copies import RetiredPeer
from mictlanfs_server.router import membership
from mictlanfs_server.router.membership import Membership
from tests.unit.server.router.fakes import SPACE, FakeClock, announce

UP, SUSPECT, DOWN = PeerState.UP, PeerState.SUSPECT, PeerState.DOWN
EMPTY = PeerMap(1, ())


@dataclass
class Cluster:
    """A membership under test; a peer is suspect after 3 s and down after 10 s."""

    saved: PeerMap = EMPTY
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.membership = Membership(self.clock, SPACE, self.saved, suspect_s=3, down_s=10)

    def announce(self, request: wire.PeerAnnounce) -> PeerNumber:
        return self.membership.announce(request)

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.membership.tick()

    @property
    def peers(self) -> tuple[PeerInfo, ...]:
        return self.membership.peer_map().peers

    @property
    def states(self) -> list[PeerState]:
        return [peer.state for peer in self.peers]

    def refusal_of(self, request: wire.PeerAnnounce) -> MictlanError:
        before = self.membership.peer_map()
        with pytest.raises(MictlanError) as raised:
            self.announce(request)
        assert self.membership.peer_map() == before
        return raised.value


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# --- registration ---


def test_new_peer_gets_a_number_and_is_up(cluster: Cluster) -> None:
    numbers = [cluster.announce(announce(n)) for n in (1, 2)]
    assert numbers == [1, 2]
    assert cluster.states == [UP, UP]
    first = cluster.peers[0]
    assert (first.id, first.url) == ("peer-1", "http://127.0.0.1:24001")
    assert (first.capacity, first.boot_id) == (1000, "boot")


def test_peer_keeps_its_number(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    cluster.announce(announce(2))
    assert cluster.announce(announce(1)) == 1


def test_numbers_go_on_after_those_that_were_saved() -> None:
    saved = PeerInfo(PeerNumber(7), "peer-7", "http://h:1", "", 10, 0, DOWN)
    cluster = Cluster(PeerMap(5, (saved,)))
    assert cluster.announce(announce(1)) == 8


def test_numbers_that_a_lost_database_may_have_given_are_skipped() -> None:
    saved = PeerMap(5, (PeerInfo(PeerNumber(7), "peer-7", "http://h:1", "", 10, 0, DOWN),))
    restored = Membership(FakeClock(), SPACE, saved, suspect_s=3, down_s=10, number_min=1007)
    assert restored.announce(announce(7, url="http://h:1")) == 7
    assert [restored.announce(announce(number)) for number in (1, 2)] == [1007, 1008]


def test_peer_of_another_space_is_a_conflict_that_names_both(cluster: Cluster) -> None:
    error = cluster.refusal_of(announce(space_id="b" * 32))
    assert error.kind is Kind.CONFLICT
    assert SPACE in error.detail
    assert "b" * 32 in error.detail


def test_peer_with_a_new_store_belongs_to_no_space_yet(cluster: Cluster) -> None:
    assert cluster.announce(announce(space_id="")) == 1


def test_peer_of_another_protocol_is_refused_with_both_versions(cluster: Cluster) -> None:
    error = cluster.refusal_of(announce(protocol=99))
    assert error.kind is Kind.PROTOCOL
    assert "99" in error.detail
    assert str(wire.PROTOCOL_VERSION) in error.detail


def test_id_of_a_live_peer_cannot_be_taken_from_another_address(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    error = cluster.refusal_of(announce(1, url="http://127.0.0.1:1"))
    assert error.kind is Kind.CONFLICT
    assert "24001" in error.detail


def test_peer_that_is_silent_may_come_back_at_another_address(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    cluster.wait(3)
    before = cluster.membership.version
    assert cluster.announce(announce(1, url="http://127.0.0.1:1")) == 1
    assert cluster.peers[0].url == "http://127.0.0.1:1"
    assert cluster.states == [UP]
    assert cluster.membership.version == before + 1


def test_slash_at_the_end_of_an_address_means_nothing(cluster: Cluster) -> None:
    cluster.announce(announce(1, url="http://h:1/"))
    before = cluster.membership.version
    cluster.announce(announce(1, url="http://h:1"))
    assert cluster.peers[0].url == "http://h:1"
    assert cluster.membership.version == before


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "x" * 256},
        {"zone": "x" * 256},
        {"boot_id": "x" * 256},
        {"url": "ftp://host"},
        {"url": "http://" + "x" * 3000},
        {"capacity": -1},
        {"used": -1},
        {"used": 2**63},
        {"chunk_count": -1},
    ],
)
def test_impossible_announcement_is_invalid(cluster: Cluster, changes: dict[str, object]) -> None:
    request = msgspec.structs.replace(announce(), **changes)
    assert cluster.refusal_of(request).kind is Kind.INVALID


def test_number_of_peers_is_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PEERS_MAX", 2)
    cluster.announce(announce(1))
    cluster.announce(announce(2))
    assert cluster.refusal_of(announce(3)).kind is Kind.NO_SPACE
    cluster.announce(announce(1))


def test_peer_that_lost_its_chunks_is_told_of(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.announce(announce(1, chunk_count=5))
    cluster.announce(announce(1, chunk_count=0, space_id=""))
    assert "lost its 5 chunks" in caplog.text


def test_another_store_under_the_same_id_gets_another_number(cluster: Cluster) -> None:
    cluster.announce(announce(1, store_id="a"))
    cluster.announce(announce(2, store_id="b"))
    before = cluster.membership.version
    assert cluster.announce(announce(1, space_id="", store_id="c")) == 3
    assert cluster.membership.version > before
    assert [(peer.number, peer.id) for peer in cluster.peers] == [(2, "peer-2"), (3, "peer-1")]
    book = cluster.membership.book()
    assert book.stores == {2: "b", 3: "c"}
    assert book.retired == {1: RetiredPeer("peer-1", "a", is_removed=False)}
    # It is announced again, as when the answer was lost.
    assert cluster.announce(announce(1, space_id="", store_id="c")) == 3


def test_store_that_comes_back_has_its_number_again(cluster: Cluster) -> None:
    cluster.announce(announce(1, store_id="a"))
    assert cluster.announce(announce(1, space_id="", store_id="b")) == 2
    assert cluster.announce(announce(1, store_id="a")) == 1
    assert cluster.membership.book().retired.keys() == {2}


def test_other_data_at_another_address_is_a_conflict(cluster: Cluster) -> None:
    cluster.announce(announce(1, store_id="a"))
    cluster.wait(11)
    error = cluster.refusal_of(announce(1, url="http://h:9", space_id="", store_id="b"))
    assert error.kind is Kind.CONFLICT
    assert "peer rm peer-1" in error.detail
    assert cluster.announce(announce(1, url="http://h:9", store_id="a")) == 1


def test_token_of_a_store_is_learnt_and_saved(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    before = cluster.membership.version
    cluster.announce(announce(1, store_id="a"))
    assert cluster.membership.version == before + 1
    assert cluster.membership.book().stores == {1: "a"}


def test_removed_peer_stays_out_with_its_store_and_its_number_is_never_given_again(
    cluster: Cluster,
) -> None:
    cluster.announce(announce(1, store_id="a"))
    cluster.announce(announce(2, store_id="b"))
    assert cluster.membership.remove("peer-2") == 2
    assert cluster.refusal_of(announce(2, store_id="b")).kind is Kind.CONFLICT
    assert cluster.announce(announce(2, space_id="", store_id="c")) == 3
    saved = Cluster(cluster.membership.peer_map())
    again = Membership(
        saved.clock,
        SPACE,
        cluster.membership.peer_map(),
        cluster.membership.book(),
        suspect_s=3,
        down_s=10,
    )
    assert again.announce(announce(4)) == 4
    assert again.announce(announce(1, space_id="", store_id="x")) == 5


def test_draining_outlives_heartbeats_and_is_news(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    before = cluster.membership.version
    cluster.membership.set_draining("peer-1", is_draining=True)
    cluster.membership.set_draining("peer-1", is_draining=True)
    assert cluster.membership.version == before + 1
    cluster.announce(announce(1))
    assert cluster.peers[0].is_draining
    assert cluster.membership.statuses()[0].is_draining
    assert cluster.membership.version == before + 1
    with pytest.raises(MictlanError, match="peer-7"):
        cluster.membership.set_draining("peer-7", is_draining=True)


# --- silence ---


def test_silence_makes_suspect_then_down_and_a_heartbeat_up(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    for seconds, state in ((2.9, UP), (0.2, SUSPECT), (6.8, SUSPECT), (0.2, DOWN), (100, DOWN)):
        cluster.wait(seconds)
        assert cluster.states == [state]
    cluster.announce(announce(1))
    assert cluster.states == [UP]
    cluster.wait(2.9)
    assert cluster.states == [UP]


def test_long_silence_makes_down_at_once(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    cluster.wait(50)
    assert cluster.states == [DOWN]


def test_silence_of_one_peer_is_no_matter_of_the_others(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    cluster.announce(announce(2))
    cluster.clock.advance(5)
    cluster.announce(announce(2))
    cluster.membership.tick()
    assert cluster.states == [SUSPECT, UP]


def test_peer_that_leaves_is_down_at_once(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    cluster.membership.leave(wire.PeerLeave("peer-1", "http://127.0.0.1:24001/"))
    assert cluster.states == [DOWN]
    # It comes back at once, even elsewhere.
    cluster.announce(announce(1, url="http://127.0.0.1:5"))
    assert cluster.states == [UP]


def test_leaving_of_what_is_not_there_means_nothing(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    before = cluster.membership.peer_map()
    cluster.membership.leave(wire.PeerLeave("peer-9", "http://127.0.0.1:24009"))
    # Late news of a process that was replaced.
    cluster.membership.leave(wire.PeerLeave("peer-1", "http://127.0.0.1:7"))
    assert cluster.membership.peer_map() == before


def test_pause_of_the_router_is_nobody_s_silence(cluster: Cluster) -> None:
    cluster.announce(announce(1))
    cluster.clock.advance(60)
    cluster.membership.forgive(60)
    cluster.membership.tick()
    assert cluster.states == [UP]
    cluster.wait(3)
    assert cluster.states == [SUSPECT]


def test_after_a_restart_every_peer_counts_as_up_with_a_fresh_timer() -> None:
    peers = tuple(
        PeerInfo(PeerNumber(n), f"peer-{n}", f"http://h:{n}", "", 10, 0, state)
        for n, state in enumerate((UP, SUSPECT, DOWN), start=1)
    )
    cluster = Cluster(PeerMap(9, peers))
    assert cluster.states == [UP, UP, UP]
    assert cluster.membership.version > 9
    cluster.wait(2.9)
    assert cluster.states == [UP, UP, UP]
    cluster.wait(8)
    assert cluster.states == [DOWN, DOWN, DOWN]


# --- the version ---


def test_version_stays_when_nothing_of_interest_changed(cluster: Cluster) -> None:
    cluster.announce(announce(1, capacity=1000, used=0))
    before = cluster.membership.version
    for used in (1, 25, 49, 0, 49):
        cluster.announce(announce(1, capacity=1000, used=used, chunk_count=used))
    cluster.wait(1)
    assert cluster.membership.version == before
    assert cluster.peers[0].used == 49


def test_version_grows_with_every_twentieth_of_the_capacity_that_is_used_or_freed(
    cluster: Cluster,
) -> None:
    cluster.announce(announce(1, capacity=1000, used=0))
    versions = []
    for used in (49, 50, 99, 100, 900, 851, 850):
        cluster.announce(announce(1, capacity=1000, used=used))
        versions.append(cluster.membership.version)
    first = versions[0]
    assert [version - first for version in versions] == [0, 1, 1, 2, 3, 3, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"is_full": True},
        {"zone": "other"},
        {"boot_id": "other"},
        {"capacity": 1010},
        {"capacity": 990},
        {"capacity": 0},
    ],
)
def test_version_grows_when_a_writer_should_know(
    cluster: Cluster, change: dict[str, object]
) -> None:
    cluster.announce(announce(1, capacity=1000))
    before = cluster.membership.version
    cluster.announce(msgspec.structs.replace(announce(1, capacity=1000), **change))
    assert cluster.membership.version == before + 1


def test_version_grows_with_each_state_and_each_new_peer(cluster: Cluster) -> None:
    versions = [cluster.membership.version]
    for step in (
        lambda: cluster.announce(announce(1)),
        lambda: cluster.wait(3),
        lambda: cluster.wait(7),
        lambda: cluster.announce(announce(1)),
        lambda: cluster.announce(announce(2)),
    ):
        step()
        versions.append(cluster.membership.version)
    assert versions == [1, 2, 3, 4, 5, 6]


def test_capacity_cannot_drift_away_unnoticed(cluster: Cluster) -> None:
    cluster.announce(announce(1, capacity=1000))
    before = cluster.membership.version
    for capacity in range(1000, 1030):
        cluster.announce(announce(1, capacity=capacity))
        assert abs(cluster.peers[0].capacity - capacity) < 0.01 * capacity
    assert cluster.membership.version == before + 2


def test_capacity_of_nothing_at_all_is_no_news_again(cluster: Cluster) -> None:
    cluster.announce(announce(1, capacity=0))
    before = cluster.membership.version
    cluster.announce(announce(1, capacity=0))
    assert cluster.membership.version == before


# --- for people ---


def test_statuses_tell_state_and_silence(cluster: Cluster) -> None:
    cluster.announce(announce(1, used=5, chunk_count=3))
    cluster.wait(4)
    (status,) = cluster.membership.statuses()
    assert (status.id, status.state, status.used, status.chunk_count) == ("peer-1", "suspect", 5, 3)
    assert status.last_seen_s == pytest.approx(4)


def test_changes_of_state_are_logged(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cluster.announce(announce(1))
    cluster.wait(20)
    cluster.announce(announce(1))
    messages = [(record.levelno, record.message) for record in caplog.records]
    assert messages == [
        (logging.INFO, "peer peer-1 is new: number 1 at http://127.0.0.1:24001"),
        (logging.WARNING, "peer peer-1 is down"),
        (logging.INFO, "peer peer-1 is up again after 20.0 s"),
    ]


def test_who_names_a_peer_that_there_is_not_is_told_which_there_are() -> None:
    cluster = Cluster()
    with pytest.raises(MictlanError, match="there are: none") as raised:
        cluster.membership.find("peer-3", "drain")
    assert raised.value.kind is Kind.NOT_FOUND
    for number in range(1, 13):
        cluster.announce(announce(number))
    with pytest.raises(MictlanError, match="there are: peer-1, peer-10, ") as raised:
        cluster.membership.find("peer-99", "drain")
    assert raised.value.detail.count("peer-") == membership.NAMED_COUNT_MAX
