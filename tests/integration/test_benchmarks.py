"""The benchmarks run and check what they measure; their figures are nobody's business here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import chosen_door_workloads, chosen_workloads, main
from tests.benchmarks.door import DOOR_WORKLOADS
from tests.benchmarks.trees import WORKLOADS


# Four file systems, twenty-two workloads, and what each needs to be cold.
@pytest.mark.fuse
@pytest.mark.timeout(600)
def test_every_workload_runs_on_every_subject(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", *WORKLOADS])
    rates, requests = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert len(rates) == len(requests) == 2 + len(WORKLOADS)
    # Four subjects, and the ratios of one to the three others.
    assert all(line.count("|") == 9 for line in rates[1:])
    assert all(line.count("|") == 5 for line in requests[1:])


@pytest.mark.timeout(300)
def test_every_workload_of_the_v4_door_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["--quick", "--json", str(tmp_path / "figures"), *DOOR_WORKLOADS])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(DOOR_WORKLOADS)
    assert all(line.count("|") == 7 for line in table)
    figures = json.loads((tmp_path / "figures").read_text())
    assert list(figures) == list(DOOR_WORKLOADS)
    for (cost,) in figures.values():
        assert cost["count"] == 20
        assert cost["seconds"] > 0
        # Processors are counted in steps of 10 ms.
        assert cost["client_s"] > 0


def test_what_a_workload_needs_comes_before_it() -> None:
    assert [found.name for found in chosen_workloads(["random-read"])] == [
        "stream-write",
        "random-read",
    ]


def test_workloads_of_one_kind_do_not_bring_those_of_the_other() -> None:
    assert chosen_workloads(["v4-get"]) == []
    assert [found.name for found in chosen_door_workloads(["v4-get"])] == ["v4-put", "v4-get"]
    assert chosen_door_workloads(["stat"]) == []
    assert len(chosen_door_workloads([])) == len(DOOR_WORKLOADS)


def test_unknown_workload_is_named() -> None:
    with pytest.raises(SystemExit, match="no workload nothing"):
        chosen_workloads(["nothing"])
