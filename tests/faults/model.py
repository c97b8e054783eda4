"""What a folder may look like, given the journal of the one workload that changed it.

Names change in order: after a crash the folder is as after some step, none before the last one that
was promised. The content of a file is what was promised, and of each write after that anything or
nothing: a byte has the value of one of the steps since. See docs/semantics.md, "When data is safe".
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tests.faults.journal import ASKS_ROUTER, CONTENTS, NAMES, SYNCS, Step, body

PAGE_SIZE_BYTES = 4096


class Promise(Enum):
    """What holds after a fault."""

    SYNCED = "what was fsynced is there"
    COMMITTED = "and what the router was asked for"
    ALL = "and everything else that was done"


@dataclass(eq=False)
class FileNode:
    """A file: the steps that changed its content, and its content after all of them."""

    steps: list[Step] = field(default_factory=list)
    synced: int = -1
    content: bytearray = field(default_factory=bytearray)

    def apply(self, step: Step) -> None:
        apply_content(self.content, step)
        self.steps.append(step)


@dataclass(eq=False)
class FolderNode:
    """A folder."""


@dataclass(eq=False)
class SymlinkNode:
    """A symlink."""

    target: str


Node = FileNode | FolderNode | SymlinkNode
Names = dict[str, Node]


def apply_content(content: bytearray, step: Step) -> None:
    """Change bytes as a step does."""
    if step.verb == "truncate":
        del content[step.offset :]
        content.extend(bytes(step.offset - len(content)))
        return
    end = step.offset + step.length
    content.extend(bytes(max(0, end - len(content))))
    content[step.offset : end] = body(step.seed, step.length)


class Tree:
    """The names of a workload's folder and what they stand for, as steps are applied in order."""

    def __init__(self) -> None:
        self.names: Names = {}

    def apply(self, step: Step) -> None:
        """Apply a step that was done, or may have been."""
        match step.verb:
            case "create":
                self.names[step.path] = FileNode()
            case "mkdir":
                self.names[step.path] = FolderNode()
            case "symlink":
                self.names[step.path] = SymlinkNode(step.target)
            case "unlink" | "rmdir":
                del self.names[step.path]
            case "link":
                self.names[step.target] = self.names[step.path]
            case "rename":
                self._rename(step.path, step.target)
            case _ if step.verb in CONTENTS:
                self.file(step.path).apply(step)

    def file(self, path: str) -> FileNode:
        node = self.names[path]
        assert isinstance(node, FileNode)
        return node

    def _rename(self, path: str, target: str) -> None:
        moved = {
            target + name[len(path) :]: node
            for name, node in self.names.items()
            if name == path or name.startswith(f"{path}/")
        }
        for name in [name for name in self.names if name == path or name.startswith(f"{path}/")]:
            del self.names[name]
        self.names.update(moved)


