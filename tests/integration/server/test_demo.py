"""The tour of the README works, and leaves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo import STEPS

DEMO = Path(__file__).resolve().parents[2] / "demo.py"

pytestmark = pytest.mark.fuse


def test_the_tour_walks_to_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, DEMO],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    positions = [done.stdout.index(f"# {step.title}\n$ ") for step in STEPS]
    assert positions == sorted(positions)
    for expected in ("MictlanFS is up.", "buy film", "the same", "still the same", "healthy"):
        assert expected in done.stdout
    assert "stopped; the data stays in" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_ends_the_tour_and_everything_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import demo

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(demo, "STEPS", (STEPS[0], demo.Step("fail", "pwd; ls; exit 7"), STEPS[1]))
    assert demo.main() == 7
    said = capsys.readouterr()
    assert "this failed with status 7" in said.err
    assert STEPS[1].title not in said.out
    assert list(tmp_path.iterdir()) == []
