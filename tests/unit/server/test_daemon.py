import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.processes import identify, is_running, send_signal, wait_ended
from mictlanfs_server import daemon
from mictlanfs_server.daemon import launch

# Programs get the descriptor to report on as their last argument, as the real command does.
READY = """if True:
    import os, sys, time
    from mictlanfs_server.daemon import report_ready
    print("working", flush=True)
    print(os.getpid(), os.getsid(0), file=open("pid", "w"), flush=True)
    report_ready(int(sys.argv[-1]))
    print("nobody reads this", flush=True)
    time.sleep(60)
"""
# Runs `launch` in a process of its own, as a terminal would.
LAUNCHER = """if True:
    import sys
    from mictlanfs_server import daemon
    daemon.command_line = lambda *words: (sys.executable, "-c", *words)
    try:
        sys.exit(daemon.launch([sys.argv[1]]))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture(autouse=True)
def small_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Make `launch` run small programs in a folder of the test, and end what stays."""
    monkeypatch.setattr(daemon, "command_line", lambda *words: (sys.executable, "-c", *words))
    monkeypatch.chdir(tmp_path)
    yield
    if (tmp_path / "pid").exists():
        process = identify(pid_of_daemon())
        if process is not None:
            send_signal(process, signal.SIGKILL)
            assert wait_ended([process], 10.0) == []


def pid_of_daemon() -> int:
    return int(Path("pid").read_text().split()[0])


def wait_for_pid() -> None:
    deadline_s = time.monotonic() + 30.0
    while not Path("pid").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    process = identify(pid)
    return process is None or wait_ended([process], 10.0) == []


def test_the_launcher_succeeds_as_soon_as_the_daemon_is_ready(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert launch([READY]) == 0
    assert capfd.readouterr().out == "working\n"
    process = identify(pid_of_daemon())
    assert process is not None
    assert is_running(process)


def test_the_daemon_has_left_the_terminal_and_every_pipe_of_its_caller() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, READY], capture_output=True, check=True, timeout=30
    )
    # The output of the caller ends although the daemon goes on.
    assert done.stdout == b"working\n"
    pid, session = map(int, Path("pid").read_text().split())
    assert session == pid != os.getsid(0)
    links = [Path(f"/proc/{pid}/fd/{descriptor}").readlink() for descriptor in range(3)]
    assert links == [Path(os.devnull)] * 3


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("raise SystemExit(2)", 2),
        ("pass", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 1),
    ],
    ids=["refuses", "ends without being ready", "is killed"],
)
def test_the_launcher_fails_when_the_daemon_does(program: str, status: int) -> None:
    assert launch([program]) == status


def test_a_daemon_that_is_never_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "START_TIMEOUT_S", 0.5)
    program = "import os, time; print(os.getpid(), file=open('pid', 'w'), flush=True)\n"
    with pytest.raises(MictlanError) as caught:
        launch([program + "time.sleep(60)"])
    assert caught.value.kind is Kind.TIMED_OUT
    assert has_ended(pid_of_daemon())


def test_ctrl_c_ends_the_daemon_before_the_launcher() -> None:
    program = """if True:
        import os, signal, sys, time
        def end(*_):
            time.sleep(0.2)
            open("ended", "w").close()
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print(os.getpid(), file=open("pid.new", "w"), flush=True)
        os.rename("pid.new", "pid")
        time.sleep(60)
    """
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, program])
    with launcher:
        wait_for_pid()
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(30) == 130
    assert Path("ended").exists()


def test_a_daemon_whose_launcher_is_gone_learns_of_it_and_can_end() -> None:
    program = """if True:
        import os, sys, time
        print(os.getpid(), file=open("pid.new", "w"), flush=True)
        os.rename("pid.new", "pid")
        while not os.path.exists("go"): time.sleep(0.01)
        from mictlanfs_server.daemon import report_ready
        try:
            report_ready(int(sys.argv[-1]))
        except BrokenPipeError:
            open("noticed", "w").close()
    """
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, program])
    with launcher:
        wait_for_pid()
        launcher.kill()
        launcher.wait()
    Path("go").touch()
    assert has_ended(pid_of_daemon())
    assert Path("noticed").exists()


def test_a_program_that_cannot_be_run_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "command_line", lambda *_: ("/nowhere/python",))
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        launch([])
    assert set(os.listdir("/proc/self/fd")) == before
