"""The short form of `make torture`: each kind of victim once, and power cuts at a few places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import powercuts
from tests.faults.killing import FAULTS, Fault, Torture
from tests.faults.stage import Stage, open_stage

SEED = "2026"
# One of each kind: the others differ in how many are hit, and take longer.
SHORT = ("router and peers killed", "mount and servers killed", "workload killed")

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("torture")) as stage:
        yield stage


@pytest.fixture(scope="module")
def torture(stage: Stage) -> Torture:
    return Torture(stage)


@pytest.mark.parametrize("fault", [f for f, _ in FAULTS if f.name in SHORT], ids=lambda f: f.name)
def test_a_kill_costs_nothing_that_was_promised(torture: Torture, fault: Fault) -> None:
    cycle = torture.play(f"{SEED}-{fault.name}", fault)
    assert cycle.problems == ()


@pytest.mark.timeout(400)
def test_what_the_kills_left_is_healed_and_collected(stage: Stage, torture: Torture) -> None:
    cycle = torture.play(f"{SEED}-last")
    assert cycle.problems == ()
    stage.wait_until_whole()


def test_a_power_cut_costs_nothing_that_was_promised(tmp_path: Path) -> None:
    with powercuts.recorded(tmp_path, 2026, 2.0) as recording:
        assert powercuts.unrecorded(recording) == []
        cuts = powercuts.drawn_cuts(recording, 3, 2026)
        states = powercuts.states_after(recording, cuts)
        for number, state in enumerate(states):
            assert powercuts.problems_after(tmp_path / str(number), recording.ports, state) == []
