import json

import msgspec
import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.model import GIB
from mictlanfs.wire import MetadataStatus, PeerStatus, SessionStatus, SpaceStatus
from mictlanfs.wirecopies import UpkeepStatus
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run


def peer(number: int, state: str = "up") -> PeerStatus:
    url = f"http://127.0.0.1:{24000 + number}"
    return PeerStatus(f"peer-{number}", url, "", state, 10 * GIB, GIB, 7, state == "full", 61.0)


HEALTHY = SpaceStatus(
    space_id="5f3a",
    router_id="mictlanx-router-0",
    version="0.1.0",
    uptime_s=3700.0,
    is_healthy=True,
    problems=[],
    peers=[peer(2), peer(0), peer(1)],
    sessions=[SessionStatus("/mnt", "host", 1, 0.5)],
    bucket_count=2,
    inode_count=12,
    chunk_count=34,
    under_replicated_count=0,
    lost_count=0,
    tombstone_count=0,
    bytes_logical=5 * GIB,
)


def test_a_healthy_space_is_told_in_ten_lines_and_code_0(cli: Run, space: FakeSpace) -> None:
    space.router.status = HEALTHY
    done = cli("status")
    assert (done.code, done.err) == (0, "")
    lines = done.text.splitlines()
    assert len(lines) <= 10
    assert lines[0].split() == ["healthy", "space", "5f3a"]
    for word in ("mictlanx-router-0 0.1.0", "1 h 1 min", "3 of 3 up", "1 client", "30.0 GiB"):
        assert word in done.text
    for word in ("2 buckets", "34 chunks", "5.0 GiB", "every chunk has all its copies"):
        assert word in done.text
    # Peers in an order that stays.
    assert [line.split()[0] for line in lines if "http://" in line] == [
        "peer-0",
        "peer-1",
        "peer-2",
    ]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (MetadataStatus(), "no copies on peers are made"),
        (MetadataStatus(interval_s=300), "no copy on the peers yet"),
        (
            MetadataStatus(300, 1.8e9, 65, is_current=True, peers=["a", "b"]),
            "copied to 2 peers 1 min 5 s ago, 2027-01-15",
        ),
        (MetadataStatus(300, 1.8e9, 65), "copied to peers 1 min 5 s ago"),
    ],
)
def test_copies_of_the_metadata_are_told(
    cli: Run, space: FakeSpace, metadata: MetadataStatus, words: str
) -> None:
    space.router.status = msgspec.structs.replace(HEALTHY, metadata=metadata)
    (line,) = [text for text in cli("status").text.splitlines() if text.startswith("metadata")]
    assert words in line
    assert ("nothing changed since" in line) == metadata.is_current


def test_chunks_in_the_metadata_are_counted(cli: Run, space: FakeSpace) -> None:
    space.router.status = msgspec.structs.replace(HEALTHY, inline_count=7)
    line = "every chunk has all its copies; 7 small chunks in the metadata"
    assert line in cli("status").text


def test_a_degraded_space_says_why_and_code_1(cli: Run, space: FakeSpace) -> None:
    space.router.status = msgspec.structs.replace(
        HEALTHY,
        is_healthy=False,
        problems=["peer-1 is down", "5 chunks have too few copies"],
        peers=[peer(0), peer(1, "down"), peer(2, "full")],
        under_replicated_count=5,
        lost_count=1,
    )
    done = cli("status")
    assert done.code == Exit.FAILED
    assert done.text.startswith("DEGRADED")
    assert "down" in done.text
    assert "last seen 1 min 1 s ago" in done.text
    assert "5 chunks with too few, 1 chunk without any that can be reached" in done.text
    assert done.text.count("problem ") == 2


@pytest.mark.parametrize("is_healthy", [True, False])
def test_json_is_the_whole_status_and_the_code_the_same(
    cli: Run, space: FakeSpace, is_healthy: bool
) -> None:
    space.router.status = msgspec.structs.replace(HEALTHY, is_healthy=is_healthy)
    done = cli("status", "--json")
    assert done.code == (0 if is_healthy else 1)
    assert json.loads(done.text) == msgspec.to_builtins(space.router.status)


def test_a_space_without_peers_can_be_shown(cli: Run, space: FakeSpace) -> None:
    space.router.status = msgspec.structs.replace(HEALTHY, peers=[], is_healthy=False)
    assert "0 of 0 up" in cli("status").text


def test_a_space_that_is_gone_has_its_code(cli: Run, space: FakeSpace) -> None:
    space.net.servers.clear()
    done = cli("status", "--timeout", "0")
    assert done.code == Exit.UNREACHABLE


def test_what_is_done_about_copies_is_told(cli: Run, space: FakeSpace) -> None:
    upkeep = UpkeepStatus(
        short_count=3,
        short_bytes=GIB,
        orders={"rebalance": 0.25},
        draining={"peer-0": 5, "peer-1": 0},
        waiting_peers={"peer-2": 90.0},
        problem="peer-1: no-space",
    )
    space.router.status = msgspec.structs.replace(HEALTHY, upkeep=upkeep)
    [line] = [line for line in cli("status").text.splitlines() if line.startswith("upkeep")]
    assert line.removeprefix("upkeep").strip() == (
        "3 chunks to copy, 1.0 GiB; rebalance: 25%; peer-0: 5 left to move; peer-1 is empty; "
        "peer-2 is copied elsewhere in 1 min 30 s; peer-1: no-space"
    )
    space.router.status = HEALTHY
    assert "upkeep" not in cli("status").text


def test_extra_copies_are_told(cli: Run, space: FakeSpace) -> None:
    upkeep = UpkeepStatus(popular_count=2, extra_count=3, extra_bytes=GIB)
    space.router.status = msgspec.structs.replace(HEALTHY, upkeep=upkeep)
    assert "3 extra copies of 2 chunks that are read often, 1.0 GiB" in cli("status").text
