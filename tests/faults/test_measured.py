"""That recovery times are taken from what was printed, and kept."""

from pathlib import Path

import pytest

from tests.faults import measured
from tests.faults.killing import FAULTS, Cycle, Report
from tests.faults.measured import Range
from tests.faults.scenarios import PARTITIONS, SCENARIOS
from tests.faults.torture import _tell

DAY = "2026-11-30"


def test_times_are_those_that_torture_prints(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, recovery_s, problems in (("7-1", 2.0, ()), ("7-2", 9.0, ("bad",)), ("7-3", 4.0, ())):
        _tell(Cycle(seed, "router killed", recovery_s, 100, problems))
    print("a peer's disk is full: ok, usable after 0.4 s")
    found = measured.ranges_in(capsys.readouterr().out.splitlines(), DAY)
    assert found == {
        "router killed": Range(2, 2.0, 3.0, 4.0, DAY),
        "a peer's disk is full": Range(1, 0.4, 0.4, 0.4, DAY),
    }
    assert str(found["router killed"]) == "2.0\u20134.0 s, median 3.0 s"
    assert str(found["a peer's disk is full"]) == "0.4 s"


def test_a_run_of_some_faults_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "measured.json"
    monkeypatch.setattr(measured, "PATH", path)
    monkeypatch.setattr(measured.read, "__defaults__", (path,))
    monkeypatch.setattr(measured.write, "__defaults__", (path,))
    for name, text in (("a", "x: ok, usable after 1.0 s"), ("b", "y: ok, usable after 2.0 s")):
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
        measured.main([str(tmp_path / name)])
    assert {fault: one.median_s for fault, one in measured.read().items()} == {"x": 1.0, "y": 2.0}


def test_the_report_says_the_range_of_each_fault() -> None:
    times_s = (5.0, 1.0, 2.0)
    report = Report([Cycle(f"7-{n}", "peer killed", one, 10, ()) for n, one in enumerate(times_s)])
    [_, line] = report.lines()
    assert line.split() == [*["peer", "killed", "3", "0", "30", "1.0", "s", "2.0", "s", "5.0", "s"]]


def test_every_fault_was_measured() -> None:
    names = {fault.name for fault, _ in FAULTS}
    names |= {scenario.name for scenario in (*SCENARIOS, *PARTITIONS)}
    assert measured.read().keys() == names
