import json

import msgspec
import pytest

from mictlanfs.cli import following
from mictlanfs.cli.exits import Exit
from mictlanfs.wire import SpaceStatus
from mictlanfs.wirecopies import ClonePeer, DrainPeer, RemovePeer, UpkeepStatus
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run
from tests.unit.mictlanfs.cli.test_status import HEALTHY, peer

DRAINED = msgspec.structs.replace(peer(1), is_draining=True)
STATUS = msgspec.structs.replace(
    HEALTHY,
    peers=[peer(2, "down"), peer(0), DRAINED],
    upkeep=UpkeepStatus(waiting_peers={"peer-2": 75.0}, draining={"peer-1": 4}),
)


def test_peers_are_listed_with_what_is_going_on(cli: Run, space: FakeSpace) -> None:
    space.router.status = STATUS
    lines = cli("peer", "ls").text.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["peer-0", "up"],
        ["peer-1", "draining"],
        ["peer-2", "down"],
    ]
    assert "4 left to move" in lines[1]
    assert "copied elsewhere in 1 min 15 s" in lines[2]
    listed = json.loads(cli("peer", "ls", "--json").text)
    assert [entry["left_to_drain"] for entry in listed] == [None, 4, None]
    assert [entry["copies_elsewhere_in_s"] for entry in listed] == [None, None, 75.0]


def draining(left: int | None, *, is_draining: bool = True) -> SpaceStatus:
    counts = {} if left is None else {"peer-0": left}
    peers = [msgspec.structs.replace(peer(0), is_draining=is_draining)]
    return msgspec.structs.replace(HEALTHY, peers=peers, upkeep=UpkeepStatus(draining=counts))


def test_drain_waits_until_the_peer_is_empty(cli: Run, space: FakeSpace) -> None:
    space.router.status = draining(0)
    assert cli("peer", "drain", "peer-0").text == "peer-0 is empty\n"
    assert cli("peer", "drain", "peer-0", "--undo").text == "peer-0 is in use again\n"
    assert "7 chunks to move" in cli("peer", "drain", "peer-0", "--no-wait").text
    told = json.loads(cli("peer", "drain", "peer-0", "--json").text)
    assert told == {"chunk_count": 7, "other_count": 2}
    assert space.router.upkeep[:2] == [DrainPeer("peer-0"), DrainPeer("peer-0", False)]


def test_a_router_that_does_not_know_yet_has_not_emptied_a_peer(
    cli: Run, space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL_S", 0.0)
    space.router.statuses = [draining(None), draining(8), draining(3), draining(0)]
    assert cli("peer", "drain", "peer-0").text == "peer-0 is empty\n"
    assert space.router.statuses == []


def test_a_peer_that_is_used_again_is_not_called_empty(
    cli: Run, space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL_S", 0.0)
    space.router.statuses = [draining(3), draining(None, is_draining=False)]
    done = cli("peer", "drain", "peer-0")
    assert (done.code, done.text) == (Exit.CONFLICT, "")
    assert "may not be empty" in done.err


def test_removal_that_loses_chunks_must_be_forced(cli: Run, space: FakeSpace) -> None:
    refused = cli("peer", "rm", "peer-0")
    assert refused.code == Exit.CONFLICT
    assert "only copy" in refused.err
    done = cli("peer", "rm", "peer-0", "--force-lost")
    assert (done.code, done.text) == (0, "peer-0 is removed; 3 chunks lost\n")
    assert json.loads(cli("peer", "rm", "p", "--force-lost", "--json").text) == {"lost_count": 3}
    assert space.router.upkeep[0] == RemovePeer("peer-0")


def test_too_few_peers_can_be_forced(cli: Run, space: FakeSpace) -> None:
    cli("peer", "drain", "peer-0", "--force", "--no-wait")
    cli("peer", "rm", "peer-0", "--force")
    assert DrainPeer("peer-0", force=True) in space.router.upkeep
    assert RemovePeer("peer-0", force=True) in space.router.upkeep


def test_clone_waits_for_its_end(cli: Run, space: FakeSpace) -> None:
    space.router.status = HEALTHY
    done = cli("peer", "clone", "peer-0", "peer-1")
    assert done.text == "peer-1 has all chunks of peer-0 (0 chunks copied)\n"
    assert cli("peer", "clone", "peer-0", "peer-1", "--no-wait").text == ""
    assert json.loads(cli("peer", "clone", "a", "b", "--json").text) == {"copied_count": 0}
    assert space.router.upkeep[0] == ClonePeer("peer-0", "peer-1")
