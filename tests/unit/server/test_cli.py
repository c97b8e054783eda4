import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from mictlanfs import paths
from mictlanfs.cli.main import run
from mictlanfs.errors import UsageError
from mictlanfs.processes import current_process
from mictlanfs_server import channel, cluster, control, daemon
from mictlanfs_server.cluster import MountRequest
from mictlanfs_server.control import LocalStatus, ProcessStatus
from mictlanfs_server.peer import app as peer_app
from mictlanfs_server.peer.settings import PeerSettings
from mictlanfs_server.plan import ServerOptions
from mictlanfs_server.router import app as router_app
from mictlanfs_server.router.settings import RouterSettings
from mictlanfs_server.space import SpaceDirectory, SpaceRecord, claimed

URI = "mictlanx://r@127.0.0.1:60666"
RECORD = SpaceRecord(uri=URI, host="127.0.0.1", port=60666, peer_ports=(24000,))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to be in, a user of our own, and a log that is as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MICTLANX_ROUTER_PORT", raising=False)
    package = logging.getLogger("mictlanfs_server")
    handlers, level, is_loud = package.handlers[:], package.level, logging.raiseExceptions
    yield tmp_path
    package.handlers[:] = handlers
    package.setLevel(level)
    monkeypatch.setattr(logging, "raiseExceptions", is_loud)


