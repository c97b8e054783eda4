import logging

import pytest

from mictlanfs import clientvariables
from mictlanfs.environment import Variable, may_come_from_file
from mictlanfs.errors import UsageError
from mictlanfs.logsetup import LogFiles, LogSettings
from mictlanfs_server import environment as variables
from mictlanfs_server.logsettings import peer_logs, router_logs

INEFFECTIVE = [
    *variables.ROUTER_INEFFECTIVE,
    *variables.ELSEWHERE,
    *variables.PEER_INEFFECTIVE,
]
SERVER: list[Variable[object]] = [*variables.EFFECTIVE, *INEFFECTIVE]


def test_every_variable_is_declared_once() -> None:
    declared = [*clientvariables.EFFECTIVE, *clientvariables.INEFFECTIVE, *SERVER]
    names = [variable.name for variable in declared]
    assert sorted(names) == sorted(set(names))
    assert all(variable.text for variable in declared)


def test_defaults_are_values() -> None:
    for variable in variables.EFFECTIVE:
        if variable.default:
            variable.value({})


def test_whatever_is_declared_may_come_from_a_file() -> None:
    assert all(may_come_from_file(variable.name) for variable in SERVER)


def test_services_that_are_not_needed_are_answered_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    environ = {
        "MICTLANX_SUMMONER_MODE": "docker",
        "MICTLANX_DAEMON_HOSTNAME": "localhost",
        "MICTLANX_SPM_PORT": "1",
    }
    variables.log_router_ineffective(environ)
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert all(name in record.getMessage() for name in environ)
    assert "by the router itself" in record.getMessage()


def test_a_peer_says_what_is_set_in_vain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    variables.log_peer_ineffective({"WORKERS": "2", "NODE_ID": "p", "ELASTIC": "1"})
    [record] = caplog.records
    assert "WORKERS, ELASTIC (" in record.getMessage()


# --- logs ----------------------------------------------------------------------------------------


def test_without_variables_a_router_logs_to_stderr_only() -> None:
    assert router_logs({}, "", "r") == LogSettings()
    assert peer_logs({}, "json", "p") == LogSettings(form="json")


def test_the_variables_of_the_router_say_how_it_logs() -> None:
    environ = {
        "MICTLANX_ROUTER_LOG_PATH": "/logs",
        "MICTLANX_ROUTER_LOG_NAME": "name",
        "MICTLANX_ROUTER_LOG_LEVEL": "warning",
        "MICTLANX_ROUTER_LOG_WHEN": "D",
        "MICTLANX_ROUTER_LOG_INTERVAL": "2",
        "MICTLANX_ROUTER_LOG_SHOW": "0",
        "MICTLANX_ROUTER_LOG_ERROR_FILE": "0",
    }
    found = router_logs(environ, "", "r")
    assert found.files is not None
    assert str(found.files.path) == "/logs/name"
    assert found == LogSettings(
        "WARNING", "", is_shown=False, files=LogFiles(found.files.path, "d", 2, has_errors=False)
    )
    environ |= {"MICTLANX_ROUTER_LOG_ROTATION_WHEN": "m", "MICTLANX_ROUTER_DEBUG": "1"}
    environ |= {"MICTLANX_ROUTER_LOG_ROTATION_INTERVAL": "5"}
    found = router_logs(environ, "", "r")
    assert found.files is not None
    assert (found.files.when, found.files.interval, found.level) == ("m", 5, "DEBUG")
    assert router_logs({**environ, "MICTLANX_ROUTER_LOG_TO_FILE": "0"}, "", "r").files is None


def test_files_are_named_by_the_server_unless_said_otherwise() -> None:
    found = router_logs({"MICTLANX_ROUTER_LOG_PATH": "/logs"}, "", "r")
    assert found.files is not None
    assert (str(found.files.path), found.files.when, found.files.interval) == ("/logs/r", "h", 24)
    of_peer = peer_logs({"LOG_PATH": "/logs"}, "", "p").files
    assert of_peer is not None
    assert str(of_peer.path) == "/logs/p"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MICTLANX_ROUTER_LOG_LEVEL", "loud"),
        ("MICTLANX_ROUTER_LOG_SHOW", "maybe"),
        ("MICTLANX_ROUTER_LOG_WHEN", "yearly"),
        ("MICTLANX_ROUTER_LOG_INTERVAL", "0"),
        ("MICTLANX_ROUTER_DEBUG", "-1"),
    ],
)
def test_a_bad_variable_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is '{value}': it must be "):
        router_logs({"MICTLANX_ROUTER_LOG_PATH": "/logs", name: value}, "", "r")
