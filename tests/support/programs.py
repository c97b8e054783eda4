"""Small Python programs as processes of their own, ended whatever happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mictlanfs.processes import ProcessIdentity, identify

FOR_EVER = "print('runs', flush=True); import time; time.sleep(60)"


@contextmanager
def program(
    text: str, *arguments: str, cwd: Path | None = None, stdin: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that runs `text` and has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        cwd=cwd,
        stdin=stdin,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def known(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    """The identity of a process that runs."""
    identity = identify(process.pid)
    assert identity is not None
    return identity
