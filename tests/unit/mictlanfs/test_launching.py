import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from mictlanfs.launching import (
    REPORT_SIZE_BYTES_MAX,
    describe_status,
    launched,
    module_command,
)
from mictlanfs.processes import is_running, send_signal, wait_ended
from tests.support.programs import known

SOON_S = 20.0


def running(text: str) -> Callable[[int], Sequence[str]]:
    """The command that runs a program; `fd` is where it reports."""
    return lambda report_fd: (sys.executable, "-c", f"import os, time; fd = {report_fd}\n{text}")


def test_a_module_of_ours_runs_whatever_the_directory_holds(tmp_path: Path) -> None:
    (tmp_path / "mictlanfs").mkdir()
    (tmp_path / "mictlanfs" / "__init__.py").write_text("raise SystemExit('shadowed')")
    command = module_command("mictlanfs.cli.main", "--version")
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith(b"mictlanfs ")


def test_a_daemon_goes_on_after_the_block_in_a_session_of_its_own() -> None:
    report = "os.write(fd, b'wor'); time.sleep(0.05); os.write(fd, b'king\\n'); time.sleep(60)"
    with launched(running(report), end_timeout_s=SOON_S) as daemon:
        identity = known(daemon.process)
        assert daemon.read_report(SOON_S) == b"working\n"
        assert os.getsid(identity.pid) == identity.pid
    assert is_running(identity)
    assert daemon.process.poll() == 0, "nobody is warned that it was left"
    send_signal(identity, signal.SIGKILL)
    assert wait_ended([identity], SOON_S) == []
    os.waitpid(identity.pid, 0)


@pytest.mark.parametrize("grace_s", [SOON_S, 0.05])
def test_a_daemon_is_ended_when_the_block_raises(grace_s: float) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" * (grace_s < SOON_S)
    program = running(f"{deaf}os.write(fd, b'x\\n'); time.sleep(60)")
    with suppress(KeyboardInterrupt), launched(program, end_timeout_s=grace_s) as daemon:
        assert daemon.read_report(SOON_S) == b"x\n"
        raise KeyboardInterrupt
    assert daemon.process.returncode == (-signal.SIGKILL if deaf else -signal.SIGTERM)


def test_a_daemon_that_says_nothing_in_time_is_told_from_one_that_ended() -> None:
    with launched(running("time.sleep(60)"), end_timeout_s=SOON_S) as daemon:
        assert daemon.read_report(0.01) is None
        daemon.process.kill()
        assert daemon.read_report(SOON_S) == b""
        assert daemon.process.wait(SOON_S) == -signal.SIGKILL


def test_a_report_that_never_ends_is_cut_off() -> None:
    with launched(running("os.write(fd, b'x' * 10_000_000)"), end_timeout_s=SOON_S) as daemon:
        report = daemon.read_report(SOON_S)
        assert report is not None
        assert REPORT_SIZE_BYTES_MAX <= len(report) < 2 * REPORT_SIZE_BYTES_MAX
        daemon.process.kill()
        daemon.process.wait()


def test_what_a_daemon_prints_goes_where_it_is_told(tmp_path: Path) -> None:
    program = running("print('out', flush=True); os.write(2, b'err\\n')")
    with (
        (tmp_path / "log").open("wb") as log,
        launched(program, end_timeout_s=SOON_S, output=log.fileno()) as daemon,
    ):
        assert daemon.process.wait(SOON_S) == 0
    assert (tmp_path / "log").read_text() == "out\nerr\n"


def test_a_program_that_cannot_be_started_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    with (
        pytest.raises(FileNotFoundError),
        launched(lambda _: ("/no/such/program",), end_timeout_s=SOON_S),
    ):
        pass
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-9, "killed by SIGKILL"),
        (-77, "killed by signal 77"),
    ],
)
def test_an_exit_status_is_told_for_people(status: int, words: str) -> None:
    assert describe_status(status) == words
