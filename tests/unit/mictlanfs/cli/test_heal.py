import json

import msgspec
import pytest

from mictlanfs.cli import following
from mictlanfs.cli.exits import Exit
from mictlanfs.wire import SpaceStatus
from mictlanfs.wirecopies import StartUpkeep, UpkeepStatus
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run
from tests.unit.mictlanfs.cli.test_status import HEALTHY


def status(**upkeep: object) -> SpaceStatus:
    return msgspec.structs.replace(
        HEALTHY, upkeep=msgspec.convert({"look_count": 1, **upkeep}, UpkeepStatus)
    )


def test_nothing_to_heal_is_success(cli: Run, space: FakeSpace) -> None:
    space.router.status = status()
    done = cli("heal")
    assert (done.code, done.text) == (0, "nothing is left to heal\n")
    assert space.router.upkeep == [StartUpkeep()]
    assert json.loads(cli("heal", "--json").text)["look_count"] == 1
    space.router.status = status(waiting_peers={"peer-1": 60.0})
    assert cli("heal").text == "nothing to heal; waiting for peer-1\n"


def test_what_is_left_is_told_and_fails(cli: Run, space: FakeSpace) -> None:
    space.router.status = status(short_count=3, unhealable_count=1, problem="peer-1: no-space")
    done = cli("heal")
    assert done.code == Exit.FAILED
    for words in ("3 chunks with too few", "1 chunk without a copy", "no-space"):
        assert words in done.text
    assert cli("heal", "--no-wait").code == 0


def test_it_waits_for_a_look_that_began_after_it_asked(
    cli: Run, space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL_S", 0.0)
    space.router.statuses = [
        status(look_count=0, short_count=4, problem="peer-1 is slow"),
        status(look_count=0, short_count=2, problem="peer-1 is slow"),
        status(),
    ]
    done = cli("heal")
    assert (done.code, done.text) == (0, "nothing is left to heal\n")
    # Once, however often it is told.
    assert done.err.count("peer-1 is slow") == 1


def test_it_asks_a_router_that_was_started_again_anew(
    cli: Run, space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL_S", 0.0)
    space.router.looks = [8, 1]
    space.router.statuses = [status(look_count=7, short_count=4), status(look_count=0), status()]
    assert cli("heal").text == "nothing is left to heal\n"
    assert space.router.upkeep == [StartUpkeep(), StartUpkeep()]
