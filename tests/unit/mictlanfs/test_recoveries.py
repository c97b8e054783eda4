import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mictlanfs import recoveries as module
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.recoveries import (
    Applied,
    KnownPath,
    LostOperation,
    Recovery,
    list_recoveries,
    new_recovery_id,
    open_recovery,
    write_recovery,
)
from tests.support.recoveries import ID, lost_file, written
from tests.support.strategies import values_of

RANGES = ((3, 5), (100, 2))
BODY = b"abcdefg"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "mictlanfs" / "recovery"


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=40,
    deadline=None,
)
@given(
    ops=st.lists(values_of(LostOperation), max_size=3),
    bodies=st.lists(st.lists(st.binary(min_size=1, max_size=20), max_size=4), max_size=3),
)
def test_what_is_written_is_read_again(
    ops: list[LostOperation], bodies: list[list[bytes]], folder: Path
) -> None:
    files = []
    for ino, pieces in enumerate(bodies):
        ranges = [(100 * index, len(piece)) for index, piece in enumerate(pieces)]
        files.append(lost_file(ino, KnownPath((b"b", b"\xff")), 1, 1000, *ranges))
    recovery_id = new_recovery_id(0)
    recovery = Recovery(recovery_id, "s", "u", "/m", -1, "why", tuple(ops), tuple(files), 3, 4)
    try:
        write_recovery(recovery, bodies)
        found = open_recovery(recovery_id)
        without_digests = tuple(
            msgspec.structs.replace(file, digest=b"") for file in found.recovery.files
        )
        assert msgspec.structs.replace(found.recovery, files=without_digests) == recovery
        for index, pieces in enumerate(bodies):
            expected = [(100 * number, piece) for number, piece in enumerate(pieces)]
            assert list(found.ranges(index)) == expected
    finally:
        for path in folder.iterdir():
            path.unlink()


def test_it_is_for_the_user_alone(folder: Path) -> None:
    path = written(files=[(lost_file(3, None, 1, 102, *RANGES), BODY)]).path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.listdir(folder) == [path.name]


def test_long_ranges_come_in_parts() -> None:
    file = written(files=[(lost_file(3, None, 1, 102, *RANGES), BODY)])
    assert list(file.ranges(0, 4)) == [(3, b"abcd"), (7, b"e"), (100, b"fg")]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MictlanError) as caught:
        written(files=[(lost_file(3, None, 1, 102, *RANGES), BODY)])
    assert caught.value.kind is Kind.NO_SPACE
    assert os.listdir(folder) == []


def test_every_cut_and_every_changed_byte_is_noticed() -> None:
    path = written(files=[(lost_file(3, None, 1, 102, *RANGES), BODY)]).path
    whole = path.read_bytes()
    for position in range(len(whole)):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(MictlanError) as caught:
                open_recovery(ID).check(0)
            assert caught.value.kind is Kind.CORRUPT


def test_a_damaged_one_does_not_hide_the_others(folder: Path) -> None:
    written(recovery_id="1")
    written(recovery_id="2").path.write_bytes(b"?")
    written(recovery_id="3")
    first, second, third = list_recoveries()
    assert isinstance(second, MictlanError)
    assert not isinstance(first, MictlanError)
    assert not isinstance(third, MictlanError)
    assert (first.recovery.id, third.recovery.id) == ("1", "3")


def test_there_are_not_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECOVERIES_MAX", 1)
    written(recovery_id="1")
    with pytest.raises(MictlanError) as caught:
        written(recovery_id="2")
    assert caught.value.kind is Kind.NO_SPACE


@pytest.mark.parametrize("name", ["missing", "../secret", ""])
def test_one_that_is_not_there_is_not_found(name: str) -> None:
    with pytest.raises(MictlanError) as caught:
        open_recovery(name)
    assert caught.value.kind is Kind.NOT_FOUND


def test_what_was_applied_is_remembered_and_goes_with_it(folder: Path) -> None:
    file = written(files=[(lost_file(3, None, 1, 102, *RANGES), BODY)])
    assert not file.is_applied
    file.note_applied(Applied({}, [0]))
    assert open_recovery(ID).is_applied
    file.remove()
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (KnownPath((b"b", b"a")), "b/a"),
        (KnownPath(()), "/"),
        (KnownPath((b"a",), 57), "(inode 57)/a"),  # type: ignore[arg-type]
    ],
)
def test_a_path_says_how_much_of_it_is_known(path: KnownPath, text: str) -> None:
    assert path.show() == text
