import os
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.mounts import unmounting
from mictlanfs.mounts.table import find_mount
from mictlanfs.mounts.unmounting import unmount, unmount_if_dead
from tests.support.mounts import FakeMount
from tests.support.programs import FOR_EVER, program

pytestmark = pytest.mark.fuse


def test_unmounting_ends_the_mount(fake: FakeMount) -> None:
    unmount(fake.where)
    assert find_mount(fake.where) is None
    assert fake.process.wait(10) == 0


def test_a_mount_in_use_is_not_unmounted_and_its_user_named(fake: FakeMount) -> None:
    with program(FOR_EVER, cwd=fake.where) as user:
        with pytest.raises(MictlanError, match=rf"\(pid {user.pid}\)") as caught:
            unmount(fake.where)
        assert caught.value.kind is Kind.BUSY
        assert "--lazy" in str(caught.value)
        unmount(fake.where, lazy=True)
        assert find_mount(fake.where) is None


def test_a_use_by_nobody_whom_we_may_see_is_told_all_the_same(
    fake: FakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounting, "users_of", lambda _: [])
    with program(FOR_EVER, cwd=fake.where), pytest.raises(MictlanError, match="fuser -vm"):
        unmount(fake.where)


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path: Path) -> None:
    with pytest.raises(MictlanError, match=str(tmp_path)):
        unmount(tmp_path)


def test_only_a_dead_mount_is_unmounted_for_being_dead(fake: FakeMount) -> None:
    assert not unmount_if_dead(fake.where)
    assert find_mount(fake.where) is not None
    fake.kill()
    assert unmount_if_dead(fake.where)
    assert find_mount(fake.where) is None
    assert not unmount_if_dead(fake.where)


# --- users who are not root ----------------------------------------------------------------------


@pytest.fixture
def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process think that it has to ask fusermount3."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("not_root")
def test_fusermount_does_as_well(fake: FakeMount) -> None:
    unmount(fake.where)
    assert find_mount(fake.where) is None


@pytest.mark.usefixtures("not_root")
def test_fusermount_tells_that_a_mount_is_in_use(fake: FakeMount) -> None:
    with program(FOR_EVER, cwd=fake.where) as user:
        with pytest.raises(MictlanError, match=f"pid {user.pid}") as caught:
            unmount(fake.where)
        assert caught.value.kind is Kind.BUSY
        unmount(fake.where, lazy=True)
        assert find_mount(fake.where) is None


def replace_fusermount(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o700)
    monkeypatch.setattr(unmounting, "FUSERMOUNT", str(helper))


@pytest.mark.usefixtures("not_root")
def test_the_last_thing_that_fusermount_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_fusermount("echo hint >&2; echo not your mount >&2; exit 1", tmp_path, monkeypatch)
    with pytest.raises(MictlanError) as caught:
        unmount(tmp_path)
    assert caught.value.kind is Kind.NOT_PERMITTED
    assert str(caught.value).endswith(": not your mount")


@pytest.mark.usefixtures("not_root")
def test_a_missing_fusermount_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounting, "FUSERMOUNT", "no-such-program")
    with pytest.raises(MictlanError, match="install fuse3") as caught:
        unmount(tmp_path)
    assert caught.value.kind is Kind.UNSUPPORTED


@pytest.mark.usefixtures("not_root")
def test_a_fusermount_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_fusermount("exec sleep 60", tmp_path, monkeypatch)
    monkeypatch.setattr(unmounting, "_LAZY_FUSERMOUNT_TIMEOUT_S", 0.2)
    with pytest.raises(MictlanError, match=r"did not end within 0\.2 s") as caught:
        unmount(tmp_path, lazy=True)
    assert caught.value.kind is Kind.TIMED_OUT
