"""A test that is stuck costs its own time and verdict, not those of others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
STUCK = """
import time
def test_before(): pass
def test_stuck(): time.sleep(100)
def test_after(): pass
"""
BUSY = """
import time, pytest
@pytest.mark.parametrize("number", range(3))
def test_busy(number): time.sleep(0.2)
"""


def test_the_others_are_run_once_and_the_stuck_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 2\ntimeout_method = thread\n")
    (tmp_path / "test_0.py").write_text(STUCK)
    for number in range(1, 4):
        (tmp_path / f"test_{number}.py").write_text(BUSY)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.support.scheduling"),
            *("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "1 failed, 11 passed" in ended.stdout
    assert "crashed while running 'test_0.py::test_stuck'" in ended.stdout
