"""What a disk may hold after a power cut, made from a recording.

A disk keeps what was synced, and of the rest what it likes:

- Bytes and size of a file are sure once a sync of it has ended that had begun after them.
- A name is sure once a sync of its folder has ended that had begun after it; a sync of the file
  says nothing about its name. This is POSIX; file systems in use promise more.
- A rename is one step, sure once either folder was synced.
- Of what is not sure, any part may be there: whole pages of one write and not of the next, a later
  name without an earlier one.

`Form` says which of the possible disks is made.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.faults.recording import Kind, Record

PAGE_SIZE_BYTES = 4096
# What a disk writes in one piece.
SECTOR_SIZE_BYTES = 512


class Form(Enum):
    """How much is there of what was not synced."""

    LEAST = "nothing"
    MOST = "everything, as when only the process is killed"
    SOME = "any part"
    TORN = "everything, but of the last write a part"


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes that were written at `offset`, or (None) that the file was given the size `offset`."""

    number: int
    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        end = self.offset + len(self.data or b"")
        if self.data is None:
            del content[end:]
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        if self.data is not None:
            content[self.offset : end] = self.data

    def pages(self) -> Iterator[Change]:
        """The same in parts of which a disk may keep one and not the other."""
        if self.data is None:
            yield self
            return
        start = self.offset
        end = start + len(self.data)
        while start < end:
            stop = min(end, start - start % PAGE_SIZE_BYTES + PAGE_SIZE_BYTES)
            piece = self.data[start - self.offset : stop - self.offset]
            yield Change(self.number, start, piece)
            start = stop

    def torn(self, chance: random.Random) -> Change:
        """The first sectors of it."""
        if self.data is None:
            return self
        kept = chance.randrange(len(self.data)) // SECTOR_SIZE_BYTES * SECTOR_SIZE_BYTES
        return Change(self.number, self.offset, self.data[:kept])


