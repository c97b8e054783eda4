"""Local files that balls are written to: their names, and whether they are there already."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.oserrors import translated_os_errors
from mictlanfs.v4 import tags
from mictlanfs.v4.balls import Ball
from mictlanfs.v4.digests import sha256_of_file


def file_name(ball: Ball, fullname: str | None = None) -> str:
    """What a file with the bytes of a ball is called in a directory of the caller's.

    Never leads out of that directory, whatever the tags say: whoever put the ball chose them.
    """
    extension = ball.tags.get(tags.EXTENSION, "")
    named = f"{ball.ball_id}.{extension}" if extension else ball.ball_id
    for text in (fullname, ball.tags.get(tags.FULLNAME), named):
        name = (text or "").rpartition("/")[2]
        if name not in {"", ".", ".."} and "\0" not in name:
            return name
    detail = "it has no name that a file can have: give one"
    raise MictlanError(Kind.INVALID, "get", ball.ball_id, detail)


async def check_same(path: Path, ball: Ball, *, replace: bool) -> bool:
    """Whether the file `path` has the bytes of a ball already.

    Raises:
        MictlanError: EXISTS when it has others and is not to be replaced.
    """
    with translated_os_errors("read", str(path)):
        is_there, is_same = await trio.to_thread.run_sync(_compare, path, ball)
    if is_there and not is_same and not replace:
        detail = "there is a file with other bytes; replace=True replaces it"
        raise MictlanError(Kind.EXISTS, "get", str(path), detail)
    return is_same


def _compare(path: Path, ball: Ball) -> tuple[bool, bool]:
    """Whether there is anything at `path`, and whether it is a file with the bytes of a ball."""
    if not os.path.lexists(path):
        return False, False
    is_same = (
        path.is_file()
        and path.stat().st_size == ball.size
        and sha256_of_file(path) == ball.checksum.lower()
    )
    return True, is_same
