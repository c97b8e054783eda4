import json
import os
import subprocess

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.cli import output
from mictlanfs.cli.exits import Exit
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import Attributes, FileKind, InodeNumber, Node
from tests.support.strategies import names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain", "plain"),
        (b"with space", "with space"),
        ("naïve".encode(), "naïve"),
        (b"two\nlines", r"$'two\nlines'"),
        (b"\x1b[2J", r"$'\x1b[2J'"),
        (b"\xff", r"$'\xff'"),
        ("\u202e".encode(), r"$'\xe2\x80\xae'"),
        (b"it's\n", r"$'it\'s\n'"),
        (b"a\\\n", r"$'a\\\n'"),
    ],
)
def test_a_name_is_shown_as_it_is_unless_a_terminal_could_not(name: bytes, text: str) -> None:
    assert output.quoted(name) == text


@given(names)
def test_what_is_quoted_is_printable(name: bytes) -> None:
    assert output.quoted(name).isprintable()


def test_a_shell_reads_a_quoted_name_as_the_name() -> None:
    name = b"it's\n\t\\ \x01\xff \xc3\xa9 \xe2\x80\xae"
    echoed = subprocess.run(
        ["bash", "-c", f"printf %s {output.quoted(name)}"], capture_output=True, check=True
    )
    assert echoed.stdout == name


def test_names_go_into_a_pipe_byte_for_byte(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    output.print_name(b"\xff\n", "before ", " after")
    assert capsysbinary.readouterr().out == b"before \xff\n after\n"


def test_names_are_quoted_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    output.print_name(b"\xff\n")
    assert capsys.readouterr().out == "$'\\xff\\n'\n"


def test_a_command_goes_on_after_the_error_of_one_file_and_ends_with_the_code_of_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures = output.Failures()
    for kind in (Kind.NOT_FOUND, Kind.NO_SPACE):
        with failures.going_on():
            raise MictlanError(kind, "get", "b/a")
    assert capsys.readouterr().err.count("mictlanfs: get b/a") == 2
    with pytest.raises(click.exceptions.Exit) as caught:
        failures.exit_if_any()
    assert caught.value.exit_code == Exit.NOT_FOUND


@pytest.mark.parametrize("error", [MictlanError(Kind.UNAVAILABLE), UsageError("no such option")])
def test_an_error_that_every_file_would_meet_ends_the_command(error: MictlanError) -> None:
    failures = output.Failures()
    with pytest.raises(MictlanError), failures.going_on():
        raise error
    failures.exit_if_any()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_printed_item_by_item_is_json(
    capsys: pytest.CaptureFixture[str], count: int
) -> None:
    with output.json_list() as items:
        for number in range(count):
            items.add({"number": number})
    assert json.loads(capsys.readouterr().out) == [{"number": n} for n in range(count)]


def test_a_list_that_an_error_ends_is_still_json(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with output.json_list() as items:
            items.add({})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert json.loads(capsys.readouterr().out) == [{}]


@given(names)
def test_a_name_can_be_got_back_from_json(name: bytes) -> None:
    attributes = Attributes(InodeNumber(2), FileKind.FILE, 0o644, 0, 0, 5, 1, 2, 3, 1)
    text = json.dumps(output.described(b"b/" + name, Node(attributes)))
    assert os.fsencode(json.loads(text)["name"]) == name
    assert os.fsencode(json.loads(text)["path"]) == b"b/" + name


def test_a_long_line_reads_like_that_of_ls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    attributes = Attributes(
        InodeNumber(2), FileKind.SYMLINK, 0o751, 4_000_001, 4_000_002, 5, 0, 90 * 10**9, 0, 3
    )
    line = output.long_line(attributes)
    assert line.split() == [
        "lrwxr-x--x", "3", "4000001", "4000002", "5", "1970-01-01", "00:01",
    ]  # fmt: skip


def test_owners_of_this_machine_have_names() -> None:
    assert output.user_name(0) == "root"
    assert output.group_name(0) == "root"
    assert output.user_name(2**32 - 2) in {str(2**32 - 2), "nobody"}


@pytest.mark.parametrize("time_ns", [2**63 - 1, -(2**63)])
def test_a_time_that_no_calendar_has_is_shown_all_the_same(time_ns: int) -> None:
    assert output.local_time(time_ns)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


@given(st.sampled_from(FileKind))
def test_every_kind_has_a_word(kind: FileKind) -> None:
    attributes = Attributes(InodeNumber(2), kind, 0, 0, 0, 0, 0, 0, 0, 1)
    assert output.kind_word(attributes).replace(" ", "").isalpha()
