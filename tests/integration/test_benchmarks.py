"""The benchmarks run and check what they measure; their figures are nobody's business here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import chosen_door_workloads, chosen_workloads, main
from tests.benchmarks.datapath import DATA_WORKLOADS, WORKLOADS
from tests.benchmarks.door import DOOR_WORKLOADS
from tests.benchmarks.profiling import report
from tests.benchmarks.randomio import PAGE_SIZE_BYTES, PATTERN_PAGE, random_pages


# Four file systems and twenty-eight workloads, each file system made cold once; for eleven of them
# the space a second time, with every chunk through the network.
@pytest.mark.fuse
@pytest.mark.timeout(600)
def test_every_workload_runs_on_every_subject(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", *WORKLOADS])
    rates, requests, costs = (p.splitlines() for p in capsys.readouterr().out.split("\n\n"))
    assert len(rates) == len(requests) == 2 + len(WORKLOADS)
    # Five subjects, and the ratios of one to the four others.
    assert all(line.count("|") == 11 for line in rates[1:])
    assert all(line.count("|") == 5 for line in requests[1:])
    assert len(costs) == 2 + len(WORKLOADS) + len(DATA_WORKLOADS)
    assert all(line.count("|") == 8 for line in costs)
    by_pages = [line for line in costs if line.startswith("| pages-")]
    assert len(by_pages) == 6
    assert all(line.endswith(" ms |") and " 0 MiB " not in line for line in by_pages)


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


@pytest.mark.parametrize("has_fio", [True, False])
def test_pages_are_read_and_written_with_fio_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_fio: bool
) -> None:
    if has_fio and shutil.which("fio") is None:
        pytest.skip("needs fio")
    if not has_fio:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    read = random_pages(path, "read", 64, jobs=4)
    assert (read.count, path.read_bytes()) == (64, bytes(1 << 20))
    written = random_pages(path, "write", 20, jobs=1)
    pages = {path.read_bytes()[n : n + PAGE_SIZE_BYTES] for n in range(0, 1 << 20, PAGE_SIZE_BYTES)}
    assert written.count == 20
    assert pages == {bytes(PAGE_SIZE_BYTES), PATTERN_PAGE}
    assert 0 < read.p99_s <= 60
    assert min(read.seconds, written.seconds) > 0


def test_functions_with_most_samples_come_first() -> None:
    lines = report("main;read 30\nmain;read;recv 60\nmain 10\n")
    assert lines == [" 60.0%  60.0%  recv", " 30.0%  90.0%  read", " 10.0% 100.0%  main"]
    assert report("") == []
