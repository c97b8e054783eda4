import errno
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
import trio
from click.shell_completion import ShellComplete

from mictlanfs import __version__
from mictlanfs.cli.exits import EXIT, Exit
from mictlanfs.cli.main import COMMANDS, complain, run_command
from mictlanfs.cli.main import cli as command_line
from mictlanfs.errors import Kind, MictlanError, UsageError
from tests.unit.mictlanfs.cli.conftest import Run

OWN = [name for name, listed in COMMANDS.items() if not listed.extra]
FOREIGN = [name for name, listed in COMMANDS.items() if listed.extra]


class FakeEntryPoint:
    """An entry point whose loading does what it is told to."""

    def __init__(self, loaded: click.Command | Exception) -> None:
        self.loaded = loaded

    def load(self) -> click.Command:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def install(monkeypatch: pytest.MonkeyPatch, *found: FakeEntryPoint) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: list(found))


# --- help and the list of commands ---------------------------------------------------------------


def test_version_is_one_line(cli: Run) -> None:
    done = cli("--version")
    assert (done.code, done.text) == (0, f"mictlanfs {__version__}\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_command_and_how_to_complete(
    cli: Run, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    # Listing must not load what may be missing or slow.
    install(monkeypatch, FakeEntryPoint(ImportError("loaded")))
    done = cli(option)
    assert done.code == 0
    for name, listed in COMMANDS.items():
        assert f"  {name} " in done.text
        assert listed.help in done.text
    assert "_MICTLANFS_COMPLETE=bash_source" in done.text
    assert "MICTLANX_CLIENT_URI" in done.text


def test_without_a_command_help_is_shown_as_an_error(cli: Run) -> None:
    done = cli()
    assert done.code == Exit.USAGE
    assert done.err.startswith("Usage: mictlanfs")


@pytest.mark.parametrize("name", OWN)
def test_the_list_says_of_a_command_what_the_command_says_of_itself(name: str) -> None:
    command = getattr(import_module(f"mictlanfs.cli.{name}"), name)
    assert command.get_short_help_str(200) == COMMANDS[name].help


@pytest.mark.parametrize("name", OWN)
def test_every_command_and_option_has_help(name: str) -> None:
    commands = [getattr(import_module(f"mictlanfs.cli.{name}"), name)]
    for command in commands:
        assert command.help
        commands.extend(getattr(command, "commands", {}).values())
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.opts}"


def test_commands_can_be_completed() -> None:
    completion = ShellComplete(command_line, {}, "mictlanfs", "_MICTLANFS_COMPLETE")
    found = {item.value for item in completion.get_completions([], "s")}
    assert {"stat", "status", "server"} <= found
    options = {item.value for item in completion.get_completions(["put"], "--")}
    assert {"--recursive", "--uri", "--json"} <= options


# --- commands of other packages ------------------------------------------------------------------


