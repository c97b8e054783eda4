"""What our processes leave for each other: values as JSON, in small files that are replaced whole.

Owns the text form and the steps of a replacement: a reader meets the old content or the new one,
never a part of either. Never decides where files lie or what a damaged one means.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def to_json(value: object, indent: int | None = None) -> bytes:
    """`value`, a structure or what JSON knows, as JSON with a line feed at the end."""
    # Not by msgspec alone, which knows no text for a name that is not UTF-8.
    return json.dumps(msgspec.to_builtins(value), indent=indent).encode("ascii") + b"\n"


def from_json(text: bytes, kind: type[T]) -> T:
    """The value that `to_json` wrote.

    Raises:
        ValueError: it is not JSON, or of another form.
    """
    return msgspec.convert(json.loads(text), kind)


def replace_file(path: Path, content: bytes, *, is_durable: bool = False) -> None:
    """Give the file `path` a new content; it is made when missing.

    Several may do so at once: the last one wins. What a writer that was killed leaves behind is
    named `NAME.PID`.

    Args:
        path: in a directory that exists.
        content: all of it.
        is_durable: return when it is sure to survive a power cut.

    Raises:
        OSError: the old content, if any, still stands.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if is_durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: fsync(2) of a file says nothing about its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
