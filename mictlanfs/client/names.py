"""Paths of the space as lists of names: `BUCKET/a/b` and back. Pure.

A name is bytes without "/" and NUL, 1 to 255 of them; what they mean as text is the user's matter.
"""

from __future__ import annotations

import os
from typing import Final, TypeAlias

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import NAME_SIZE_BYTES_MAX

Names: TypeAlias = tuple[bytes, ...]

# Of the directories that a put makes on its way, less the umask.
DIRECTORY_MODE: Final = 0o777
# Objects on their way have names that begin so, where they need a name before they are whole.
TEMPORARY_NAME_PREFIX: Final = b".mictlanfs-put-"


def parse_path(path: str | bytes) -> Names:
    """The names in `BUCKET/a/b`, in order; empty for the root.

    Empty names and "." are skipped, so `/BUCKET//a/` is `BUCKET/a`.

    Raises:
        MictlanError: INVALID for "..", for a NUL and for text that is no file name; NAME_TOO_LONG.
    """
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise MictlanError(Kind.INVALID, "use path", repr(path), str(error)) from error
    names = tuple(name for name in raw.split(b"/") if name not in {b"", b"."})
    for name in names:
        check_name(name)
    return names


def check_name(name: bytes) -> None:
    """Refuse what can be no name of a file here or on a local disk.

    Raises:
        MictlanError: INVALID or NAME_TOO_LONG.
    """
    if len(name) > NAME_SIZE_BYTES_MAX:
        detail = f"a name has at most {NAME_SIZE_BYTES_MAX} bytes"
        raise MictlanError(Kind.NAME_TOO_LONG, "use name", show_path((name,)), detail)
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise MictlanError(Kind.INVALID, "use name", repr(name), "it cannot name a file")


def show_path(names: Names) -> str:
    """The path for messages: `BUCKET/a/b`, and `/` for the root."""
    return os.fsdecode(b"/".join(names)) or "/"
