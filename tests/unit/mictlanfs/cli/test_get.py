import json
import os
from pathlib import Path

import pytest

from mictlanfs.cli.exits import Exit
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run


@pytest.fixture
def stored(cli: Run, space: FakeSpace, tmp_path: Path) -> FakeSpace:
    """`b/one` and `b/d/sub/three` in the space."""
    cli("put", "-", "b/one", stdin=b"1")
    cli("put", "-", "b/d/sub/three", stdin=b"333")
    return space


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with a subdirectory `there`, to work in."""
    (tmp_path / "here" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("destination", "file"),
    [(".", "one"), ("new", "new"), ("there", "there/one"), ("there/x", "there/x")],
)
def test_one_file_goes_where_cp_would_put_it(
    cli: Run, stored: FakeSpace, here: Path, destination: str, file: str
) -> None:
    done = cli("get", "b/one", destination)
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert (here / file).read_bytes() == b"1"


@pytest.mark.parametrize(
    ("source", "destination", "file"),
    [
        ("b/d", ".", "d/sub/three"),
        ("b/d", "new", "new/sub/three"),
        ("b", ".", "b/d/sub/three"),
        ("b", "new", "new/d/sub/three"),
    ],
)
def test_a_directory_goes_where_cp_would_put_it(
    cli: Run, stored: FakeSpace, here: Path, source: str, destination: str, file: str
) -> None:
    assert cli("get", "-r", source, destination).code == 0
    assert (here / file).read_bytes() == b"333"


def test_a_dash_is_standard_output(cli: Run, stored: FakeSpace) -> None:
    assert cli("get", "b/one", "b/d/sub/three", "-").out == b"1333"


def test_json_says_what_was_got(cli: Run, stored: FakeSpace, here: Path) -> None:
    done = cli("get", "-r", "--json", "b/one", "b/d", "there")
    assert {item["path"]: item["size"] for item in json.loads(done.text)} == {
        "there/one": 1,
        "there/d/sub/three": 3,
    }


def test_a_file_that_fails_does_not_keep_the_others_back(
    cli: Run, stored: FakeSpace, here: Path
) -> None:
    done = cli("get", "b/none", "b/d", "b/one", "there")
    assert done.code == Exit.NOT_FOUND
    assert done.err.splitlines() == [
        "mictlanfs: find b/none: there is no such file or directory",
        "mictlanfs: get b/d: a directory needs -r",
    ]
    assert os.listdir(here / "there") == ["one"]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["b/one"], Exit.USAGE),
        (["/", "x"], Exit.USAGE),
        (["b/one", "b/d", "new"], Exit.USAGE),
        (["b/one", "new/"], Exit.USAGE),
        (["-r", "b/d", "-"], Exit.USAGE),
        (["--json", "b/one", "-"], Exit.USAGE),
        (["b/one", "no/such/place"], Exit.NOT_FOUND),
        (["b/one", "there/one/x"], Exit.NOT_FOUND),
        (["b", "."], Exit.FAILED),
    ],
)
def test_what_cannot_be_is_refused(
    cli: Run, stored: FakeSpace, here: Path, args: list[str], code: int
) -> None:
    done = cli("get", *args)
    assert done.code == code
    assert done.err.count("\n") == 1
    assert os.listdir(here) == ["there"]


def test_a_local_directory_in_the_way_of_a_file_is_not_taken_for_one_of_the_space(
    cli: Run, stored: FakeSpace, here: Path
) -> None:
    (here / "there" / "one").mkdir()
    done = cli("get", "-r", "b/one", "there")
    assert done.code != 0
    assert os.listdir(here / "there" / "one") == []


def test_damage_has_its_code(cli: Run, stored: FakeSpace, here: Path) -> None:
    for chunk_id in stored.router.inline:
        stored.router.inline[chunk_id] = b"other"
    for peer in stored.peers:
        for chunk_id in peer.chunks:
            peer.damage(chunk_id)
    assert cli("get", "b/one", ".").code == Exit.CORRUPT
    assert os.listdir(here) == ["there"]
