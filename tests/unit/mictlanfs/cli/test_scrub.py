from mictlanfs.cli.scrub import lines
from mictlanfs.model import KIB, PeerInfo, PeerNumber, PeerState
from mictlanfs.wireverify import ScrubState


def peer(name: str) -> PeerInfo:
    return PeerInfo(PeerNumber(1), name, "http://127.0.0.1:1", "", 1, 0, PeerState.UP)


def test_each_peer_has_a_line() -> None:
    running = ScrubState(
        passes=1,
        is_running=True,
        checked_count=2,
        checked_bytes=3 * KIB,
        bad_count=1,
        started_ns=5,
        quarantined_bytes=KIB,
    )
    assert list(lines([(peer("a"), running), (peer("long"), ScrubState())])) == [
        "a     reading: 2 chunks, 3.0 KiB, 1 bad; 1 pass before; 1.0 KiB kept aside",
        "long  never read yet: 0 chunks, 0 B, 0 bad; 0 passes before; 0 B kept aside",
    ]


def test_a_space_without_a_peer_is_told_of() -> None:
    assert list(lines([])) == ["no peer is up"]