class Served:
    """Stands in for serving a space: notes what was asked for."""

    def __init__(self) -> None:
        self.options: ServerOptions | None = None
        self.mount: MountRequest | None = None

    def __call__(
        self,
        options: ServerOptions,
        mount: MountRequest | None,
        on_ready: Callable[[SpaceRecord], None],
    ) -> None:
        self.options, self.mount = options, mount
        on_ready(RECORD)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    served = Served()
    monkeypatch.setattr(cluster, "serve_space", served)
    return served


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of the daemon, instead of a daemon."""
    arguments: list[str] = []

    def launch(given: list[str]) -> int:
        arguments.extend(given)
        return 0

    monkeypatch.setattr(daemon, "launch", launch)
    return arguments


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *("up", "down", "server", "server router", "server peer"),
        *("server start", "server stop", "server status"),
        *("server peers", "server peers add", "server peers start", "server peers stop"),
        *("server restore", "meta", "meta dump", "meta load", "meta snapshot"),
    ],
)
def test_every_command_has_help_without_its_hidden_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: mictlanfs" in text
    assert "-fd" not in text


def test_a_wrong_value_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["server", "start", "--data", "d", "--capacity", "much"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--capacity" in line
    assert "it is not a size such as" in line


# --- one process --------------------------------------------------------------------------------


def test_a_router_is_run_as_told(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    seen: list[RouterSettings] = []
    monkeypatch.setattr(router_app, "run", seen.append)
    words = "--data d --host ::1 --port 5 --id r --gc-grace 1.5 --insecure --lifeline-fd 9"
    words += " --lease-ttl 0.5 --snapshot-interval 7"
    assert run(["server", "router", *words.split()]) == 0
    assert run(["server", "router", "--data", "d"]) == 0
    assert seen == [
        RouterSettings(
            data=here / "d",
            host="::1",
            port=5,
            router_id="r",
            insecure=True,
            lifeline_fd=9,
            gc_grace_s=1.5,
            lease_ttl_s=0.5,
            snapshot_interval_s=7.0,
        ),
        RouterSettings(data=here / "d"),
    ]


def test_a_peer_is_run_as_told(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    seen: list[PeerSettings] = []
    monkeypatch.setattr(peer_app, "run", seen.append)
    words = (
        f"--router {URI} --data d --host ::1 --port 5 --id p --zone z --capacity 1K "
        "--advertise http://a:5 --sharers 2 --sharers-file s --insecure --lifeline-fd 9"
    )
    assert run(["server", "peer", *words.split()]) == 0
    assert run(["server", "peer", "--router", URI, "--data", "d"]) == 0
    assert seen == [
        PeerSettings(
            data=here / "d",
            router=URI,
            host="::1",
            port=5,
            peer_id="p",
            zone="z",
            capacity=1024,
            insecure=True,
            lifeline_fd=9,
            advertise="http://a:5",
            sharers=2,
            sharers_file=Path("s"),
        ),
        PeerSettings(data=here / "d", router=URI),
    ]


# --- start, up ----------------------------------------------------------------------------------


def test_start_prints_the_uri_on_a_line_of_its_own(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["server", "start", "--data", "d"]) == 0
    assert capsys.readouterr().out == f"{URI}\n"


def test_what_is_not_said_is_left_to_the_space(served: Served, here: Path) -> None:
    assert run(["server", "start", "--data", "d"]) == 0
    assert served.options == ServerOptions(here / "d")
    assert served.mount is None


EVERYTHING = (
    "--peers 2 --host ::1 --port 0 --peer-port 20000 --capacity 1M --lease-ttl 2 --insecure"
)


def test_what_is_said_is_passed_on(served: Served, here: Path) -> None:
    assert run(["server", "start", "--data", "d", *EVERYTHING.split()]) == 0
    assert served.options == ServerOptions(
        here / "d", 2, "::1", 0, 20000, 1024**2, insecure=True, lease_ttl_s=2
    )


def test_the_port_may_come_from_the_variable_of_mictlanx(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICTLANX_ROUTER_PORT", "20001")
    assert run(["server", "start", "--data", "d"]) == 0
    assert served.options is not None
    assert served.options.port == 20001


def test_up_mounts_in_the_current_directory(
    served: Served, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up"]) == 0
    assert served.options == ServerOptions(here / "vss-data")
    assert served.mount == MountRequest(here / "vss")
    text = capsys.readouterr().out
    assert URI in text
    assert "mkdir -p ./vss/photos" in text
    assert "Ctrl-C stops everything; the data stays in ./vss-data." in text


def test_up_mounts_where_and_as_told(served: Served, here: Path) -> None:
    assert run(["up", "m", "--data", "d", "--peers", "1", "-o", "ro,uid=5"]) == 0
    assert served.options == ServerOptions(here / "d", peers=1)
    assert served.mount == MountRequest(here / "m", "ro,uid=5")


def test_a_wrong_mount_option_is_told_before_anything_is_started(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "-o", "colour"]) == 2
    assert "unknown mount option 'colour'" in capsys.readouterr().err
    assert served.options is None


@pytest.mark.parametrize(
    "command",
    [
        f"server start --data d {EVERYTHING}",
        "server start --data d",
        "up m --data d --peers 2 --capacity 5 --lease-ttl 3 -o ro,uid=5",
        "up",
    ],
)
def test_a_daemon_is_told_the_same_from_any_directory(
    served: Served, launched: list[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(command.split()) == 0
    expected = (served.options, served.mount)
    assert run([*command.split(), "--detach"]) == 0
    monkeypatch.chdir("/")
    assert run(launched) == 0
    assert (served.options, served.mount) == expected
    assert "--detach" not in launched


def test_a_daemon_reports_when_it_is_ready(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reported: list[int] = []
    monkeypatch.setattr(daemon, "report_ready", reported.append)
    assert run(["up", "--ready-fd", "9"]) == 0
    assert reported == [9]
    assert "down --data ./vss-data` stops everything" in capsys.readouterr().out


def test_a_start_that_is_refused_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("port 1 is in use")

    monkeypatch.setattr(cluster, "serve_space", refuse)
    assert run(["up"]) == 2
    assert capsys.readouterr().err == "mictlanfs: port 1 is in use\n"


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, ["up", "died"]), (False, ["died"])])
def test_without_a_terminal_only_trouble_is_shown(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    is_terminal: bool,
    shown: list[str],
) -> None:
    def serve(*_: object) -> None:
        log = logging.getLogger("mictlanfs_server.supervisor")
        log.info("up")
        log.warning("died")

    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setattr(cluster, "serve_space", serve)
    assert run(["server", "start", "--data", "d"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"mictlanfs: {word}" for word in shown]


# --- the peers of a running space ---------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, channel.Request]]:
    """What was asked of which supervisor, instead of asking it."""
    requests: list[tuple[Path, channel.Request]] = []

    async def ask(
        directory: SpaceDirectory, request: channel.Request, say: Callable[[str], None]
    ) -> str:
        await trio.lowlevel.checkpoint()
        requests.append((directory.path, request))
        say("begun")
        return "done"

    monkeypatch.setattr(channel, "ask", ask)
    return requests


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (["add"], channel.AddPeers(1)),
        (["add", "3"], channel.AddPeers(3)),
        (["start", "peer-1"], channel.StartPeer("peer-1")),
        (["stop", "peer-1"], channel.StopPeer("peer-1", force=False)),
        (["stop", "peer-1", "--force"], channel.StopPeer("peer-1", force=True)),
    ],
)
def test_the_supervisor_is_asked_to_change_peers(
    words: list[str],
    request_: channel.Request,
    asked: list[tuple[Path, channel.Request]],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["server", "peers", *words, "--data", "d"]) == 0
    assert asked == [(here / "d", request_)]
    assert capsys.readouterr() == ("done\n", "begun\n")


def test_without_any_space_there_are_no_peers_to_change(
    asked: list[tuple[Path, channel.Request]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["server", "peers", "add"]) == 2
    assert asked == []
    assert "--data" in capsys.readouterr().err


# --- stop, down, status -------------------------------------------------------------------------


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Directories that were stopped, instead of stopping them."""
    paths: list[Path] = []
    monkeypatch.setattr(control, "stop", lambda directory, _: paths.append(directory.path))
    return paths


