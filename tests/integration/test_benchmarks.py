"""The benchmarks run and check what they measure; their figures are nobody's business here."""

from __future__ import annotations

import pytest

from tests.benchmarks.__main__ import chosen_workloads, main
from tests.benchmarks.workloads import WORKLOADS

pytestmark = pytest.mark.fuse


def test_every_workload_runs_on_every_subject(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rounds", "1", "--scale", "0.02"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(WORKLOADS)
    assert all(line.count("|") == 7 for line in lines[1:])


def test_what_a_workload_needs_comes_before_it() -> None:
    assert [found.name for found in chosen_workloads(["random-read"])] == [
        "stream-write",
        "random-read",
    ]


def test_unknown_workload_is_named() -> None:
    with pytest.raises(SystemExit, match="no workload nothing"):
        chosen_workloads(["nothing"])
