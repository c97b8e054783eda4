import os
import signal
import subprocess
import time
from collections.abc import Iterator

import msgspec
import pytest

from mictlanfs.processes import (
    ProcessIdentity,
    current_process,
    identify,
    is_running,
    send_signal,
    started_at_s,
    wait_ended,
)
from tests.support.programs import FOR_EVER, known, program


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with program(FOR_EVER) as process:
        yield process


def successor_of(identity: ProcessIdentity) -> ProcessIdentity:
    """Another process that got the same number."""
    return msgspec.structs.replace(identity, started_ticks=identity.started_ticks + 1)


def test_the_process_that_asks_is_running() -> None:
    assert current_process().pid == os.getpid()
    assert is_running(current_process())


def test_an_identity_survives_being_written_down() -> None:
    text = msgspec.json.encode(current_process())
    assert msgspec.json.decode(text, type=ProcessIdentity) == current_process()


def test_a_process_is_running_until_it_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    identity = known(sleeper)
    assert identity.pid == sleeper.pid
    assert is_running(identity)
    sleeper.kill()
    assert wait_ended([identity], 10.0) == []
    # It waits for its parent, which has not asked yet.
    assert not is_running(identity)
    assert identify(sleeper.pid) is None
    sleeper.wait()
    assert identify(sleeper.pid) is None
    assert wait_ended([identity], 0.0) == []


def test_a_number_used_again_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    stranger = successor_of(known(sleeper))
    assert not is_running(stranger)
    assert wait_ended([stranger], 0.0) == []


def test_a_number_of_another_boot_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    assert not is_running(msgspec.structs.replace(known(sleeper), boot_id="another"))


def test_a_signal_never_reaches_a_process_that_got_the_number_later(
    sleeper: subprocess.Popen[bytes],
) -> None:
    assert not send_signal(successor_of(known(sleeper)), signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.1)


def test_a_signal_reaches_the_process_meant(sleeper: subprocess.Popen[bytes]) -> None:
    assert send_signal(known(sleeper), signal.SIGTERM)
    assert sleeper.wait(10.0) == -signal.SIGTERM


def test_a_signal_to_what_ended_says_so(sleeper: subprocess.Popen[bytes]) -> None:
    identity = known(sleeper)
    sleeper.kill()
    sleeper.wait()
    assert not send_signal(identity, signal.SIGTERM)


def test_waiting_gives_up_after_the_time_and_tells_who_is_left(
    sleeper: subprocess.Popen[bytes],
) -> None:
    left, ended = known(sleeper), successor_of(known(sleeper))
    started_s = time.monotonic()
    assert wait_ended([left, ended], 0.05) == [left]
    assert time.monotonic() - started_s < 5.0


def test_the_start_is_told_as_time_of_day(sleeper: subprocess.Popen[bytes]) -> None:
    assert abs(started_at_s(known(sleeper)) - time.time()) < 10.0


def test_a_name_with_brackets_confuses_nobody() -> None:
    # prctl(2), PR_SET_NAME.
    named = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) Z 1 (b'); "
    with program(named + FOR_EVER) as process:
        assert is_running(known(process))
