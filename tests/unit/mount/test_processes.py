import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mictlanfs_mount.processes import (
    ProcessIdentity,
    identify,
    is_running,
    send_signal,
    wait_ended,
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def identity_of(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    found = identify(process.pid)
    assert found is not None
    return found


def test_a_process_is_identified_as_long_as_it_runs(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper)
    assert identity.pid == sleeper.pid
    assert is_running(identity)
    assert not wait_ended(identity, 0)
    sleeper.kill()
    assert wait_ended(identity, 10)
    assert not is_running(identity), "a zombie has ended"
    sleeper.wait()
    assert identify(sleeper.pid) is None
    assert wait_ended(identity, 0)


def test_another_process_of_the_same_number_is_left_alone(
    sleeper: subprocess.Popen[bytes],
) -> None:
    other = replace(identity_of(sleeper), started_ticks=1)
    assert not is_running(other)
    assert wait_ended(other, 0)
    send_signal(other, signal.SIGKILL)
    assert is_running(identity_of(sleeper))


def test_a_signal_reaches_the_process(sleeper: subprocess.Popen[bytes]) -> None:
    send_signal(identity_of(sleeper), signal.SIGTERM)
    assert sleeper.wait(10) == -signal.SIGTERM


def test_a_name_with_parentheses_confuses_nobody() -> None:
    code = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'a) Z 1 (b'); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_running(identity_of(process))
        process.kill()


def test_this_process_runs() -> None:
    found = identify(os.getpid())
    assert found is not None
    assert is_running(found)