class Expected:
    """Every state that a folder may be in, given the steps that were done or begun in it."""

    def __init__(self, steps: Sequence[Step], promise: Promise) -> None:
        self._promise = promise
        tree = Tree()
        # Names after each step from the last one that is sure.
        self.candidates: list[Names] = [{}]
        for step in steps:
            if step.ended_ns and step.error:
                # It may be applied all the same, now or later; workloads stop after it.
                assert step is steps[-1], f"a workload went on after {step}"
            tree.apply(step)
            if step.verb in SYNCS and step.verb != "sql" and step.is_done:
                node = tree.file(step.path)
                node.synced = len(node.steps)
            if self._makes_names_sure(step):
                self.candidates = [dict(tree.names)]
            elif step.verb in NAMES:
                self.candidates.append(dict(tree.names))

    def _makes_names_sure(self, step: Step) -> bool:
        if not step.is_done:
            return False
        if self._promise is Promise.ALL or step.verb in SYNCS:
            return True
        return self._promise is Promise.COMMITTED and step.verb in ASKS_ROUTER

    def difference(self, actual: Names) -> str | None:
        """Why a folder is in none of the states; None when it is in one."""
        told = ""
        for names in reversed(self.candidates):
            reason = self._difference(names, actual)
            if reason is None:
                return None
            # The newest state is the most likely one to say something of.
            told = told or reason
        return f"{told} (and {len(self.candidates) - 1} older states do not fit either)"

    def _difference(self, names: Names, actual: Names) -> str | None:
        if missing := sorted(names.keys() - actual.keys()):
            return f"missing: {missing}"
        if foreign := sorted(actual.keys() - names.keys()):
            return f"should not be there: {foreign}"
        for name, node in names.items():
            found = actual[name]
            if type(node) is not type(found):
                return f"{name} is a {type(found).__name__}, not a {type(node).__name__}"
            if isinstance(node, SymlinkNode) and isinstance(found, SymlinkNode):
                if node.target != found.target:
                    return f"{name} leads to {found.target}, not to {node.target}"
            elif isinstance(node, FileNode) and isinstance(found, FileNode):
                reason = self._content_difference(node, bytes(found.content))
                if reason is not None:
                    return f"{name}: {reason}"
        return None

    def _content_difference(self, node: FileNode, actual: bytes) -> str | None:
        sure = self._sure_count(node)
        base = bytearray()
        for step in node.steps[:sure]:
            apply_content(base, step)
        return content_difference(actual, bytes(base), node.steps[sure:])

    def _sure_count(self, node: FileNode) -> int:
        """How many of the steps of a file must be there."""
        if self._promise is Promise.ALL:
            return sum(step.is_done for step in node.steps)
        sure = max(node.synced, 0)
        if self._promise is Promise.COMMITTED:
            for index, step in enumerate(node.steps):
                if step.verb in ASKS_ROUTER and step.is_done:
                    sure = max(sure, index + 1)
        return sure


def content_difference(actual: bytes, base: bytes, later: Sequence[Step]) -> str | None:
    """Why `actual` is not `base` with any parts of the `later` steps; None when it is."""
    states = [bytearray(base)]
    for step in later:
        state = bytearray(states[-1])
        apply_content(state, step)
        states.append(state)
    if any(actual == state for state in states):
        return None
    sizes = [len(state) for state in states]
    if not min(sizes) <= len(actual) <= max(sizes):
        return f"{len(actual)} bytes, not between {min(sizes)} and {max(sizes)}"
    for start, end in _segments(actual, base, later):
        piece = actual[start:end]
        allowed = _allowed(base, later, start, end)
        if piece not in allowed and not _is_mixed(piece, allowed):
            return f"bytes [{start}, {end}) of {len(actual)} are of no step since the last promise"
    return None


def _segments(actual: bytes, base: bytes, later: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """Ranges in which every step changes all bytes or none, of a page at most."""
    edges = {0, len(actual), len(base), *range(0, len(actual), PAGE_SIZE_BYTES)}
    for step in later:
        edges |= {step.offset, step.offset + step.length}
    inside = sorted(edge for edge in edges if edge <= len(actual))
    return itertools.pairwise(inside)


def _allowed(base: bytes, later: Sequence[Step], start: int, end: int) -> set[bytes]:
    size = end - start
    zeros = bytes(size)
    allowed = {base[start:end] if end <= len(base) else zeros}
    for step in later:
        if step.verb == "truncate":
            if step.offset <= start:
                allowed.add(zeros)
        elif step.offset <= start and end <= step.offset + step.length:
            allowed.add(body(step.seed, step.length)[start - step.offset : end - step.offset])
    return allowed


def _is_mixed(piece: bytes, allowed: set[bytes]) -> bool:
    """Whether every byte is that of one of the allowed pieces."""
    return all(byte in {one[index] for one in allowed} for index, byte in enumerate(piece))


def read_names(root: str) -> Names:
    """What is below a folder, all of it."""
    names: Names = {}
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_symlink():
            names[entry.name] = SymlinkNode(os.readlink(entry.path))
        elif entry.is_dir():
            names[entry.name] = FolderNode()
            below = read_names(entry.path)
            names |= {f"{entry.name}/{name}": node for name, node in below.items()}
        else:
            with open(entry.path, "rb") as file:
                names[entry.name] = FileNode(content=bytearray(file.read()))
    return names
