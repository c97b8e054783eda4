"""The benchmarks run and check what they measure; their figures are nobody's business here."""

from __future__ import annotations

import pytest

from tests.benchmarks.__main__ import chosen_workloads, main
from tests.benchmarks.trees import WORKLOADS

pytestmark = pytest.mark.fuse


# Four file systems, nineteen workloads, and what each needs to be cold.
@pytest.mark.timeout(600)
def test_every_workload_runs_on_every_subject(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick"])
    rates, requests = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert len(rates) == len(requests) == 2 + len(WORKLOADS)
    # Four subjects, and the ratios of one to the three others.
    assert all(line.count("|") == 9 for line in rates[1:])
    assert all(line.count("|") == 5 for line in requests[1:])


def test_what_a_workload_needs_comes_before_it() -> None:
    assert [found.name for found in chosen_workloads(["random-read"])] == [
        "stream-write",
        "random-read",
    ]


def test_unknown_workload_is_named() -> None:
    with pytest.raises(SystemExit, match="no workload nothing"):
        chosen_workloads(["nothing"])
