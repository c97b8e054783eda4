import os
import stat
import tempfile
from pathlib import Path

import pytest

from mictlanfs import paths
from mictlanfs.errors import Kind, MictlanError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own, and none of the XDG variables."""
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "home"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directories_lie_where_xdg_says_by_default(home: Path) -> None:
    assert paths.state_dir() == home / ".local/state/mictlanfs"
    assert paths.cache_dir() == home / ".cache/mictlanfs"


def test_the_variables_move_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert paths.state_dir() == tmp_path / "XDG_STATE_HOME/mictlanfs"
    assert paths.cache_dir() == tmp_path / "XDG_CACHE_HOME/mictlanfs"
    assert paths.runtime_dir() == tmp_path / "XDG_RUNTIME_DIR/mictlanfs"


def test_a_relative_path_in_a_variable_is_ignored(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    assert paths.state_dir() == home / ".local/state/mictlanfs"


def test_directories_are_for_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(paths, "RUNTIME_DIRECTORY_OF_ROOT", paths.state_dir() / "run")
    for directory in (paths.state_dir(), paths.cache_dir(), paths.runtime_dir()):
        assert mode(directory) == 0o700


def test_root_without_a_session_uses_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path("/run/mictlanfs") == paths.RUNTIME_DIRECTORY_OF_ROOT
    monkeypatch.setattr(paths, "RUNTIME_DIRECTORY_OF_ROOT", tmp_path / "run")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.runtime_dir() == tmp_path / "run"


def test_others_use_a_directory_of_their_own_below_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner or 0)
    monkeypatch.setattr(paths, "RUNTIME_DIRECTORY_OF_ROOT", tmp_path / "unused")
    if owner == 0:
        # Who runs this as root is not somebody else, whatever geteuid() is made to say.
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        os.mkdir(tmp_path / "mictlanfs-4242", 0o700)
        os.chown(tmp_path / "mictlanfs-4242", 4242, -1)
        assert paths.runtime_dir() == tmp_path / "mictlanfs-4242"
        return
    assert paths.runtime_dir() == tmp_path / f"mictlanfs-{owner}"


@pytest.mark.parametrize("trap", ["foreign", "open", "link"])
def test_a_trap_below_the_temporary_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    owner = os.geteuid()
    uid = owner + 1 if trap == "foreign" else owner or 4242
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    directory = tmp_path / f"mictlanfs-{uid}"
    if trap == "link":
        (tmp_path / "elsewhere").mkdir(0o700)
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.mkdir()
        directory.chmod(0o777 if trap == "open" else 0o700)
    with pytest.raises(MictlanError) as caught:
        paths.runtime_dir()
    assert caught.value.kind is Kind.ACCESS_DENIED


def test_a_place_that_cannot_be_made_is_an_error_that_names_it(home: Path) -> None:
    home.write_text("a file in the way")
    with pytest.raises(MictlanError) as caught:
        paths.state_dir()
    assert caught.value.kind is Kind.NOT_DIRECTORY
    assert str(home) in str(caught.value)


# --- the last space ------------------------------------------------------------------------------


def test_the_last_space_is_remembered(tmp_path: Path) -> None:
    assert paths.read_last_space() is None
    paths.record_last_space("mictlanx://a@h:1", tmp_path / "one")
    paths.record_last_space("mictlanx://b@h:2", tmp_path / "two\udcff")
    assert paths.read_last_space() == paths.LastSpace("mictlanx://b@h:2", tmp_path / "two\udcff")
    assert os.listdir(paths.state_dir()) == ["last-space.json"]


def test_a_relative_data_directory_is_recorded_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.record_last_space("mictlanx://a@h:1", Path("data"))
    last = paths.read_last_space()
    assert last is not None
    assert last.data == tmp_path / "data"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"uri": 1, "data": "x"}', '{"uri": "x"}', "\udcff"]
)
def test_a_damaged_record_counts_as_none(text: str) -> None:
    paths.last_space_file().write_bytes(text.encode("utf-8", "surrogateescape"))
    assert paths.read_last_space() is None


def test_a_record_that_cannot_be_written_is_an_error_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.record_last_space("mictlanx://a@h:1", tmp_path)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(MictlanError) as caught:
        paths.record_last_space("mictlanx://b@h:2", tmp_path)
    assert caught.value.kind is Kind.ACCESS_DENIED
    last = paths.read_last_space()
    assert last is not None
    assert last.uri == "mictlanx://a@h:1"
    assert os.listdir(paths.state_dir()) == ["last-space.json"]
