"""Random reads, writes, truncations and mappings of files, against byte arrays in memory.

After the fsx of Apple and NeXT: `python -m tests.stateful.fsx PATH --operations N --seed S` works
on files in the directory PATH. Without PATH it makes a space and a mount of its own, which it can
treat badly: see `--kill-router-every`. The same seed gives the same operations.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.stateful.own_mount import OwnMount, add_mount_arguments, own_mount

HISTORY_LENGTH = 50
HANDLES_MAX = 3
# After so many operations everything is compared, and the long form tells how far it is.
ROUND_LENGTH = 5000
PAGE = mmap.PAGESIZE
# How soon a router that does not answer is asked again.
ASK_AGAIN_S = 0.5


class DifferenceError(Exception):
    """A file does not hold what was written to it. The message tells all that is known."""


@dataclass
class CheckedFile:
    """A file and what it must hold.

    Attributes:
        fds: handles that are open at the same time; every operation takes any of them.
    """

    path: str
    fds: list[int] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)


class Fsx:
    """Random operations over some files.

    Args:
        folder: where the files are made.
        size_max: files never get larger, in bytes.
        length_max: of one read or write, in bytes.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        file_count: int = 1,
        size_max: int = 256 * 1024,
        length_max: int = 64 * 1024,
    ) -> None:
        self._chance = random.Random(seed)
        self._size_max = size_max
        self._length_max = length_max
        self._history: deque[str] = deque(maxlen=HISTORY_LENGTH)
        self.operation_count = 0
        self.files = [CheckedFile(str(folder / f"fsx-{seed}-{n}")) for n in range(file_count)]
        self._verbs: list[tuple[Callable[[CheckedFile], str], int]] = [
            (self._read, 20),
            (self._write, 20),
            (self._append, 3),
            (self._truncate, 8),
            (self._punch, 3),
            (self._map_read, 10),
            (self._map_write, 10),
            (self._close_open, 5),
            (self._open_truncating, 1),
            (self._fsync, 2),
            (self._drop_pages, 4),
            (self._look, 5),
        ]

    # --- running ---------------------------------------------------------------------------------

    def run(self, operations: int) -> None:
        """Do so many more operations, then compare everything. Raises DifferenceError."""
        verbs, weights = zip(*self._verbs, strict=True)
        flags = os.O_RDWR if self.operation_count else os.O_RDWR | os.O_CREAT | os.O_EXCL
        for file in self.files:
            file.fds.append(os.open(file.path, flags, 0o644))
        try:
            for verb in self._chance.choices(verbs, weights, k=operations):
                self._step(verb, self._chance.choice(self.files))
        finally:
            self.close()
        self.check_all()

    def close(self) -> None:
        """Close every handle."""
        for file in self.files:
            while file.fds:
                os.close(file.fds.pop())

    def check_all(self) -> None:
        """Open the files anew and compare them from end to end."""
        for file in self.files:
            with open(file.path, "rb") as opened:
                self._compare(file, 0, opened.read(), len(file.content) + 1)

    def remove(self) -> None:
        """Remove the files."""
        for file in self.files:
            os.unlink(file.path)

    def _step(self, verb: Callable[[CheckedFile], str], file: CheckedFile) -> None:
        self.operation_count += 1
        try:
            done = verb(file)
        except OSError as error:
            self._fail(f"{verb.__name__.lstrip('_')} of {file.path}: {error}")
        self._history.append(f"{self.operation_count} {os.path.basename(file.path)} {done}")

    def _fail(self, what: str) -> None:
        past = "\n".join(self._history)
        raise DifferenceError(f"last operations:\n{past}\noperation {self.operation_count}: {what}")

    def _compare(self, file: CheckedFile, offset: int, found: bytes, length: int) -> None:
        expected = bytes(file.content[offset : offset + length])
        if found == expected:
            return
        what = f"{file.path}: read {len(found)} bytes at {offset} instead of {len(expected)}"
        for index, (is_there, belongs) in enumerate(zip(found, expected, strict=False)):
            if is_there != belongs:
                where = offset + index
                what += f"; first difference at {where:#x}: {is_there:#04x}, not {belongs:#04x}"
                break
        self._fail(what)

    # --- choices ---------------------------------------------------------------------------------

    def _fd(self, file: CheckedFile) -> int:
        return self._chance.choice(file.fds)

    def _offset(self, limit: int) -> int:
        """Anywhere up to `limit`; often at a page, at the start, or at the very end."""
        kind = self._chance.random()
        offset = limit if kind < 0.05 else self._chance.randint(0, limit)
        if kind > 0.6:
            offset -= offset % PAGE
        return offset

    def _length(self, limit: int) -> int:
        limit = min(limit, self._length_max)
        return self._chance.randint(0, limit if self._chance.random() < 0.5 else min(limit, 5000))

    def _data(self, length: int) -> bytes:
        """Bytes that tell which operation wrote them, at each place others."""
        start = self._chance.randrange(251)
        return bytes((start + n) % 251 + 1 for n in range(256)) * (length // 256 + 1)

    # --- operations ------------------------------------------------------------------------------

    def _read(self, file: CheckedFile) -> str:
        offset = self._offset(len(file.content) + PAGE)
        length = self._length(self._size_max)
        self._compare(file, offset, os.pread(self._fd(file), length, offset), length)
        return f"read {length} at {offset:#x}"

    def _write(self, file: CheckedFile) -> str:
        offset = self._offset(self._size_max)
        length = self._length(self._size_max - offset)
        data = self._data(length)[:length]
        self._take(os.pwrite(self._fd(file), data, offset), length)
        self._put(file, offset, data)
        return f"write {length} at {offset:#x}, first byte {data[:1].hex()}"

    def _append(self, file: CheckedFile) -> str:
        length = self._length(self._size_max - len(file.content))
        data = self._data(length)[:length]
        fd = os.open(file.path, os.O_WRONLY | os.O_APPEND)
        try:
            self._take(os.write(fd, data), length)
        finally:
            os.close(fd)
        self._put(file, len(file.content), data)
        return f"append {length}, first byte {data[:1].hex()}"

    def _take(self, written: int, length: int) -> None:
        if written != length:
            self._fail(f"wrote {written} bytes instead of {length}")

    @staticmethod
    def _put(file: CheckedFile, offset: int, data: bytes) -> None:
        if not data:
            return
        file.content += bytes(max(0, offset - len(file.content)))
        file.content[offset : offset + len(data)] = data

    def _truncate(self, file: CheckedFile) -> str:
        size = self._offset(self._size_max)
        return self._resize(file, size)

    def _resize(self, file: CheckedFile, size: int) -> str:
        before = len(file.content)
        if self._chance.random() < 0.5:
            os.ftruncate(self._fd(file), size)
        else:
            os.truncate(file.path, size)
        del file.content[size:]
        file.content += bytes(size - len(file.content))
        return f"truncate from {before:#x} to {size:#x}"

    def _punch(self, file: CheckedFile) -> str:
        """Cut the end off and let the file grow again: what comes back is zeros."""
        size = len(file.content)
        done = self._resize(file, self._offset(size))
        return f"{done}, {self._resize(file, size)}"

    def _map_range(self, file: CheckedFile) -> tuple[int, int]:
        offset = self._offset(len(file.content) - 1)
        return offset, max(1, self._length(len(file.content) - offset))

    def _map_read(self, file: CheckedFile) -> str:
        if not file.content:
            return "map of an empty file left out"
        offset, length = self._map_range(file)
        start = offset - offset % PAGE
        size = offset - start + length
        with mmap.mmap(self._fd(file), size, prot=mmap.PROT_READ, offset=start) as mapped:
            self._compare(file, offset, mapped[offset - start : size], length)
        return f"map and read {length} at {offset:#x}"

    def _map_write(self, file: CheckedFile) -> str:
        if not file.content:
            return "map of an empty file left out"
        offset, length = self._map_range(file)
        data = self._data(length)[:length]
        start = offset - offset % PAGE
        size = offset - start + length
        is_flushed = self._chance.random() < 0.3
        with mmap.mmap(self._fd(file), size, offset=start) as mapped:
            mapped[offset - start : size] = data
            if is_flushed:
                mapped.flush()
        self._put(file, offset, data)
        flushed = " and flush" if is_flushed else ""
        return f"map and write{flushed} {length} at {offset:#x}, first byte {data[:1].hex()}"

    def _close_open(self, file: CheckedFile) -> str:
        """Open another handle, and close one of those that are open now."""
        file.fds.append(os.open(file.path, os.O_RDWR))
        is_closing = len(file.fds) > HANDLES_MAX or self._chance.random() < 0.5
        if is_closing:
            os.close(file.fds.pop(self._chance.randrange(len(file.fds))))
        return f"open{', close' if is_closing else ''}: {len(file.fds)} handles"

    def _open_truncating(self, file: CheckedFile) -> str:
        os.close(os.open(file.path, os.O_WRONLY | os.O_TRUNC))
        file.content.clear()
        return "open with O_TRUNC"

    def _fsync(self, file: CheckedFile) -> str:
        os.fsync(self._fd(file))
        return "fsync"

    def _drop_pages(self, file: CheckedFile) -> str:
        """Let the kernel forget what it has cached, so that the next read comes from the mount."""
        os.posix_fadvise(self._fd(file), 0, 0, os.POSIX_FADV_DONTNEED)
        return "drop pages"

    def _look(self, file: CheckedFile) -> str:
        size = os.fstat(self._fd(file)).st_size
        if size != len(file.content):
            self._fail(f"{file.path}: size {size}, not {len(file.content)}")
        return f"size is {size:#x}"


class RouterKiller:
    """Kills the router of a space now and then; its supervisor starts it anew.

    A context manager: kills from its start to its end.

    Args:
        every_s: how long a router that answers is left alone before it is killed. The supervisor
            waits up to five seconds longer before it starts what dies within half a minute.
    """

    def __init__(self, own: OwnMount, every_s: float) -> None:
        self._own = own
        self._every_s = every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0

    def __enter__(self) -> RouterKiller:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while self._await_answer() and not self._is_over.wait(self._every_s):
            # It may have died by itself, or be gone with the space.
            with contextlib.suppress(AssertionError, OSError, TypeError):
                self._own.space.kill("router")
                self.count += 1

    def _await_answer(self) -> bool:
        """Wait for a router that answers, so that the mount gets on; False when it is all over."""
        while not self._is_over.is_set():
            done = self._own.space.command("bucket", "ls", check=False)
            if done.returncode == 0:
                return True
            self._is_over.wait(ASK_AGAIN_S)
        return False


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fsx", description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, help="a directory to work in")
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--size-max", type=int, default=256 * 1024, help="of a file, in bytes")
    parser.add_argument(
        "--kill-router-every", type=float, default=0, help="seconds; only without PATH"
    )
    add_mount_arguments(parser)
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Run as the command line says; 1 after a difference."""
    arguments = parsed(words)
    print(f"seed {arguments.seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = arguments.path
        if folder is None:
            own = stack.enter_context(own_mount(arguments))
            folder = own.bucket
            if arguments.kill_router_every:
                killer = RouterKiller(own, arguments.kill_router_every)
                stack.enter_context(killer)
                stack.callback(lambda: print(f"router killed {killer.count} times"))
        fsx = Fsx(folder, arguments.seed, file_count=arguments.files, size_max=arguments.size_max)
        started_s = time.monotonic()
        try:
            while (left := arguments.operations - fsx.operation_count) > 0:
                fsx.run(min(left, ROUND_LENGTH))
                print(f"{fsx.operation_count} operations", flush=True)
        except DifferenceError as error:
            print(error, file=sys.stderr)
            return 1
        duration_s = time.monotonic() - started_s
        fsx.remove()
    print(f"{fsx.operation_count} operations in {duration_s:.0f} s, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
