from pathlib import Path

import pytest

from mictlanfs import paths
from mictlanfs.errors import UsageError
from mictlanfs.names import uri_of

URI = "mictlanx://r@127.0.0.1:60666/?protocol=http"
OTHER = "mictlanx://r@127.0.0.1:60667/?protocol=http"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file, which is not there yet."""
    return folder_of(tmp_path, "own", monkeypatch)


@pytest.fixture
def of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path) -> Path:
    """The file of the machine, which is not there yet."""
    folder = tmp_path / "etc"
    folder.mkdir()
    monkeypatch.setattr(paths, "CONFIGURATION_DIRECTORY_OF_ALL", folder)
    return folder / "spaces.conf"


def folder_of(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / name))
    folder = tmp_path / name / "mictlanfs"
    folder.mkdir(parents=True)
    return folder / "spaces.conf"


def test_a_uri_is_itself_whatever_the_files_say(own: Path, of_all: Path) -> None:
    own.write_text("not TOML")
    assert uri_of(URI) == URI


def test_a_name_is_looked_up_in_the_users_file_first(own: Path, of_all: Path) -> None:
    of_all.write_text(f'[spaces]\nattic = "{OTHER}"\ncellar = "{OTHER}"\n')
    assert uri_of("attic") == OTHER
    own.write_text(f'[spaces]\nattic = "{URI}"\n')
    assert uri_of("attic") == URI
    assert uri_of("cellar") == OTHER


def test_without_a_home_the_file_of_the_machine_is_left(
    of_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    of_all.write_text(f'[spaces]\nattic = "{URI}"\n')
    assert uri_of("attic") == URI


def test_a_name_nobody_knows_is_refused_with_the_files_it_can_be_written_in(
    own: Path, of_all: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        uri_of("attic")
    for text in ("attic = ", str(own), str(of_all)):
        assert text in str(caught.value)


@pytest.mark.parametrize("spec", ["", "/dev/sda1", "a b", "-x", ".", "a" * 65, "host:/path", "é"])
def test_what_is_neither_a_uri_nor_a_name_is_refused(own: Path, of_all: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="neither a URI"):
        uri_of(spec)


def test_a_uri_that_is_wrong_is_not_taken_for_a_name() -> None:
    with pytest.raises(UsageError, match="mictlanx://"):
        uri_of("http://x")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("spaces", "is not TOML"),
        ("\0", "is not TOML"),
        ("attic = 'x'", r"has no table \[spaces\]"),
        ("spaces = 3", r"has no table \[spaces\]"),
        ("[spaces]\nattic = 3", "attic is not a text"),
        ("[spaces]\nattic = 'x'", "attic: "),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(
    own: Path, of_all: Path, content: str, text: str
) -> None:
    own.write_text(content)
    with pytest.raises(UsageError, match=text) as caught:
        uri_of("attic")
    assert str(own) in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(own: Path, of_all: Path) -> None:
    own.mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        uri_of("attic")


def test_a_file_in_another_encoding_is_an_error(own: Path, of_all: Path) -> None:
    own.write_bytes(b"[spaces]\na = '\xff'")
    with pytest.raises(UsageError, match="is not TOML"):
        uri_of("attic")
