"""The parts of the documents that are made from the code: `python -m tests.docs.generate`.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`. Running this module renews all
of them; `test_documents.py` fails while one is not what this module would write.
"""

from __future__ import annotations

import ast
import errno
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from mictlanfs import clientvariables
from mictlanfs.cli import exits
from mictlanfs.cli.main import COMMANDS, PROGRAM, cli
from mictlanfs.config import MOUNT_OPTIONS
from mictlanfs.environment import Variable
from mictlanfs.errors import ERRNO, RETRYABLE, Kind
from mictlanfs_server import environment as servervariables
from tests.faults import measured
from tests.faults.killing import FAULTS
from tests.faults.scenarios import PARTITIONS, SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mictlanfs", "server/mictlanfs_server", "mount/mictlanfs_mount")
BLOCK = re.compile(
    r"(<!-- generated: (?P<name>[a-z ]+) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL
)


def documents() -> list[Path]:
    """README and every page of `docs/`."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    escaped = ((cell.replace("|", r"\|") for cell in line) for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


# --- the parts -----------------------------------------------------------------------------------


def errors() -> str:
    """Every kind with its errno, and whether a client tries again."""

    def rows() -> Iterator[tuple[str, ...]]:
        for kind in Kind:
            number = ERRNO[kind]
            name = {errno.ENOTSUP: "ENOTSUP"}.get(number, errno.errorcode[number])
            again = "yes" if RETRYABLE[kind] else ""
            yield f"`{kind.value}`", name, os.strerror(number), again

    return table(("kind", "errno", "as programs print it", "tried again"), rows())


def exit_codes() -> str:
    """The table in the docstring of `exits`."""
    doc = exits.__doc__ or ""
    body = doc.split("\n====")[1].split("\n", 1)[1]
    found: list[tuple[str, str]] = []
    for line in body.splitlines():
        code, text = line[:5].strip(), line[5:].strip()
        if code:
            found.append((code, text))
        elif text:
            found[-1] = (found[-1][0], f"{found[-1][1]} {text}")
    return table(("code", "meaning"), iter(found))


def mount_options() -> str:
    """Every option of `-o`."""

    def rows() -> Iterator[tuple[str, ...]]:
        for option in MOUNT_OPTIONS:
            name = f"`{option.name}=`" if option.parse else f"`{option.name}`"
            yield name, option.help, option.default, option.unit

    return table(("option", "does", "default", "unit"), rows())


def variables() -> str:
    """Every variable of the environment: those with effect first, then the others with why not."""
    effective = [*clientvariables.EFFECTIVE, *servervariables.EFFECTIVE]
    ineffective = [
        *clientvariables.INEFFECTIVE,
        *servervariables.ROUTER_INEFFECTIVE,
        *servervariables.ELSEWHERE,
        *servervariables.PEER_INEFFECTIVE,
    ]

    def row(variable: Variable[object]) -> tuple[str, ...]:
        default = f"`{variable.default}`" if variable.default else ""
        text = variable.text if variable.parse else f"none: {variable.text}"
        return f"`{variable.name}`", default, variable.unit, text

    rows = map(row, [*effective, *ineffective])
    return table(("variable", "default", "unit", "effect"), rows)


def commands() -> str:
    """Every command with its arguments, options and help."""
    # With its settings: a command remembers its help option from the first context it meets.
    root = click.Context(cli, info_name=PROGRAM, **cli.context_settings)
    parts = []
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None, name
        parts += list(_described(command, click.Context(command, parent=root, info_name=name)))
    return "\n".join(parts)


def _described(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"### {context.command_path}\n"
    yield f"`{context.command_path} {usage}`\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    records = [
        record
        for parameter in command.params
        # Arguments have no help of their own: the usage and the text name them.
        if isinstance(parameter, click.Option)
        and (record := parameter.get_help_record(context)) is not None
    ]
    if records:
        options = ((f"`{names}`", re.sub(r"\s+", " ", text)) for names, text in records)
        yield table(("option", ""), options)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            assert sub is not None, name
            if not sub.hidden:
                yield from _described(sub, click.Context(sub, parent=context, info_name=name))


def modules() -> str:
    """Every module with the first sentence of its docstring, folder by folder."""
    parts = []
    for package in PACKAGES:
        files = [p for p in (ROOT / package).rglob("*.py") if p.name not in {"__init__.py"}]
        for folder in sorted({path.parent for path in files}):
            rows = (
                (f"`{path.stem}`", _first_line(path))
                for path in sorted(files)
                if path.parent == folder
            )
            parts.append(f"**{folder.relative_to(ROOT)}/**\n\n" + table(("module", ""), rows))
    return "\n".join(parts)


def _first_line(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


def kills() -> str:
    """Every fault of processes, what is promised, and how long it took last."""
    return _recoveries((fault.name, fault.promised) for fault, _ in FAULTS)


def scenarios() -> str:
    """The same of disks, links, data and partitions."""
    return _recoveries((one.name, one.promised) for one in (*SCENARIOS, *PARTITIONS))


def _recoveries(faults: Iterable[tuple[str, str]]) -> str:
    found = measured.read()

    def rows() -> Iterator[tuple[str, ...]]:
        for name, promised in faults:
            last = found[name]
            yield name, promised, str(last), str(last.count), last.day

    return table(("fault", "what is promised", "recovery", "times", "measured"), rows())


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "errno": errors,
    "exits": exit_codes,
    "kills": kills,
    "modules": modules,
    "mount options": mount_options,
    "scenarios": scenarios,
    "variables": variables,
}


def renewed(text: str) -> str:
    """`text` with every generated part as it should be."""

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}{PARTS[match['name']]().rstrip()}\n{match[4]}"

    return BLOCK.sub(part, text)


def main() -> None:
    """Renew every document."""
    for document in documents():
        before = document.read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            document.write_text(after, encoding="utf-8")
            print(f"renewed {document.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
