"""The import rules and size limits of the project, checked on the source itself.

Every failure lists the offenders. `docs/architecture.md` tells why the lines are drawn as they are.
"""

import ast
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Package name -> folder, from the root.
PACKAGES = {
    "mictlanfs": "mictlanfs",
    "mictlanfs_server": "server/mictlanfs_server",
    "mictlanfs_mount": "mount/mictlanfs_mount",
}
MODULE_LINES_MAX = 800
FUNCTION_LINES_MAX = 70

METADATA_HOMES = [
    "server/mictlanfs_server/metadata/*",
    "server/mictlanfs_server/peer/index.py",
    "server/mictlanfs_server/peer/salvaging.py",
]
WEB_HOMES = [
    "server/mictlanfs_server/http.py",
    "server/mictlanfs_server/serving.py",
    "*/app.py",
    "server/mictlanfs_server/router/front.py",
    "server/mictlanfs_server/framework.py",
    "*/described.py",
    "server/mictlanfs_server/v4/describing.py",
    "server/mictlanfs_server/v4/entry.py",
    "server/mictlanfs_server/v4/web.py",
    "server/mictlanfs_server/v4/endpoints.py",
    "server/mictlanfs_server/v4/routerapp.py",
    "server/mictlanfs_server/v4/peerapp.py",
]
# The only files that may import a library. A `*` also crosses folders.
LIBRARY_HOMES = {
    "pyfuse3": [
        "mount/mictlanfs_mount/attaching.py",
        "mount/mictlanfs_mount/session.py",
        "mount/mictlanfs_mount/operations.py",
        "mount/mictlanfs_mount/attributes.py",
        "mount/mictlanfs_mount/requestloop.py",
    ],
    "httpx": ["mictlanfs/client/leanhttpx.py"],
    "mictlanfs.client.leanhttpx": [
        "mictlanfs/client/transport.py",
        "mictlanfs/client/bulk.py",
        "mictlanfs/client/chunkedcoding.py",
    ],
    "sqlite3": METADATA_HOMES,
    "sqlite_utils": METADATA_HOMES,
    "fastapi": WEB_HOMES,
    "starlette": WEB_HOMES,
    "uvicorn": WEB_HOMES,
    "prometheus_client": ["server/mictlanfs_server/processmetrics.py"],
    "opentelemetry": ["server/mictlanfs_server/tracing.py"],
    "dotenv": ["mictlanfs/environment.py"],
    "zstandard": ["server/mictlanfs_server/metasnapshots/form.py"],
    "python_multipart": ["server/mictlanfs_server/v4/multipart.py"],
}

# The layers of the mount, highest first. Parts on one line may import each other; parts that are
# not named here belong to no layer.
MOUNT_LAYERS = [
    {"session"},
    {"operations"},
    {"filesystem"},
    {"handles", "inodes", "readahead", "writeback"},
    {"chunkcache"},
]

POSTPONING_WORDS = re.compile(r"\b(TODO|FIXME|XXX)\b")
COMMENT_LEADER = re.compile(r"#|--|//|/\*")
# Files other than Python that have comments.
COMMENTED_FILES = [
    *("Makefile", "pyproject.toml", ".gitignore", ".ci/*"),
    *("mictlanfs/**/*.sql", "server/**/*.sql", "mount/**/*.sql"),
]


# What the client of the v4 API may use of the client library: nothing that knows our own protocol.
V4_MAY_USE = {
    f"mictlanfs.client.{name}" for name in ("bulk", "newfile", "pipeline", "retry", "transport")
}


@dataclass(frozen=True)
class Module:
    """One Python file: its path from the root and, inside the three packages, its dotted name."""

    path: str
    name: str

    @property
    def is_package(self) -> bool:
        return self.path.endswith("/__init__.py")


@cache
def text_of(module: Module) -> str:
    return (ROOT / module.path).read_text(encoding="utf-8")


@cache
def tree_of(module: Module) -> ast.Module:
    return ast.parse(text_of(module), module.path)