@dataclass(eq=False)
class File:
    """A file: what is sure of it, and what came later."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)

    def sync(self, number: int) -> None:
        """Make sure what came before `number`."""
        for change in self.pending:
            if change.number < number:
                change.apply(self.durable)
        self.pending = [change for change in self.pending if change.number >= number]


@dataclass(eq=False)
class Folder:
    """A folder; what it holds is told by the names."""


Node = File | Folder


@dataclass(frozen=True, slots=True)
class Naming:
    """A change of names, of `node`."""

    number: int
    kind: Kind
    path: str
    target: str
    node: Node

    def touches(self, folder: str) -> bool:
        """Whether it is sure once that folder was synced."""
        return os.path.dirname(self.path) == folder or (
            bool(self.target) and os.path.dirname(self.target) == folder
        )

    def apply(self, names: dict[str, Node]) -> None:
        match self.kind:
            case Kind.CREATE | Kind.MAKE_FOLDER:
                names[self.path] = self.node
            case Kind.LINK:
                names[self.target] = self.node
            case Kind.UNLINK | Kind.REMOVE_FOLDER:
                self._remove(names)
            case _:
                assert self.kind is Kind.RENAME
                self._remove(names)
                names[self.target] = self.node

    def _remove(self, names: dict[str, Node]) -> None:
        if names.get(self.path) is self.node:
            del names[self.path]


class Disk:
    """The disk below `root` as far as records were applied. It was empty at first."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._number = 0
        self._files: dict[int, File] = {}
        self._names: dict[str, Node] = {}
        self._durable: dict[str, Node] = {}
        self._pending: list[Naming] = []
        self._syncs: dict[tuple[int, int], int] = {}
        self._last_write = 0

    def apply(self, record: Record) -> None:
        """Do what was recorded. What is about files elsewhere is passed over."""
        self._number += 1
        match record.kind:
            case Kind.WRITE | Kind.RESIZE:
                self._change(record)
            case Kind.SYNC_BEGIN | Kind.SYNC_FOLDER_BEGIN:
                self._syncs[record.pid, record.offset] = self._number
            case Kind.SYNC_END:
                if (file := self._files.get(record.file)) is not None:
                    file.sync(self._syncs.pop((record.pid, record.offset)))
            case Kind.SYNC_FOLDER_END:
                number = self._syncs.pop((record.pid, record.offset))
                if self._is_mine(record.path):
                    self._sync_folder(record.path, number)
            case Kind.MARK:
                pass
            case Kind.MAP:
                assert record.file not in self._files, "a file is mapped for writing"
            case _:
                self._name(record)

    def _is_mine(self, path: str) -> bool:
        return path == self._root or path.startswith(f"{self._root}/")

    def _change(self, record: Record) -> None:
        file = self._files.get(record.file)
        if file is None:
            return
        data = record.data if record.kind is Kind.WRITE else None
        file.pending.append(Change(self._number, record.offset, data))
        self._last_write = self._number

    def _name(self, record: Record) -> None:
        if not self._is_mine(record.path) or record.path.endswith("-shm"):
            return
        node: Node
        if record.kind is Kind.CREATE:
            node = self._files[record.file] = File()
        elif record.kind is Kind.MAKE_FOLDER:
            node = Folder()
        else:
            node = self._names[record.path]
        is_moved_folder = record.kind is Kind.RENAME and isinstance(node, Folder)
        assert not is_moved_folder, f"{record.path} is a folder that is moved"
        change = Naming(self._number, record.kind, record.path, record.target, node)
        change.apply(self._names)
        self._pending.append(change)

    def _sync_folder(self, folder: str, number: int) -> None:
        left: list[Naming] = []
        for change in self._pending:
            if change.number < number and change.touches(folder):
                change.apply(self._durable)
                if change.kind is Kind.RENAME:
                    # Its first name goes with it, whether that was sure or not.
                    left = [one for one in left if one.node is not change.node]
            else:
                left.append(change)
        self._pending = left

    # --- making one ----------------------------------------------------------------------------

    def content(self, forms: Mapping[str, Form], chance: random.Random) -> dict[str, bytes | None]:
        """What a disk may hold: the bytes of each file, None for a folder; by path below the root.

        Files in a folder that is not there are not there either.

        Args:
            forms: of each part of the disk, by the first name below the root; others are MOST.
        """
        found: dict[str, bytes | None] = {}
        parts = sorted({self._part(path) for path in (*self._names, *self._durable)})
        for part in parts:
            found |= self._content_of(part, forms.get(part, Form.MOST), chance)
        return found

    def _part(self, path: str) -> str:
        return os.path.relpath(path, self._root).partition("/")[0]

    def _content_of(self, part: str, form: Form, chance: random.Random) -> dict[str, bytes | None]:
        names = {
            path: node
            for path, node in self._chosen_names(part, form, chance).items()
            if self._part(path) == part
        }
        found: dict[str, bytes | None] = {}
        for path in sorted(names):
            parent = os.path.dirname(path)
            if parent != self._root and os.path.relpath(parent, self._root) not in found:
                continue
            node = names[path]
            below = os.path.relpath(path, self._root)
            found[below] = None if isinstance(node, Folder) else self._bytes(node, form, chance)
        return found

    def _chosen_names(self, part: str, form: Form, chance: random.Random) -> dict[str, Node]:
        if form in {Form.MOST, Form.TORN}:
            return self._names
        names = dict(self._durable)
        if form is Form.SOME:
            pending = [change for change in self._pending if self._part(change.path) == part]
            for change in _chosen(pending, chance):
                change.apply(names)
        return names

    def _bytes(self, file: File, form: Form, chance: random.Random) -> bytes:
        content = bytearray(file.durable)
        if form is not Form.LEAST:
            share = chance.choice([0.1, 0.5, 0.9])
            for change in file.pending:
                if form is Form.SOME:
                    for page in change.pages():
                        if chance.random() < share:
                            page.apply(content)
                elif form is Form.TORN and change.number == self._last_write:
                    change.torn(chance).apply(content)
                else:
                    change.apply(content)
        return bytes(content)


def _chosen(pending: Sequence[Naming], chance: random.Random) -> Sequence[Naming]:
    """Which of the names that are not sure are there."""
    # A journal keeps the order; POSIX asks for none.
    if chance.random() < 0.5:
        return pending[: chance.randint(0, len(pending))]
    share = chance.choice([0.1, 0.5, 0.9])
    return [change for change in pending if chance.random() < share]


def write_tree(content: dict[str, bytes | None], target: Path) -> None:
    """Make the folder `target` with this content."""
    target.mkdir(parents=True)
    for path, body in content.items():
        if body is None:
            (target / path).mkdir()
        else:
            (target / path).write_bytes(body)


def read_tree(root: Path) -> dict[str, bytes | None]:
    """The content of a folder, without what SQLite keeps in shared memory."""
    found: dict[str, bytes | None] = {}
    for folder, folders, files in os.walk(root):
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), root)] = None
        for name in files:
            path = Path(folder, name)
            if path.is_file() and not name.endswith("-shm"):
                found[os.path.relpath(path, root)] = path.read_bytes()
    return found


def differences(one: dict[str, bytes | None], other: dict[str, bytes | None]) -> list[str]:
    """Paths at which two trees are not the same."""
    return sorted(
        path
        for path in one.keys() | other.keys()
        if path not in one or path not in other or one[path] != other[path]
    )
