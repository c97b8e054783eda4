"""The table of system calls in docs/semantics.md names every file of their tests, and no other."""

from __future__ import annotations

import re

from tests.docs.generate import ROOT

TITLE = "## System calls and their tests"


def test_the_table_of_system_calls_names_the_files_there_are() -> None:
    page = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
    section = page.partition(f"\n{TITLE}\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(test_\w+\.py)`", section)
    there = {path.name for path in (ROOT / "tests/integration/posix").glob("test_*.py")}
    assert there
    assert set(named) == there
    assert len(named) == len(set(named))
