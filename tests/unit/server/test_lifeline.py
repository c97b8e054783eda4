import os
import subprocess
import sys

from mictlanfs_server.child import guarded_command_line
from mictlanfs_server.lifeline import lifeline

# Puts a command into our command line that tells how it ends.
WAITING = """if True:
    import signal, sys, time
    from mictlanfs_server import lifeline
    def wait(arguments):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
        print(*arguments, flush=True)
        time.sleep(60)
    lifeline.run = wait
    lifeline.main()
"""


def test_the_lifeline_ends_with_its_owner() -> None:
    with lifeline() as read_end:
        ours = os.dup(read_end)
        assert not os.get_inheritable(read_end)
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_a_command_is_told_to_end_when_its_lifeline_does() -> None:
    read_end, write_end = os.pipe()
    # As the servers that share it do.
    os.set_blocking(read_end, False)
    command = [sys.executable, "-c", WAITING, str(read_end), "mount", "x"]
    process = subprocess.Popen(
        command, pass_fds=[read_end], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(read_end)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"mount x\n"
        assert process.poll() is None
        os.close(write_end)
        assert process.stderr.read() == b"told to end\n"
        assert process.wait(30) == 1


def test_a_command_that_ends_by_itself_ends_the_process_with_its_code() -> None:
    with lifeline() as read_end:
        done = subprocess.run(
            guarded_command_line(read_end, "ls", "--nonsense"),
            pass_fds=[read_end],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    assert done.returncode == 2
    assert "--nonsense" in done.stderr