def make_space(path: Path, record: SpaceRecord) -> None:
    with claimed(SpaceDirectory(path)) as claim:
        claim.keep = True
        claim.write_record(record)


@pytest.mark.parametrize("command", [["server", "stop"], ["down"]])
def test_the_space_to_stop_may_be_named(
    command: list[str], stopped: list[Path], here: Path
) -> None:
    assert run([*command, "--data", "d"]) == 0
    assert stopped == [here / "d"]


@pytest.mark.parametrize("command", [["server", "stop"], ["down"]])
def test_the_space_to_stop_is_the_last_one(
    command: list[str], stopped: list[Path], here: Path
) -> None:
    paths.record_last_space(URI, here / "last")
    assert run(command) == 0
    assert stopped == [here / "last"]


@pytest.mark.parametrize("command", [["server", "stop"], ["down"]])
def test_without_any_space_there_is_nothing_to_stop(
    command: list[str], stopped: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 0
    assert stopped == []
    assert "nothing runs" in capsys.readouterr().out


def test_down_means_the_space_of_this_directory_first_if_it_runs(
    stopped: list[Path], here: Path
) -> None:
    paths.record_last_space(URI, here / "last")
    make_space(here / "vss-data", RECORD)
    assert run(["down"]) == 0
    make_space(here / "vss-data", replace(RECORD, supervisor=current_process()))
    assert run(["down"]) == 0
    assert stopped == [here / "last", here / "vss-data"]


def status_of(state: str) -> LocalStatus:
    processes = [
        ProcessStatus("supervisor", 41, None, "healthy", 1_700_000_000.0),
        ProcessStatus("peer-0", None, 24000, "not running", None),
    ]
    return LocalStatus("/data", state, URI, "/mnt/vss", [] if state == "stopped" else processes)


@pytest.mark.parametrize(("state", "code"), [("healthy", 0), ("degraded", 1), ("stopped", 3)])
def test_status_tells_by_its_exit_code(
    state: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def inspect(directory: SpaceDirectory) -> LocalStatus:
        await trio.lowlevel.checkpoint()
        assert directory.path == Path("/data")
        return status_of(state)

    monkeypatch.setattr(control, "inspect", inspect)
    assert run(["server", "status", "--data", "/data"]) == code
    assert capsys.readouterr().out.startswith(f"/data: {state}\n")
    assert run(["server", "status", "--data", "/data", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["state"] == state


def test_status_is_a_table_that_scripts_can_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def inspect(_: SpaceDirectory) -> LocalStatus:
        await trio.lowlevel.checkpoint()
        return status_of("degraded")

    monkeypatch.setattr(control, "inspect", inspect)
    monkeypatch.setenv("TZ", "UTC")
    assert run(["server", "status", "--data", "/data"]) == 1
    rows = [line.split(None, 4) for line in capsys.readouterr().out.splitlines()[3:]]
    assert rows[0] == ["NAME", "PID", "PORT", "SINCE", "HEALTH"]
    assert rows[1][:3] == ["supervisor", "41", "-"]
    assert rows[2] == ["peer-0", "-", "24000", "-", "not running"]


def test_without_any_space_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["server", "status"]) == 3
    assert "no space" in capsys.readouterr().err
    assert os.listdir() == ["state"]


# --- variables ----------------------------------------------------------------------------------


def test_the_variables_of_mictlanx_configure_a_peer(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    seen: list[PeerSettings] = []
    monkeypatch.setattr(peer_app, "run", seen.append)
    values = {
        "MICTLANX_CLIENT_URI": URI,
        "DATA_PATH": "d",
        "SERVER_IP_ADDR": "::1",
        "NODE_PORT": "25000",
        "NODE_ID": "peer-x",
        "NODE_DISK_CAPACITY": "10000000000",
        "IP_ADDRESS": "10.0.0.7",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert run(["server", "peer"]) == 0
    assert run(["server", "peer", "--id", "p", "--advertise", "http://a:5"]) == 0
    # Supervised: the address of one peer is not that of several.
    assert run(["server", "peer", "--lifeline-fd", "9"]) == 0
    expected = PeerSettings(
        data=here / "d",
        router=URI,
        host="::1",
        port=25000,
        peer_id="peer-x",
        capacity=10_000_000_000,
        advertise="http://10.0.0.7:25000",
    )
    assert seen == [
        expected,
        dataclasses.replace(expected, peer_id="p", advertise="http://a:5"),
        dataclasses.replace(expected, advertise=None, lifeline_fd=9),
    ]


def test_the_variables_of_mictlanx_configure_a_space(
    served: Served, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    values = {
        "MICTLANX_ROUTER_HOST": "::1",
        "MICTLANX_ROUTER_PORT": "20001",
        "NODE_PORT": "21000",
        "NODE_DISK_CAPACITY": "5",
        "MICTLANFS_INSECURE": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert run(["server", "start", "--data", "d", "--port", "0"]) == 0
    assert served.options == ServerOptions(here / "d", None, "::1", 0, 21000, 5, insecure=True)


def test_a_file_configures_unless_the_environment_or_an_option_does(
    served: Served, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    names = ("MICTLANX_ROUTER_HOST", "MICTLANX_ROUTER_PORT", "NODE_PORT")
    for name in names:
        # Set and removed, so that what the command sets is removed after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NODE_PORT", "21000")
    (here / ".env.local").write_text(
        "MICTLANX_ROUTER_HOST=::1\nMICTLANX_ROUTER_PORT=20001\nNODE_PORT=22000\n"
    )
    assert run(["server", "start", "--data", "d", "--port", "0"]) == 0
    assert served.options == ServerOptions(here / "d", None, "::1", 0, 21000)


@pytest.mark.parametrize(
    ("name", "value", "must_be"),
    [
        ("MICTLANX_ROUTER_PORT", "http", "it must be a whole number from 0 to 65535"),
        ("MICTLANX_ROUTER_PORT", "65536", "it must be a whole number from 0 to 65535"),
        ("NODE_PORT", "-1", "it must be a whole number from 0 to 65535"),
        ("NODE_DISK_CAPACITY", "much", "it is not a size such as 4096, 256M or 1.5G"),
        ("MICTLANFS_INSECURE", "perhaps", "boolean"),
    ],
)
def test_a_bad_variable_is_refused_by_name(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    must_be: str,
) -> None:
    monkeypatch.setenv(name, value)
    assert run(["server", "start", "--data", "d"]) == 2
    said = capsys.readouterr().err
    assert f"{name} is '{value}': " in said
    assert must_be in said
    assert served.options is None


def test_a_bad_option_is_refused_as_an_option(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICTLANX_ROUTER_PORT", "1")
    assert run(["server", "start", "--data", "d", "--port", "http"]) == 2
    assert "'--port'" in capsys.readouterr().err
    assert served.options is None


def test_a_bad_variable_of_logs_stops_a_router_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MICTLANX_ROUTER_LOG_LEVEL", "loud")
    assert run(["server", "router", "--data", "d"]) == 2
    assert "MICTLANX_ROUTER_LOG_LEVEL is 'loud': it must be one of" in capsys.readouterr().err
    assert not (here / "d").exists()
