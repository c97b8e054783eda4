"""The lifeline: a pipe that tells a child when its supervisor is gone, however that ended.

Only the supervisor holds the write end, so the read end, which children inherit, comes to its end
with the supervisor. Router and peers watch it themselves (`--lifeline-fd`). For a command that
knows nothing of lifelines there is `python -m mictlanfs_server.lifeline FD ARGUMENT...`: it runs
`mictlanfs ARGUMENT...` in its own process and sends it SIGTERM at the end of the lifeline.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mictlanfs.cli.main import run


@contextmanager
def lifeline() -> Iterator[int]:
    """A descriptor for children to inherit: end of file there means that this process is gone."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(write_end)
        os.close(read_end)


def main() -> None:
    """Run a command line on a lifeline, and end the process with its exit code."""
    descriptor, arguments = int(sys.argv[1]), sys.argv[2:]
    # A daemon: it must not keep a command that has ended from ending the process.
    threading.Thread(target=_watch, args=(descriptor,), name="lifeline", daemon=True).start()
    sys.exit(run(arguments))


def _watch(descriptor: int) -> None:
    # Not a read: the servers share the pipe, and may have made it one that does not block.
    poll = select.poll()
    poll.register(descriptor, 0)
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
