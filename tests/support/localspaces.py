"""Spaces on this machine for tests of the supervisor: run by commands, looked at from outside.

Nothing that was started outlives a test, whatever it killed: every process that `space.json` ever
named and that runs at the end is ended, and fails the test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mictlanfs.errors import UsageError
from mictlanfs.processes import ProcessIdentity, is_running, send_signal, wait_ended
from mictlanfs_server.space import SpaceDirectory, SpaceRecord

PROGRAMS = Path(sys.executable).parent
DEADLINE_S = 90.0
_INTERVAL_S = 0.05


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return when `condition` is true; fail with `what` after the deadline."""
    give_up_at_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up_at_s, f"{what}: not within {deadline_s:g} s"
        time.sleep(_INTERVAL_S)


@dataclass
class LocalSpace:
    """A directory to be in, and the space whose data lies in `data` below it.

    Attributes:
        folder: the current directory of every command.
        seen: every process that was ever recorded, as far as the test looked.
    """

    folder: Path
    seen: set[ProcessIdentity] = field(default_factory=set)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def environment(self) -> dict[str, str]:
        """A user of its own, with our programs on PATH and no space chosen."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MICTLAN", "XDG_"))}
        path = f"{PROGRAMS}{os.pathsep}{clean['PATH']}"
        return {**clean, "PATH": path, "XDG_STATE_HOME": str(self.folder / "state")}

    def popen(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start `mictlanfs WORDS`, with what it says in pipes."""
        return subprocess.Popen(
            ["mictlanfs", *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str | Path, status: int = 0) -> str:
        """Run `mictlanfs WORDS`; what it says, on standard error when it was to fail."""
        with self.popen(*words) as process:
            output, errors = process.communicate(timeout=DEADLINE_S)
        self.look()
        said = f"mictlanfs {' '.join(map(str, words))}: {process.returncode}\n{output}{errors}"
        assert process.returncode == status, said
        return output if status == 0 else errors

    def shell(self, command: str) -> str:
        """Run a shell command as a user would; what it says."""
        done = subprocess.run(
            ["sh", "-euc", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *options: str) -> str:
        """`server start --detach` on any free ports; the URI."""
        where = ("--data", "data", "--port", "0", "--peer-port", "0")
        return self.run("server", "start", *where, "--detach", *options).strip()

    def up(self, *options: str) -> str:
        """`up --detach` on any free ports, mounted at `vss`; what it says."""
        where = ("vss", "--data", "data", "--port", "0", "--peer-port", "0")
        return self.run("up", *where, "--detach", *options)

    def status(self) -> dict[str, Any]:
        """What `server status --json` says."""
        with self.popen("server", "status", "--data", "data", "--json") as process:
            output, errors = process.communicate(timeout=DEADLINE_S)
        self.look()
        found = json.loads(output or "null")
        assert isinstance(found, dict), errors
        assert process.returncode == {"healthy": 0, "degraded": 1, "stopped": 3}[found["state"]]
        return found

    def is_healthy(self) -> bool:
        return bool(self.status()["state"] == "healthy")

    def wait_until_healthy(self) -> None:
        wait_until(self.is_healthy, "the space is healthy")

    def record(self) -> SpaceRecord:
        """What `space.json` says."""
        record = SpaceDirectory(self.data).read_record()
        assert record is not None
        return record

    def look(self) -> None:
        """Remember the processes that are recorded now."""
        try:
            record = SpaceDirectory(self.data).read_record()
        except UsageError:
            return
        self.seen |= set(record.processes if record else ())

    def process(self, name: str) -> ProcessIdentity:
        """The process that serves as `name` now."""
        self.look()
        record = self.record()
        process = record.supervisor if name == "supervisor" else record.children.get(name)
        assert process is not None, f"no {name} is recorded"
        return process

    def kill(self, name: str) -> ProcessIdentity:
        """kill -9 one process, and return when it has ended."""
        process = self.process(name)
        send_signal(process, signal.SIGKILL)
        assert wait_ended([process], 10.0) == []
        return process

    def wait_until_replaced(self, name: str, killed: ProcessIdentity) -> None:
        """Return when another process than `killed` serves as `name`."""

        def is_replaced() -> bool:
            self.look()
            return self.record().children.get(name) not in {None, killed}

        wait_until(is_replaced, f"{name} is started again")

    def left(self) -> list[ProcessIdentity]:
        """Processes of the space that run."""
        self.look()
        return [process for process in self.seen if is_running(process)]


@contextmanager
def local_space(folder: Path) -> Iterator[LocalSpace]:
    """A space that is stopped on leaving, and must leave nothing behind."""
    space = LocalSpace(folder)
    try:
        yield space
        if space.data.exists():
            space.run("server", "stop", "--data", "data")
        assert space.left() == [], "processes were left"
    finally:
        for process in space.left():
            send_signal(process, signal.SIGKILL)
