"""A program that works in a folder of a mount and journals what it was promised.

It runs in a process of its own until its standard input is closed, or a call fails: then it ends
with 3, since what that call did is not known. `python -m tests.faults.workload FOLDER JOURNAL`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import mmap
import os
import random
import select
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults.journal import Journal, Step, body
from tests.faults.model import FileNode, FolderNode, SymlinkNode, Tree

STATUS_FAILED = 3
DATABASE = "database.sqlite"
FILES_MAX = 24
HANDLES_MAX = 4
FILE_SIZE_BYTES_MAX = 1_500_000
# Inline; inline for a while because of an fsync; on peers; several chunks.
LENGTHS = (1, 700, 4096, 8192, 9000, 30_000, 65_536, 70_000, 200_000, 600_000)
# How a commit of the database becomes durable, each safe against the loss of power: see
# sqlite.org/pragma.html. With DELETE that needs EXTRA.
JOURNAL_MODES = (("DELETE", "EXTRA"), ("TRUNCATE", "FULL"), ("WAL", "FULL"))
SQL_BODY_SIZE_BYTES = 3000


class Workload:
    """Random steps in a folder, one after the other."""

    def __init__(self, folder: Path, journal: Journal, seed: int, *, has_database: bool) -> None:
        self._folder = folder
        self._journal = journal
        self._chance = random.Random(seed)
        self._tree = Tree()
        self._count = 0
        self._names = 0
        self._rows = 0
        # Open files, oldest first.
        self._handles: dict[str, int] = {}
        self._database: sqlite3.Connection | None = None
        self._folder_fd: int | None = None
        self._has_database = has_database
        self._verbs: list[tuple[Callable[[], None], int]] = [
            (self._create, 6), (self._append, 6), (self._overwrite, 4), (self._write_far, 2),
            (self._truncate, 2), (self._store, 2), (self._sync, 7), (self._close, 3),
            (self._rename, 3), (self._replace, 3), (self._unlink, 2), (self._mkdir, 2),
            (self._rmdir, 1), (self._link, 1), (self._symlink, 1),
            (self._commit_row, 3 if has_database else 0),
        ]  # fmt: skip

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Do steps until told to stop, then close everything. Raises what a call raises."""
        functions, weights = zip(*self._verbs, strict=True)
        while not should_stop():
            self._chance.choices(functions, weights)[0]()
        while self._handles:
            self._close()
        if self._database is not None:
            self._database.close()
        if self._folder_fd is not None:
            os.close(self._folder_fd)

    # --- doing and journalling -------------------------------------------------------------------

    def _do(self, step: Step, call: Callable[[], object]) -> None:
        """Journal, call, journal again."""
        self._count += 1
        self._journal.begin(step)
        try:
            call()
        except (OSError, sqlite3.Error) as error:
            code = error.errno if isinstance(error, OSError) else None
            self._journal.end(step, error=errno.errorcode.get(code or 0, repr(error)))
            raise
        self._tree.apply(step)
        size, digest = -1, ""
        if step.verb in {"fsync", "fdatasync", "msync", "close"}:
            content = self._tree.file(step.path).content
            size, digest = len(content), hashlib.blake2b(content, digest_size=16).hexdigest()
        self._journal.end(step, size=size, digest=digest)

    def _step(
        self, verb: str, path: str, target: str = "", offset: int = 0, length: int = 0
    ) -> Step:
        seed = self._chance.getrandbits(32) if length else 0
        return Step(self._count, verb, path, target, offset, length, seed)

    def _at(self, path: str) -> Path:
        return self._folder / path

    # --- choosing --------------------------------------------------------------------------------

    def _pick(self, kind: type) -> str | None:
        names = [name for name, node in self._tree.names.items() if isinstance(node, kind)]
        return self._chance.choice(names) if names else None

    def _new_name(self) -> str:
        folders = ["", *(n for n, node in self._tree.names.items() if isinstance(node, FolderNode))]
        self._names += 1
        return os.path.join(self._chance.choice(folders), f"n{self._names}")

    def _open(self) -> str | None:
        """A file with a handle: one that has one, or another."""
        path = self._pick(FileNode)
        if path is None or path in self._handles:
            return path
        while len(self._handles) >= HANDLES_MAX:
            self._close()
        self._handles[path] = os.open(self._at(path), os.O_RDWR)
        return path

    # --- steps -----------------------------------------------------------------------------------

    def _create(self) -> None:
        files = sum(isinstance(node, FileNode) for node in self._tree.names.values())
        if files >= FILES_MAX:
            self._unlink()
            return
        while len(self._handles) >= HANDLES_MAX:
            self._close()
        path = self._new_name()

        def call() -> None:
            self._handles[path] = os.open(self._at(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)

        self._do(self._step("create", path), call)
        self._write(path, 0)

    def _write(self, path: str, offset: int) -> None:
        length = self._chance.choice(LENGTHS)
        if offset + length > FILE_SIZE_BYTES_MAX:
            return
        step = self._step("write", path, offset=offset, length=length)
        data = memoryview(body(step.seed, length))

        def call() -> None:
            done = 0
            while done < length:
                done += os.pwrite(self._handles[path], data[done:], offset + done)

        self._do(step, call)

    def _append(self) -> None:
        if (path := self._open()) is not None:
            self._write(path, len(self._tree.file(path).content))

    def _overwrite(self) -> None:
        if (path := self._open()) is not None:
            self._write(path, self._chance.randint(0, len(self._tree.file(path).content)))

    def _write_far(self) -> None:
        if (path := self._open()) is not None:
            gap = self._chance.choice([1, 5000, 100_000])
            self._write(path, len(self._tree.file(path).content) + gap)

    def _truncate(self) -> None:
        if (path := self._open()) is not None:
            now = len(self._tree.file(path).content)
            size = self._chance.choice([0, now // 2, now + 10_000])
            step = self._step("truncate", path, offset=size)
            self._do(step, lambda: os.ftruncate(self._handles[path], size))

    def _store(self) -> None:
        """Change bytes in mapped memory, and msync."""
        path = self._open()
        if path is None or not (size := len(self._tree.file(path).content)):
            return
        offset = self._chance.randrange(size)
        length = min(size - offset, self._chance.choice(LENGTHS))
        step = self._step("store", path, offset=offset, length=length)
        with mmap.mmap(self._handles[path], size) as memory:

            def store() -> None:
                memory[offset : offset + length] = body(step.seed, length)

            self._do(step, store)
            self._do(self._step("msync", path), memory.flush)

    def _sync(self) -> None:
        if (path := self._open()) is not None:
            call = self._chance.choice([os.fsync, os.fdatasync])
            self._do(self._step(call.__name__, path), lambda: call(self._handles[path]))

    def _close(self) -> None:
        if self._handles:
            path, fd = next(iter(self._handles.items()))
            # Whatever it gives, the descriptor is gone.
            del self._handles[path]
            self._do(self._step("close", path), lambda: os.close(fd))

    def _rename(self) -> None:
        path = self._pick(FileNode if self._chance.random() < 0.8 else FolderNode)
        if path is not None:
            name = self._new_name()
            if not name.startswith(f"{path}/"):
                self._move(path, name)

    def _replace(self) -> None:
        """Rename over another file, most often as programs do that want it safe."""
        path, other = self._pick(FileNode), self._pick(FileNode)
        if path is None or other is None or self._tree.file(path) is self._tree.file(other):
            return
        if self._chance.random() < 0.7 and path in self._handles:
            self._do(self._step("fsync", path), lambda: os.fsync(self._handles[path]))
        self._drop_handle(other)
        self._move(path, other)

    def _move(self, path: str, target: str) -> None:
        self._do(
            self._step("rename", path, target),
            lambda: os.rename(self._at(path), self._at(target)),
        )
        for name in [n for n in self._handles if n == path or n.startswith(f"{path}/")]:
            self._handles[target + name[len(path) :]] = self._handles.pop(name)

    def _drop_handle(self, path: str) -> None:
        if (fd := self._handles.pop(path, None)) is not None:
            self._do(self._step("close", path), lambda: os.close(fd))

    def _unlink(self) -> None:
        path = self._pick(FileNode if self._chance.random() < 0.9 else SymlinkNode)
        if path is not None:
            self._drop_handle(path)
            self._do(self._step("unlink", path), lambda: os.unlink(self._at(path)))

    def _mkdir(self) -> None:
        path = self._new_name()
        self._do(self._step("mkdir", path), lambda: os.mkdir(self._at(path)))

    def _rmdir(self) -> None:
        path = self._pick(FolderNode)
        if path is not None and not any(n.startswith(f"{path}/") for n in self._tree.names):
            self._do(self._step("rmdir", path), lambda: os.rmdir(self._at(path)))

    def _link(self) -> None:
        path = self._pick(FileNode)
        if path is not None:
            name = self._new_name()
            self._do(
                self._step("link", path, name), lambda: os.link(self._at(path), self._at(name))
            )

    def _symlink(self) -> None:
        path = self._new_name()
        self._do(self._step("symlink", path, "n1"), lambda: os.symlink("n1", self._at(path)))

    def _commit_row(self) -> None:
        step = self._step("sql", DATABASE, offset=self._rows, length=SQL_BODY_SIZE_BYTES)

        def call() -> None:
            database = self._opened_database()
            with database:
                row = (step.offset, body(step.seed, step.length))
                database.execute("INSERT INTO row VALUES (?, ?)", row)
            assert self._folder_fd is not None
            # SQLite unlinks its journal, opens the folder and syncs it; one that it cannot open it
            # takes for one that need not be synced (`unixDelete`). So whose mount is killed in
            # between is told of a commit that its journal undoes. This asks the mount of before.
            os.fstatvfs(self._folder_fd)

        self._do(step, call)
        self._rows += 1

    def _opened_database(self) -> sqlite3.Connection:
        if self._database is None:
            mode, synchronous = self._chance.choice(JOURNAL_MODES)
            self._folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            self._database = sqlite3.connect(self._at(DATABASE))
            self._database.execute(f"PRAGMA journal_mode={mode}")
            self._database.execute(f"PRAGMA synchronous={synchronous}")
            self._database.execute("CREATE TABLE row (number INTEGER PRIMARY KEY, body BLOB)")
        return self._database


def is_closed(fd: int) -> bool:
    """Whether the other end of a pipe was closed."""
    return bool(select.select([fd], [], [], 0)[0])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--marks", type=Path)
    parser.add_argument("--no-database", action="store_true")
    given = parser.parse_args(arguments)
    journal = Journal(given.journal, given.marks)
    work = Workload(given.folder, journal, given.seed, has_database=not given.no_database)
    try:
        work.run(lambda: is_closed(sys.stdin.fileno()))
    except (OSError, sqlite3.Error) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(STATUS_FAILED)


if __name__ == "__main__":
    main()