def test_a_command_of_an_extra_is_loaded_when_it_is_called(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @click.argument("word")
    def up(word: str) -> None:
        click.echo(f"up {word}")

    install(monkeypatch, FakeEntryPoint(up))
    assert cli("up", "there").text == "up there\n"


@pytest.mark.parametrize("name", FOREIGN)
def test_a_command_whose_extra_is_missing_says_what_to_install(
    cli: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    error = ModuleNotFoundError("No module named 'pyfuse3'", name="pyfuse3")
    for found in ([FakeEntryPoint(error)], []):
        install(monkeypatch, *found)
        done = cli(name, "--any", "thing")
        assert done.code == Exit.FAILED
        assert done.err.count("\n") == 1
        assert f"pip install 'mictlanfs[{COMMANDS[name].extra}]'" in done.err


def test_a_library_that_is_missing_is_named(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeEntryPoint(ImportError("libfuse3.so.3: cannot open")))
    assert "libfuse3.so.3: cannot open" in cli("mount", "x").err


def test_an_unknown_command_is_a_usage_error(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    done = cli("fly")
    assert done.code == Exit.USAGE
    assert done.err == "mictlanfs: No such command 'fly'. (see 'mictlanfs --help')\n"


@pytest.mark.parametrize(("typed", "meant"), [("staus", "status"), ("buckets", "bucket")])
def test_a_command_that_is_misspelt_is_guessed(
    cli: Run, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    install(monkeypatch)
    assert "Did you mean" in cli(typed).err
    assert f"'{meant}'" in cli(typed).err


def test_a_wrong_option_names_the_help_of_its_command(cli: Run) -> None:
    done = cli("bucket", "create", "--wrong", "x")
    assert done.code == Exit.USAGE
    assert "(see 'mictlanfs bucket create --help')" in done.err


# --- how commands end ----------------------------------------------------------------------------


def raising(error: BaseException) -> int:
    def command() -> None:
        raise error

    return run_command(command)


def group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("tasks", [BaseExceptionGroup("tasks", errors)])


@pytest.mark.parametrize("kind", Kind)
def test_an_error_of_any_kind_is_one_line_and_its_exit_code(
    kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (
        MictlanError(kind, "put", "b/f", "why"),
        group(MictlanError(kind, "put", "b/f", "why")),
    ):
        assert raising(error) == EXIT[kind]
        assert capsys.readouterr().err == "mictlanfs: put b/f: why\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("which?"), 2, "mictlanfs: which?\n"),
        (click.UsageError("bad"), 2, "mictlanfs: bad (see 'mictlanfs --help')\n"),
        (click.ClickException("odd"), 1, "mictlanfs: odd\n"),
        (click.Abort(), 130, "mictlanfs: interrupted\n"),
        (KeyboardInterrupt(), 130, "mictlanfs: interrupted\n"),
        (group(KeyboardInterrupt(), MictlanError(Kind.BUSY)), 130, "mictlanfs: interrupted\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 3, "mictlanfs: x: No such file\n"),
        (OSError(errno.ENOSPC, "No space left"), 6, "mictlanfs: No space left\n"),
        (SystemExit(), 0, ""),
        (SystemExit(7), 7, ""),
        (SystemExit("text"), 1, "mictlanfs: text\n"),
        (group(SystemExit(7)), 7, ""),
        (
            ZeroDivisionError("oops"),
            1,
            "mictlanfs: internal error: ZeroDivisionError: oops "
            "(set MICTLANFS_DEBUG=1 for the traceback)\n",
        ),
    ],
)
def test_whatever_is_raised_has_a_code_and_no_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == code
    assert capsys.readouterr() == ("", message)


def test_the_number_that_a_command_returns_is_its_code() -> None:
    assert run_command(lambda: 5) == 5
    assert run_command(lambda: None) == 0
    assert run_command(lambda: "text") == 0


def test_with_debug_the_traceback_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MICTLANFS_DEBUG", "1")
    assert raising(MictlanError(Kind.BUSY)) == Exit.CONFLICT
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("mictlanfs: busy\n")


def test_errors_of_tasks_are_found_in_their_groups(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        raise MictlanError(Kind.NOT_FOUND, "find", "b/f")

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail)

    assert run_command(lambda: trio.run(work)) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "mictlanfs: find b/f: not found\n"


def test_messages_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complain("name\x1b]0;title\x07\nsecond\x9b2J")
    assert capsys.readouterr().err == "mictlanfs: name\\x1b]0;title\\x07 second\\x9b2J\n"


# --- as a process --------------------------------------------------------------------------------

PROGRAM = [sys.executable, "-m", "mictlanfs.cli.main"]


@pytest.fixture
def deaf_uri() -> Iterator[str]:
    """A space that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"mictlanx://127.0.0.1:{server.getsockname()[1]}/?protocol=http"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--version"], 0),
        (["nonsense"], 2),
        (["ls", "--uri", "nonsense"], 2),
        (["ls"], 2),
        (["ls", "--uri", "mictlanx://127.0.0.1:1/?protocol=http", "--timeout", "0"], 5),
    ],
)
def test_the_exit_code_is_that_of_the_process(args: list[str], code: int, tmp_path: Path) -> None:
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run([*PROGRAM, *args], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "mictlanfs: interrupted"), (signal.SIGTERM, 143, "")],
)
def test_signals_end_a_command_in_order(
    deaf_uri: str, number: int, code: int, message: str
) -> None:
    code_that_tells = (
        "import signal, sys, mictlanfs.cli.running as r, mictlanfs.cli.main as m\n"
        "async def work(space):\n"
        "    print('running', flush=True)\n"
        "    await space.list()\n"
        "from mictlanfs.cli.options import SpaceChoice\n"
        "choice = SpaceChoice(sys.argv[1], 60.0)\n"
        "sys.exit(m.run_command(lambda: r.run_on_space(choice, 'test', work)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code_that_tells, deaf_uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.strip() == message


def test_a_reader_that_goes_away_ends_the_output_without_a_word() -> None:
    script = (
        "import click, sys, mictlanfs.cli.main as m\n"
        "@m.cli.command()\n"
        "def flood():\n"
        "    while True:\n"
        "        click.echo('x' * 1000)\n"
        "m.LazyGroup.get_command = lambda self, ctx, name: flood\n"
        "sys.argv = ['mictlanfs', 'flood']\n"
        "m.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=20) == Exit.BROKEN_PIPE
    assert process.stderr.read() == b""
    process.stderr.close()


def test_the_start_is_quick_because_nothing_heavy_is_imported() -> None:
    heavy = [
        "trio",
        "httpx",
        "msgspec",
        "rich",
        "blake3",
        "pyfuse3",
        "asyncio",
        "importlib.metadata",
    ]
    script = (
        "import sys\n"
        "from mictlanfs.cli.main import run\n"
        "assert run(['--version']) == 0 and run(['--help']) == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# --- files of variables --------------------------------------------------------------------------


def test_a_bad_file_of_variables_stops_every_command_but_umount(
    cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env.local").write_text("= nonsense\n")
    done = cli("ls", "--help")
    assert (done.code, "line 1: it must be NAME=value" in done.err) == (2, True)
    assert cli("umount", "--help").code == 0
