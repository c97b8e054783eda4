"""The documents agree with the code: generated parts, tables, names, links."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from urllib.parse import unquote

import msgspec
import pytest

from mictlanfs import wire
from mictlanfs.cli.main import COMMANDS
from mictlanfs.config import MOUNT_OPTIONS
from mictlanfs.errors import HTTP_STATUS, Kind
from mictlanfs.model import GIB, KIB, MIB
from tests.demo import STEPS
from tests.docs.generate import BLOCK, PACKAGES, PARTS, ROOT, documents, renewed
from tests.docs.markdown import anchors, checked_table, examples, links

# Where a page would tell of one machine instead of any.
FORBIDDEN = re.compile(r"/work/|/root\b|/tmp/|pypi|pythonhosted", re.IGNORECASE)
ENVIRONMENT = re.compile(r"\"((?:MICTLAN[A-Z]*|XDG)_[A-Z_]+)\"")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", documents(), ids=named)
def test_generated_parts_are_current(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert renewed(text) == text, "renew them: .venv/bin/python -m tests.docs.generate"


@pytest.mark.parametrize("part", PARTS)
def test_every_generated_part_is_on_a_page(part: str) -> None:
    pages = [path for path in documents() if f"<!-- generated: {part} -->" in path.read_text()]
    assert pages


def test_a_part_that_is_not_current_is_seen() -> None:
    text = "<!-- generated: exits -->\n| old |\n<!-- end -->\n"
    assert BLOCK.search(text)
    assert renewed(text) != text
    assert renewed(renewed(text)) == renewed(text)


@pytest.mark.parametrize("document", documents(), ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in links(document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


def test_every_page_is_within_two_hops_of_the_readme() -> None:
    reached = {ROOT / "README.md"}
    for _ in range(2):
        for document in list(reached):
            for link in links(document.read_text(encoding="utf-8")):
                target = (document.parent / link.partition("#")[0]).resolve()
                reached |= set(target.glob("*.md")) if target.is_dir() else {target}
        reached = {path for path in reached if path.suffix == ".md" and path.is_file()}
    changes = set((ROOT / "docs" / "changes").glob("*.md"))
    assert not set(documents()) - reached - changes


@pytest.mark.parametrize("document", documents(), ids=named)
def test_a_page_tells_of_no_particular_machine(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if FORBIDDEN.search(line)]


def test_the_protocol_page_names_every_path() -> None:
    paths = [value for name, value in vars(wire.Path).items() if not name.startswith("_")]
    assert len(paths) > 20
    text = page("docs/protocol.md")
    assert not [path for path in paths if path not in text]


def test_the_protocol_page_names_every_message() -> None:
    messages = [
        name
        for name, kind in vars(wire).items()
        if inspect.isclass(kind)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == wire.__name__
    ]
    assert len(messages) > 40
    text = page("docs/protocol.md")
    assert not [name for name in messages if f"`{name}`" not in text]


def test_the_protocol_page_gives_every_operation_its_tag() -> None:
    text = page("docs/protocol.md")
    for operation in wire.Operation.__args__:
        tag = operation.__struct_config__.tag
        assert f"| `{operation.__name__}` | `{tag}` |" in text


def test_the_protocol_page_gives_every_kind_its_status() -> None:
    found: dict[str, int] = {}
    for kind, status, _, other_kind, other_status in checked_table(
        page("docs/protocol.md"), "kinds and statuses"
    ):
        found[kind.strip("`")] = int(status)
        if other_kind:
            found[other_kind.strip("`")] = int(other_status)
    assert found == {kind.value: HTTP_STATUS[kind] for kind in Kind}


def test_the_semantics_page_names_every_kind() -> None:
    text = page("docs/semantics.md")
    assert not [kind for kind in Kind if f"| `{kind.value}` |" not in text]


def test_the_operations_page_names_every_command_and_mount_option() -> None:
    text = page("docs/operations.md")
    assert not [name for name in COMMANDS if f"### mictlanfs {name}\n" not in text]
    assert not [option.name for option in MOUNT_OPTIONS if f"| `{option.name}" not in text]


def test_every_environment_variable_is_told_and_no_other() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    used = {name for path in sources for name in ENVIRONMENT.findall(path.read_text())}
    assert "MICTLANX_CLIENT_URI" in used
    own = {row[0].strip("`") for row in checked_table(page("README.md"), "environment")}
    assert own <= used
    rows = checked_table(page("docs/configuration.md"), "variables", "generated")
    declared = {row[0].strip("`") for row in rows}
    assert own | {name for name in declared if ENVIRONMENT.fullmatch(f'"{name}"')} == used


def test_every_command_of_the_readme_is_one_of_the_demo_in_its_order() -> None:
    walked = [line for step in STEPS for line in step.command.splitlines()]
    typed = [line for example in examples(page("README.md")) for line in example.commands]
    assert typed
    left = iter(walked)
    assert not [line for line in typed if line not in left], "not in the demo, or not in its order"


# --- constants -----------------------------------------------------------------------------------


def shown(name: str, value: float) -> str:
    """A constant as the table writes it, by the unit in its name."""
    if "_BYTES" in name:
        for unit, text in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if value >= unit and value % unit == 0:
                return f"{int(value // unit)} {text}"
        return f"{value} bytes"
    if name.endswith("_S") or "_S_" in name:
        return f"{value:g} s"
    return f"{value:g}"


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        row[:2]
        for name in ("docs/architecture.md", "docs/mictlanx-v4.md")
        for row in checked_table(page(name), "constants")
    ],
)
def test_constants_have_the_values_that_the_pages_give(constant: str, value: str) -> None:
    module_name, _, name = constant.strip("`").rpartition(".")
    module = importlib.import_module(module_name)
    assert shown(name, getattr(module, name)) == value
