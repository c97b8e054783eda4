"""Damage to files, as disks and people do it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def flip_a_bit(path: Path, position: int) -> None:
    """Change one bit of the byte at `position`; negative counts from the end."""
    with path.open("r+b") as file:
        file.seek(position, os.SEEK_END if position < 0 else os.SEEK_SET)
        at = file.tell()
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def truncate(path: Path) -> None:
    """Lose the last byte."""
    os.truncate(path, path.stat().st_size - 1)


def extend(path: Path) -> None:
    """Gain a byte."""
    with path.open("ab") as file:
        file.write(b"\0")


# What may happen to the file of a chunk of some hundred KiB.
DAMAGES: dict[str, Callable[[Path], None]] = {
    "first bit": lambda path: flip_a_bit(path, 0),
    "a bit at the end of a block": lambda path: flip_a_bit(path, 65_535),
    "a bit at the beginning of a block": lambda path: flip_a_bit(path, 65_536),
    "last bit": lambda path: flip_a_bit(path, -1),
    "truncated": truncate,
    "empty": lambda path: os.truncate(path, 0),
    "extended": extend,
    "missing": Path.unlink,
}
