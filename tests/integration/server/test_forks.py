"""Servers of a real space as forks: whose they are, and what the end of the fork server means."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.support.spaces import Space, is_running, running_space, wait_until

TITLE = b"mictlanfs fork server"


def parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])


def title_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def is_healthy(space: Space) -> bool:
    done = space.command("status", "--json", check=False)
    return bool(json.loads(done.stdout)["is_healthy"])


def is_back(space: Space, name: str, former: int) -> bool:
    """Whether a server that was killed runs again."""
    try:
        return space.pid_of(name) != former
    except (AssertionError, TypeError):
        return False


def killed(space: Space, name: str) -> int:
    """Kill a server; returns the process that takes its place."""
    former = space.pid_of(name)
    os.kill(former, signal.SIGKILL)
    wait_until(lambda: is_back(space, name, former), f"{name} is back")
    wait_until(lambda: is_healthy(space), "the space is healthy")
    return space.pid_of(name)


def test_servers_are_forks_and_are_started_by_command_when_there_is_no_fork_server(
    tmp_path: Path,
) -> None:
    with running_space(tmp_path / "data", 2) as space:
        servers = [space.pid_of(name) for name in ("router", "peer-0", "peer-1")]
        [fork_server] = {parent_of(pid) for pid in servers}
        assert title_of(fork_server).startswith(TITLE)
        supervisor = parent_of(fork_server)
        # One that died is a fork again.
        assert parent_of(killed(space, "peer-0")) == fork_server
        os.kill(fork_server, signal.SIGKILL)
        wait_until(lambda: not is_running(fork_server), "the fork server has ended")
        # The others go on, and one that dies is started by its command.
        assert is_running(space.pid_of("router"))
        assert is_healthy(space)
        assert parent_of(killed(space, "peer-1")) == supervisor
        left = [space.pid_of(name) for name in ("router", "peer-0", "peer-1")]
        log = (tmp_path / "data" / "log" / "supervisor.log").read_text()
        assert "without the fork server" in log
    assert not any(is_running(pid) for pid in left)
