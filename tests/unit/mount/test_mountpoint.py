import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.errors import UsageError
from mictlanfs.mounts.pulse import Pulse
from mictlanfs.mounts.table import find_mount
from mictlanfs_mount import mountpoint
from mictlanfs_mount.mountpoint import prepare
from tests.support.mounts import URI, FakeMount, MountTable


def silent(_: str) -> None:
    """Nobody is to be told anything."""
    pytest.fail(f"said {_!r}")


def test_an_empty_directory_is_prepared_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert prepare(tmp_path / "m", silent) == tmp_path / "m"


def test_a_missing_mountpoint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"mkdir -p {tmp_path}/m"):
        prepare(tmp_path / "m", silent)


def test_a_file_is_no_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(UsageError, match="is not a directory"):
        prepare(tmp_path / "f", silent)
    with pytest.raises(UsageError, match="not a directory"):
        prepare(tmp_path / "f" / "m", silent)


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(UsageError, match=f"ls -A {tmp_path}"):
        prepare(tmp_path, silent)


def test_a_directory_that_cannot_be_entered_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    (tmp_path / "m").mkdir()
    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(UsageError, match="may not enter"):
        prepare(tmp_path / "m", silent)


def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_: False)
    (tmp_path / "m").mkdir()
    with pytest.raises(UsageError, match="may not write"):
        prepare(tmp_path / "m", silent)


@pytest.mark.parametrize("text", ["it is", "not there", "a file"])
def test_every_refusal_is_one_line_that_names_the_path(tmp_path: Path, text: str) -> None:
    if text == "it is":
        (tmp_path / text).mkdir()
        (tmp_path / text / "x").write_text("")
    elif text == "a file":
        (tmp_path / text).write_text("")
    with pytest.raises(UsageError) as caught:
        prepare(tmp_path / text, silent)
    assert str(tmp_path / text) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- mounts that are there -----------------------------------------------------------------------


def test_a_mount_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MountTable(tmp_path / "mountinfo", monkeypatch).add(tmp_path / "m", "fuse.sshfs", "host:")
    with pytest.raises(UsageError, match=r"\(fuse\.sshfs, host:\): choose another"):
        prepare(tmp_path / "m", silent)


def test_a_mount_that_hangs_is_told_from_one_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MountTable(tmp_path / "mountinfo", monkeypatch).add(tmp_path / "m")
    monkeypatch.setattr(mountpoint, "pulse_of", lambda _: Pulse.HANGS)
    with pytest.raises(UsageError, match=r"does not answer: .*umount --lazy"):
        prepare(tmp_path / "m", silent)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeMount]:
    (tmp_path / "m").mkdir()
    fake = FakeMount(tmp_path / "m", tmp_path)
    yield fake
    fake.end()


@pytest.mark.fuse
def test_a_living_mount_is_not_mounted_over(fake: FakeMount) -> None:
    with pytest.raises(UsageError, match="mictlanfs umount") as caught:
        prepare(fake.where, silent)
    assert URI in str(caught.value)


@pytest.mark.fuse
def test_a_dead_mount_is_unmounted_first(fake: FakeMount) -> None:
    fake.kill()
    said: list[str] = []
    assert prepare(fake.where, said.append) == fake.where
    assert find_mount(fake.where) is None
    assert len(said) == 1
    assert str(fake.where) in said[0]
