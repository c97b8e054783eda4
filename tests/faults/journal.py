"""What a workload did and what it was promised: lines of JSON, each fsynced, outside the mount.

A step has a line before it is done and one when it has ended; a workload that is killed leaves at
most one step without the second. The bytes of a step are made from its seed, so the journal is
small, and whoever reads it can make them again.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.faults import recording

# Steps that the router has applied when they have ended, with all changes of names before them.
ASKS_ROUTER = frozenset({"truncate", "link"})
# Steps after which the content of their file, and every name before, are on disk.
SYNCS = frozenset({"fsync", "fdatasync", "msync", "sql"})
NAMES = frozenset({"create", "mkdir", "rmdir", "unlink", "rename", "link", "symlink"})
CONTENTS = frozenset({"write", "store", "truncate"})


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a workload.

    Attributes:
        number: counted from 0.
        verb: a name in `NAMES`, `CONTENTS` or `SYNCS`, or `close`.
        path, target: below the folder of the workload; `target` is the new name, or what a symlink
            says.
        offset: where bytes go; the new size of `truncate`; the row of `sql`.
        length, seed: of the bytes.
        ended_ns: by the monotonic clock; 0: it has not ended.
        error: name of the errno that it ended with.
        size, digest: of the whole file, as a sync or close left it.
    """

    number: int
    verb: str
    path: str
    target: str = ""
    offset: int = 0
    length: int = 0
    seed: int = 0
    begun_ns: int = 0
    ended_ns: int = 0
    error: str = ""
    size: int = -1
    digest: str = ""

    @property
    def is_done(self) -> bool:
        """Whether it has ended well."""
        return self.ended_ns > 0 and not self.error

    def __str__(self) -> str:
        words = [self.path, self.target, f"{self.offset}+{self.length}" if self.length else ""]
        end = self.error or ("ok" if self.is_done else "not ended")
        return f"{self.number} {self.verb} {' '.join(filter(None, words))}: {end}"


def body(seed: int, length: int) -> bytes:
    """The bytes of a step."""
    return random.Random(seed).randbytes(length)


class Journal:
    """A journal that is being written.

    Args:
        marks: log of a recording that gets a mark for each line; None: none.
    """

    def __init__(self, path: Path, marks: Path | None = None) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._fd = os.open(path, flags, 0o644)
        self._marks = None if marks is None else os.open(marks, flags, 0o600)
        self._lines = 0

    def begin(self, step: Step) -> None:
        """Write that a step is about to be done."""
        self._write({"begun": asdict(replace(step, begun_ns=time.monotonic_ns()))})

    def end(self, step: Step, error: str = "", size: int = -1, digest: str = "") -> None:
        """Write how a step has ended."""
        told = {"number": step.number, "ended_ns": time.monotonic_ns(), "error": error}
        self._write({"ended": {**told, "size": size, "digest": digest}})

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")
        os.fdatasync(self._fd)
        if self._marks is not None:
            recording.mark(self._marks, self._lines)
        self._lines += 1


def read_steps(path: Path, lines_max: int | None = None) -> list[Step]:
    """The steps of the first lines of a journal; a line that is not whole is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return steps_of(lines if lines_max is None else lines[:lines_max])


def steps_of(lines: Sequence[bytes]) -> list[Step]:
    """The steps of lines of a journal."""
    steps: list[Step] = []
    for line in lines:
        told = json.loads(line)
        if "begun" in told:
            steps.append(Step(**told["begun"]))
            assert steps[-1].number == len(steps) - 1
        else:
            ended = told["ended"]
            steps[ended.pop("number")] = replace(steps[-1], **ended)
    return steps
