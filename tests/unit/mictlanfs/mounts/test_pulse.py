import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.mounts.pulse import Pulse, is_dead, pulse_of
from mictlanfs.mounts.table import is_mounted
from mictlanfs.mounts.unmounting import unmount
from tests.support.mounts import FakeMount, MountTable


def failing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every file system answer with an error."""

    def fail(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "statvfs", fail)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file system answers before the end of the test."""
    over = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda _: over.wait(30.0))
    yield
    over.set()


def test_a_directory_that_answers_is_alive(folder: Path) -> None:
    assert pulse_of(folder) is Pulse.ALIVE


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])
def test_a_mount_is_dead_when_its_connection_is_or_ends_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing(number, monkeypatch)
    assert pulse_of(folder) is Pulse.DEAD


def test_an_error_is_an_answer_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(errno.EIO, monkeypatch)
    assert pulse_of(folder) is Pulse.ALIVE


@pytest.mark.usefixtures("hanging")
def test_a_mount_that_hangs_is_not_waited_for(folder: Path) -> None:
    assert pulse_of(folder, 0.05) is Pulse.HANGS


def test_only_a_space_can_be_dead(
    table: MountTable, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add(folder)
    assert not is_dead(folder), "it answers"
    failing(errno.ENOTCONN, monkeypatch)
    assert is_dead(folder)
    assert not is_dead(folder.parent), "nothing is mounted there"
    table.add(folder, kind="fuse.sshfs")
    assert not is_dead(folder), "it is another's"


@pytest.mark.fuse
def test_a_real_mount_lives_hangs_and_dies(fake: FakeMount) -> None:
    assert pulse_of(fake.where) is Pulse.ALIVE
    # Fills the kernel's cache, which goes on answering stat(2).
    os.stat(fake.where)
    fake.process.send_signal(signal.SIGSTOP)
    assert pulse_of(fake.where, 0.2) is Pulse.HANGS
    fake.process.send_signal(signal.SIGCONT)
    assert not is_dead(fake.where)
    fake.kill()
    assert pulse_of(fake.where) is Pulse.DEAD
    assert is_dead(fake.where)


@pytest.mark.fuse
def test_a_mount_that_hung_can_be_unmounted_at_once(fake: FakeMount) -> None:
    fake.process.send_signal(signal.SIGSTOP)
    try:
        assert pulse_of(fake.where, 0.2) is Pulse.HANGS
        unmount(fake.where)
    finally:
        fake.process.send_signal(signal.SIGCONT)
    assert not is_mounted(fake.where)