@dataclass(frozen=True)
class Import:
    """One imported name in absolute form, such as `mictlanfs.wire`, and the line it stands on."""

    target: str
    line: int

    def is_within(self, package: str) -> bool:
        return self.target == package or self.target.startswith(package + ".")


def modules_in(folder: str, package: str) -> Iterator[Module]:
    """All modules below `folder`, which holds `package`."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        parts = [package, *file.relative_to(ROOT / folder).with_suffix("").parts]
        name = ".".join(parts).removesuffix(".__init__")
        yield Module(str(file.relative_to(ROOT)), name)


@cache
def package_modules() -> list[Module]:
    return [module for name, folder in PACKAGES.items() for module in modules_in(folder, name)]


@cache
def all_modules() -> list[Module]:
    return [*package_modules(), *modules_in("tests", "tests")]


def modules_of(package: str) -> list[Module]:
    return [m for m in package_modules() if m.name.split(".")[0] == package]


def imports_of(tree: ast.Module, name: str, *, is_package: bool) -> Iterator[Import]:
    """Every import of a module called `name`, wherever it stands, for type checkers only or not.

    `from a import b` gives `a` and `a.b`, since `b` may be a module. Import by a function counts
    when the name is written out.
    """
    parent = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, node.lineno) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = parent[: len(parent) - level + 1] if level else []
                base = ".".join([*above, *([module] if module else [])])
                yield Import(base, node.lineno)
                yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(target)), *_],
            ):
                yield Import(target, node.lineno)


@cache
def imports_in(module: Module) -> list[Import]:
    return list(imports_of(tree_of(module), module.name, is_package=module.is_package))


def imports_from(package: str, forbidden: str) -> list[str]:
    """Where modules of `package` import anything of `forbidden`."""
    return sorted(
        {
            f"{module.path}:{found.line} imports {forbidden}"
            for module in modules_of(package)
            for found in imports_in(module)
            if found.is_within(forbidden)
        }
    )


def listed(offenders: list[str]) -> str:
    return "\n" + "\n".join(offenders)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_found_by_these_tests(package: str) -> None:
    assert modules_of(package), f"no module in {PACKAGES[package]}: the rules below check nothing"


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("mictlanfs", "mictlanfs_server"),
        ("mictlanfs", "mictlanfs_mount"),
        ("mictlanfs_server", "mictlanfs_mount"),
        ("mictlanfs_mount", "mictlanfs_server"),
    ],
)
def test_server_and_mount_know_the_core_but_not_the_reverse_nor_each_other(
    package: str, forbidden: str
) -> None:
    offenders = imports_from(package, forbidden)
    assert not offenders, listed(offenders)


@pytest.mark.parametrize("library", LIBRARY_HOMES)
def test_each_library_is_imported_only_behind_its_boundary(library: str) -> None:
    homes = LIBRARY_HOMES[library]
    offenders = [
        line
        for package in PACKAGES
        for line in imports_from(package, library)
        if not any(fnmatchcase(line.split(":")[0], home) for home in homes)
    ]
    assert not offenders, listed(offenders)


def test_the_client_of_the_v4_api_knows_nothing_of_our_own_protocol() -> None:
    ours = {module.name for module in modules_of("mictlanfs")}
    offenders = [
        f"{module.path}:{found.line} imports {found.target}"
        for module in modules_of("mictlanfs")
        if module.name.startswith("mictlanfs.v4.")
        for found in imports_in(module)
        if found.is_within("mictlanfs.wire")
        or (found.is_within("mictlanfs.client") and found.target in ours - V4_MAY_USE)
    ]
    assert not offenders, listed(offenders)


def mount_parts() -> dict[str, set[str]]:
    """Each module or folder at the top of the mount package -> those that it imports."""
    parts: dict[str, set[str]] = {}
    for module in modules_of("mictlanfs_mount"):
        imported = parts.setdefault(part_of(module.name), set())
        imported |= {part_of(found.target) for found in imports_in(module)}
    return {part: imported & parts.keys() - {part, ""} for part, imported in parts.items()}


def part_of(name: str) -> str:
    """`readahead` for `mictlanfs_mount.readahead.window`, the empty string for all else."""
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "mictlanfs_mount" else ""


def unlayered_paths(part: str, parts: dict[str, set[str]], layered: set[str]) -> list[list[str]]:
    """Ways by which `part` imports a layered part, directly or through parts of no layer."""
    paths: list[list[str]] = []
    open_paths, seen = [[part]], {part}
    while open_paths:
        path = open_paths.pop()
        for following in sorted(parts.get(path[-1], set()) - seen):
            seen.add(following)
            (paths if following in layered else open_paths).append([*path, following])
    return paths


def test_lower_layers_of_the_mount_never_reach_higher_ones() -> None:
    height = {part: -index for index, layer in enumerate(MOUNT_LAYERS) for part in layer}
    parts = mount_parts()
    offenders = [
        " imports ".join(path)
        for part in sorted(height.keys() & parts.keys())
        for path in unlayered_paths(part, parts, set(height))
        if height[path[-1]] > height[part]
    ]
    assert not offenders, listed(offenders)


def test_no_module_is_too_long_to_read_in_one_go() -> None:
    lengths = {module.path: text_of(module).count("\n") for module in all_modules()}
    offenders = [f"{path}: {n} lines" for path, n in lengths.items() if n > MODULE_LINES_MAX]
    assert not offenders, listed([f"at most {MODULE_LINES_MAX} lines are allowed", *offenders])


def test_no_function_is_too_long_to_see_at_once() -> None:
    offenders = []
    for module in all_modules():
        for node in ast.walk(tree_of(module)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                offenders.append(f"{module.path}:{node.lineno} {node.name}: {length} lines")
    assert not offenders, listed([f"at most {FUNCTION_LINES_MAX} lines are allowed", *offenders])


def python_comments(path: Path) -> Iterator[tuple[int, str]]:
    with tokenize.open(path) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def other_comments(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if leader := COMMENT_LEADER.search(line):
            yield number, line[leader.start() :]


def test_no_comment_puts_work_off() -> None:
    comments = [(m.path, list(python_comments(ROOT / m.path))) for m in all_modules()]
    others = [path for pattern in COMMENTED_FILES for path in sorted(ROOT.glob(pattern))]
    comments += [(str(path.relative_to(ROOT)), list(other_comments(path))) for path in others]
    offenders = [
        f"{path}:{line} {comment}"
        for path, found in comments
        for line, comment in found
        if POSTPONING_WORDS.search(comment)
    ]
    assert not offenders, listed(offenders)


def test_every_module_says_what_it_owns() -> None:
    offenders = [m.path for m in package_modules() if not ast.get_docstring(tree_of(m))]
    assert not offenders, listed(["modules without a docstring:", *offenders])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("import a.b", "a.b"),
        ("def f():\n    import a", "a"),
        ("from a import b", "a.b"),
        ("from . import b", "p.q.b"),
        ("from .b import c", "p.q.b"),
        ("from ..b import c", "p.b.c"),
        ("import importlib\nimportlib.import_module('a.b')", "a.b"),
    ],
)
def test_imports_are_seen_in_every_form(source: str, target: str) -> None:
    seen = {found.target for found in imports_of(ast.parse(source), "p.q.r", is_package=False)}
    assert target in seen


def test_a_package_imports_relative_to_itself() -> None:
    seen = {
        found.target for found in imports_of(ast.parse("from . import b"), "p", is_package=True)
    }
    assert "p.b" in seen


def test_a_detour_through_a_part_of_no_layer_is_seen() -> None:
    parts = {"inodes": {"names"}, "names": {"session"}, "session": set[str]()}
    assert unlayered_paths("inodes", parts, {"inodes", "session"}) == [
        ["inodes", "names", "session"]
    ]
