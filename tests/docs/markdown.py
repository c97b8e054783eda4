"""Reading our Markdown: headings, links, tables under a marker, console examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} (?P<text>.+)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def prose(text: str) -> str:
    """`text` without its fenced blocks."""
    return _FENCED.sub("", text)


def links(text: str) -> list[str]:
    """The targets of all links."""
    return [match["target"] for match in _LINK.finditer(prose(text))]


def anchors(text: str) -> set[str]:
    """The anchors of the headings: lower case, no punctuation, blanks as dashes."""
    headings = (match["text"] for match in _HEADING.finditer(prose(text)))
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip("\n").replace(" ", "-") for h in headings}


def checked_table(text: str, name: str, mark: str = "checked") -> list[list[str]]:
    """The rows of the table under `<!-- checked: NAME -->` or another mark, without its head."""
    _, marker, rest = text.partition(f"<!-- {mark}: {name} -->\n")
    assert marker, f"no table is marked {name!r}"
    rows: list[list[str]] = []
    for line in rest.splitlines():
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    assert len(rows) > 2, f"the table {name!r} is empty"
    return rows[2:]


@dataclass(frozen=True)
class Example:
    """One console block.

    Attributes:
        heading: what it stands under.
        commands: what is typed, line by line.
        output: all that is shown for it.
    """

    heading: str
    commands: tuple[str, ...]
    output: str


def examples(text: str) -> Iterator[Example]:
    """Every block of commands that begin with `$ `, and their output."""
    for match in _FENCED.finditer(text):
        if match["language"] != "console":
            continue
        before = [found["text"] for found in _HEADING.finditer(text, 0, match.start())]
        lines = match["body"].splitlines()
        commands = tuple(line[2:] for line in lines if line.startswith("$ "))
        shown = "".join(f"{line}\n" for line in lines if not line.startswith("$ "))
        yield Example(before[-1] if before else "", commands, shown)
