"""Values as JSON, for small files that our processes leave for each other.

Owns the text form only; `durable` replaces files. Never decides what a damaged one means.
"""

from __future__ import annotations

import json
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
