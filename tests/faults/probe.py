"""Whether a mount can be used: stores a file durably, finds it again, removes it.

`python -m tests.faults.probe FOLDER`, in a process of its own: a call may hang as long as it likes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# More than what is kept in the metadata: the peers are needed, too.
SIZE_BYTES = 100_000


def probe(folder: Path) -> None:
    """Raises OSError, or AssertionError, when something is wrong."""
    path = folder / f"probe-{os.getpid()}"
    body = os.urandom(SIZE_BYTES)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o644)
    try:
        os.pwrite(descriptor, body, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    assert path.read_bytes() == body
    path.unlink()


if __name__ == "__main__":
    probe(Path(sys.argv[1]))
