import os
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.mounts import ability
from mictlanfs.mounts.ability import check_ability


@pytest.fixture
def able(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ordinary user who may mount; the folder has the device and the configuration."""
    (tmp_path / "fuse").write_text("")
    (tmp_path / "fuse.conf").write_text("# user_allow_other\n")
    monkeypatch.setattr(ability, "FUSE_DEVICE", tmp_path / "fuse")
    monkeypatch.setattr(ability, "FUSE_CONFIGURATION", tmp_path / "fuse.conf")
    monkeypatch.setattr(ability, "FUSERMOUNT", "true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


@pytest.mark.usefixtures("able")
def test_an_ordinary_user_may_mount() -> None:
    check_ability(allow_other=False)


def test_a_missing_pyfuse3_is_told_first(able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (able / "fuse").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MictlanError, match=r"pip install 'mictlanfs\[mount\]'") as caught:
        check_ability(allow_other=False)
    assert caught.value.kind is Kind.UNSUPPORTED


def test_a_missing_device_is_told_with_the_remedy(able: Path) -> None:
    (able / "fuse").unlink()
    with pytest.raises(MictlanError, match="modprobe fuse") as caught:
        check_ability(allow_other=False)
    assert caught.value.kind is Kind.UNSUPPORTED


@pytest.mark.usefixtures("able")
def test_a_device_that_may_not_be_opened_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(MictlanError, match=r"may not open .*run as root") as caught:
        check_ability(allow_other=False)
    assert caught.value.kind is Kind.ACCESS_DENIED


@pytest.mark.usefixtures("able")
def test_only_root_mounts_without_fusermount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ability, "FUSERMOUNT", "no-such-program")
    with pytest.raises(MictlanError, match="install fuse3"):
        check_ability(allow_other=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_ability(allow_other=True)


def test_letting_others_in_has_to_be_allowed_by_root(able: Path) -> None:
    with pytest.raises(UsageError, match="user_allow_other"):
        check_ability(allow_other=True)
    (able / "fuse.conf").write_text("mount_max = 5\nuser_allow_other\n")
    check_ability(allow_other=True)
    (able / "fuse.conf").unlink()
    with pytest.raises(UsageError, match="user_allow_other"):
        check_ability(allow_other=True)
