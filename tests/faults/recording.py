"""What processes did to the files below a directory, in order: recorded by `recorder.c`, read here.

Records of several processes share one log. A program that journals what it was promised puts marks
into the same log, so that one place in it is one moment for all: see `mark`.
"""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

SOURCE = Path(__file__).with_name("recorder.c")
MAGIC = 0x5243524D
# magic, kind, time_ns, file, offset, size of the data, pid, size of the path: as in `recorder.c`.
HEADER = struct.Struct("=IIQQQQII")


class Kind(Enum):
    """What was done."""

    CREATE = "C"
    WRITE = "W"
    RESIZE = "T"
    RENAME = "R"
    LINK = "L"
    UNLINK = "U"
    MAKE_FOLDER = "D"
    REMOVE_FOLDER = "X"
    SYNC_BEGIN = "B"
    SYNC_END = "E"
    SYNC_FOLDER_BEGIN = "b"
    SYNC_FOLDER_END = "e"
    MAP = "M"
    MARK = "A"


@dataclass(frozen=True, slots=True)
class Record:
    """One step.

    Attributes:
        file: inode of the file that it is about; 0 where it is about names.
        offset: where bytes were written, the new size of a `RESIZE`, the number of a sync or mark.
        path, target: absolute; `target` of `RENAME` and `LINK` only.
    """

    kind: Kind
    time_ns: int
    file: int
    offset: int
    pid: int
    path: str
    target: str
    data: bytes


def build(folder: Path) -> Path:
    """Compile the recorder into `folder`; the library to load."""
    library = folder / "recorder.so"
    words = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    done = subprocess.run(
        ["gcc", *words, "-o", library, SOURCE, "-ldl"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return library


def environment(library: Path, root: Path, log: Path, sync_delay_us: int = 0) -> Mapping[str, str]:
    """Variables with which a process records what it does below `root` in `log`."""
    return {
        "LD_PRELOAD": os.fspath(library),
        "RECORDER_ROOT": os.fspath(root),
        "RECORDER_LOG": os.fspath(log),
        "RECORDER_SYNC_DELAY_US": str(sync_delay_us),
    }


def mark(log_fd: int, number: int) -> None:
    """Append a mark to a log that was opened with O_APPEND."""
    header = (MAGIC, ord(Kind.MARK.value), time.monotonic_ns(), 0, number, 0, os.getpid(), 0)
    os.write(log_fd, HEADER.pack(*header))


def read_records(log: Path) -> Iterator[Record]:
    """The records of a log in order."""
    with log.open("rb") as file:
        while head := file.read(HEADER.size):
            magic, kind, time_ns, inode, offset, data_size, pid, path_size = HEADER.unpack(head)
            assert magic == MAGIC, f"{log} is damaged at {file.tell()}"
            path, _, target = os.fsdecode(file.read(path_size)).partition("\0")
            data = file.read(data_size)
            assert len(data) == data_size, f"{log} ends in the middle of a record"
            yield Record(Kind(chr(kind)), time_ns, inode, offset, pid, path, target, data)
