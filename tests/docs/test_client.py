"""Every example of docs/client.md, run against a router of the v4 API in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mictlanfs.errors import Kind
from tests.docs.generate import ROOT
from tests.docs.markdown import checked_table
from tests.support.v4router import V4Router
from tests.support.v4server import serving_in_a_thread, uri_of
from tests.support.v4space import V4Space

PAGE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
_PROGRAM = re.compile(
    r"^```python\n(?P<source>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```$)?", re.M | re.S
)


@dataclass(frozen=True)
class Program:
    """A program of the page, and what it prints."""

    source: str
    output: str


PROGRAMS = [Program(m["source"], m["output"] or "") for m in _PROGRAM.finditer(PAGE)]


@pytest.fixture
def router() -> Iterator[V4Router]:
    """A router that answers although the programs block."""
    router = V4Router(V4Space.of(3))
    with serving_in_a_thread(router):
        yield router


def test_the_page_has_programs() -> None:
    assert len(PROGRAMS) == PAGE.count("```python") >= 8


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_prints_what_the_page_says(
    number: int,
    router: V4Router,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    program = PROGRAMS[number]
    known = {"URI": uri_of(router), "HOST": "127.0.0.1", "PORT": router.port}
    exec(compile(program.source, f"program {number} of the page", "exec"), known)
    assert capsys.readouterr().out == program.output


def test_the_page_names_kinds_that_there_are() -> None:
    rows = checked_table(PAGE, "client kinds")
    assert {row[0].strip("`") for row in rows} <= {kind.value for kind in Kind}
