"""A tour that walks by itself: every command of the README's, with its real output.

`make demo` runs it in a temporary directory that is removed afterwards, with any free ports and as
a user of its own, so it disturbs nothing. The steps are data: the documents quote them, and a test
walks the same tour.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

STEP_TIMEOUT_S = 180.0
MOUNTPOINT, DATA = "vss", "vss-data"


@dataclass(frozen=True)
class Step:
    """One command of the tour, for a shell in an empty directory, and why one would type it."""

    title: str
    command: str


STEPS = (
    Step(
        "Start a router and three peers on this machine, and mount their space at ./vss",
        "mictlanfs up --detach --port 0 --peer-port 0",
    ),
    Step("A directory in the root is a bucket", "mkdir vss/photos"),
    Step(
        "A file is a file, for every program",
        "seq 1 200000 > numbers.txt\n"
        "cp numbers.txt vss/photos/\n"
        "echo 'buy film' > vss/photos/notes.txt\n"
        "cat vss/photos/notes.txt\n"
        "ls -l vss/photos",
    ),
    Step("The same without a mount: list", "mictlanfs ls -l photos"),
    Step(
        "... fetch",
        "mictlanfs get photos/numbers.txt copy.txt\ncmp numbers.txt copy.txt && echo the same",
    ),
    Step("... and store", "mictlanfs put copy.txt photos/copies/2.txt\nls vss/photos/copies"),
    Step(
        "Kill a peer, and what it holds is read from another",
        'kill -9 "$(mictlanfs server status | awk \'$1 == "peer-1" { print $2 }\')"\n'
        "mictlanfs get photos/numbers.txt - | cmp - numbers.txt && echo still the same",
    ),
    Step(
        "It is back soon",
        "until mictlanfs server status > /dev/null; do sleep 0.3; done\nmictlanfs server status",
    ),
    Step("Stop everything; the data stays", "mictlanfs down\nls"),
)


def environment(folder: Path) -> dict[str, str]:
    """A user of its own, with our programs on PATH and no space chosen."""
    chosen = {k: v for k, v in os.environ.items() if not k.startswith("MICTLAN")}
    programs = Path(sys.executable).parent
    return {
        **chosen,
        "PATH": f"{programs}{os.pathsep}{chosen.get('PATH', os.defpath)}",
        "XDG_STATE_HOME": str(folder / ".state"),
        "XDG_CACHE_HOME": str(folder / ".cache"),
    }


def run_step(step: Step, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one step in `folder`; its output and errors come together, as on a terminal."""
    return subprocess.run(
        ["sh", "-euc", step.command],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )


def walk(folder: Path) -> int:
    """Walk the tour in `folder`, which is empty; the exit status of the first step that fails."""
    for step in STEPS:
        typed = "\n".join(f"$ {line}" for line in step.command.splitlines())
        print(f"\n# {step.title}\n{typed}", flush=True)
        done = run_step(step, folder)
        print(done.stdout, end="", flush=True)
        if done.returncode != 0:
            print(f"demo: this failed with status {done.returncode}", file=sys.stderr)
            return done.returncode
    return 0


def main() -> int:
    """Walk the tour in a directory of its own, and leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="mictlanfs-demo-"))
    try:
        return walk(folder)
    except KeyboardInterrupt:
        return 130
    finally:
        if (folder / DATA).exists():
            run_step(
                Step("End what a failed tour has left", f"mictlanfs down --data {DATA}"), folder
            )
        # Nothing must walk into a mount to remove it.
        if not os.path.ismount(folder / MOUNTPOINT):
            shutil.rmtree(folder, ignore_errors=True)


def _terminate(*_: object) -> NoReturn:
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
