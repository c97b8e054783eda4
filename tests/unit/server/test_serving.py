import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_server.serving import Listener, bind

SOON_S = 10.0
# A server whose answers tell what it went through. `/slow` answers when the file of that name in
# the working directory is there.
PROGRAM = """
import asyncio, contextlib, json, logging, os, resource, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from mictlanfs.errors import Kind, MictlanError
from mictlanfs_server.serving import serve

options = json.loads(sys.argv[1])
listeners = []

@contextlib.asynccontextmanager
async def lifespan(app):
    if options.get("broken"):
        raise RuntimeError("cannot start")
    print("up", listeners[0].url, flush=True)
    yield
    print("down", flush=True)

async def hello(request):
    return PlainTextResponse("hello")

async def limit(request):
    return PlainTextResponse(str(resource.getrlimit(resource.RLIMIT_NOFILE)))

async def slow(request):
    print("slow", flush=True)
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    return PlainTextResponse("slow")

async def nothing(request):
    return Response(status_code=204)

async def broken(request):
    async def body():
        raise RuntimeError("no body")
        yield b""
    return StreamingResponse(body(), headers={"content-length": "5"})

async def stop(request):
    listeners[0].stop(MictlanError(Kind.CONFLICT, detail="told to"))
    listeners[0].stop(MictlanError(Kind.INTERNAL, detail="too late"))
    return PlainTextResponse("stopping")

routes = [Route("/" + f.__name__, f) for f in (hello, limit, slow, stop, nothing, broken)]
try:
    serve(
        Starlette(routes=routes, lifespan=lifespan),
        name="test-server",
        host=options.get("host", "127.0.0.1"),
        port=options.get("port", 0),
        insecure=options.get("insecure", False),
        lifeline_fd=options.get("lifeline_fd"),
        on_listening=listeners.append,
        joined_answers=options.get("joined_answers", False),
    )
except MictlanError as error:
    print("error", error, flush=True)
    sys.exit(2)
"""


@dataclass
class Server:
    """A server process; `url` is where it answers."""

    process: subprocess.Popen[str]
    url: str = ""

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), SOON_S)

    def get(self, path: str) -> str:
        with self.connect() as connection:
            return ask(connection, path)

    def wait(self) -> int:
        return self.process.wait(SOON_S)

    def log(self) -> list[dict[str, Any]]:
        """Every line of the log; only once the process has ended."""
        assert self.process.stderr is not None
        return [json.loads(line) for line in self.process.stderr]


def ask(connection: socket.socket, path: str) -> str:
    """The body of an answer; empty when the server hung up instead."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return answer(connection)


def answer(connection: socket.socket) -> str:
    with closing(http.client.HTTPResponse(connection)) as response:
        try:
            response.begin()
        except http.client.RemoteDisconnected:
            return ""
        return response.read().decode()


@contextmanager
def spawned(folder: Path, *, fds: tuple[int, ...] = (), **options: Any) -> Iterator[Server]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        pass_fds=fds,
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@contextmanager
def running(folder: Path, **options: Any) -> Iterator[Server]:
    with spawned(folder, **options) as server:
        word, url = server.line().split()
        assert word == "up"
        server.url = url
        yield server


# --- where it listens ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_loopback_needs_no_permission(host: str) -> None:
    with closing(bind(host, 0, insecure=False)) as bound:
        assert bound.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_interfaces_need_to_be_told_insecure(host: str) -> None:
    with pytest.raises(UsageError) as caught:
        bind(host, 0, insecure=False)
    assert host in str(caught.value)
    assert "use --insecure to listen there without TLS and tokens" in str(caught.value)
    bind(host, 0, insecure=True).close()


def test_a_name_of_this_machine_counts_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(UsageError, match="--insecure"):
        bind("localhost", 0, insecure=False)


def test_an_address_in_use_is_named_with_the_remedy() -> None:
    with closing(bind("127.0.0.1", 0, insecure=False)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            bind("127.0.0.1", port, insecure=False)
    message = str(caught.value)
    assert "127.0.0.1" in message
    assert str(port) in message
    assert "--port" in message


def test_an_address_just_left_can_be_taken_again() -> None:
    with closing(bind("127.0.0.1", 0, insecure=False)) as bound:
        port = bound.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = bound.accept()
            # Closing this end first leaves it in TIME_WAIT.
            accepted.close()
            assert client.recv(1) == b""
    bind("127.0.0.1", port, insecure=False).close()


@pytest.mark.parametrize(
    ("host", "port"),
    [("no.such.host.invalid", 0), ("127.0.0.1", 70000), ("127.0.0.1", -1), ("192.0.2.1", 0)],
)
def test_an_address_that_cannot_be_is_named(host: str, port: int) -> None:
    with pytest.raises(UsageError, match=f"{host} port {port}"):
        bind(host, port, insecure=True)


def test_a_reserved_port_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UsageError, match="reserved for root"):
        bind("127.0.0.1", 80, insecure=False)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")]
)
def test_a_listener_knows_its_url(host: str, url: str) -> None:
    assert Listener(host, 80, lambda _: None).url == url


# --- life and end --------------------------------------------------------------------------------


def test_port_0_becomes_a_real_port(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.port > 0
        assert server.get("/hello") == "hello"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as server:
        server.process.send_signal(number)
        assert server.line() == "down"
        assert server.wait() == 0


def test_the_end_of_the_lifeline_ends_the_server_in_order(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with running(tmp_path, lifeline_fd=read_end, fds=(read_end,)) as server:
        os.close(read_end)
        os.write(write_end, b"still here")
        assert server.get("/hello") == "hello"
        os.close(write_end)
        assert server.line() == "down"
        assert server.wait() == 0
        assert any("supervisor is gone" in line["message"] for line in server.log())


def test_requests_that_run_are_finished_before_the_end(tmp_path: Path) -> None:
    with running(tmp_path) as server, server.connect() as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        assert server.line() == "slow"
        server.process.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        assert answer(connection) == "slow"
        assert server.line() == "down"
        assert server.wait() == 0


def test_an_idle_connection_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with running(tmp_path) as server, server.connect() as connection:
        assert ask(connection, "/hello") == "hello"
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - started_s < 3


@pytest.mark.slow
def test_a_request_that_never_ends_holds_up_the_end_for_seconds_only(tmp_path: Path) -> None:
    with running(tmp_path) as server, server.connect() as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        assert server.line() == "slow"
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "down"
        assert server.wait() == 0
        assert time.monotonic() - started_s < 8


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with running(tmp_path) as server, server.connect() as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        assert server.line() == "slow"
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        # Both signals would be one while the first is not taken: it is, once nobody may connect.
        while time.monotonic() - started_s < SOON_S:
            try:
                server.connect().close()
            except ConnectionError:
                break
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - started_s < 4


def test_the_application_can_end_the_server_with_an_error(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.get("/stop") == "stopping"
        assert server.line() == "down"
        assert server.line() == "error told to"
        assert server.wait() == 2


def test_an_application_that_cannot_start_ends_the_process(tmp_path: Path) -> None:
    with spawned(tmp_path, broken=True) as server:
        assert server.line() == ""
        assert server.wait() not in {0, 2}
        assert any("cannot start" in line["message"] for line in server.log())


def test_an_address_in_use_ends_the_process_with_one_line(tmp_path: Path) -> None:
    with (
        closing(bind("127.0.0.1", 0, insecure=False)) as taken,
        spawned(tmp_path, port=taken.getsockname()[1]) as server,
    ):
        assert "is in use" in server.line()
        assert server.wait() == 2
        assert server.log() == []


def test_the_limit_of_open_files_is_raised_as_far_as_allowed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with running(tmp_path) as server:
            assert server.get("/limit") == str((hard, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- logging -------------------------------------------------------------------------------------


def test_every_line_of_a_server_is_json_with_the_same_fields(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with server.connect() as connection:
            connection.sendall(b"this is not HTTP\r\n\r\n")
            connection.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        lines = server.log()
    for line in lines:
        assert {"timestamp", "level", "logger_name", "thread_name", "event"} <= line.keys()
        assert line["event"] == f"LOG.{line['level']}"
        assert line["server"] == "test-server"
        assert "color_message" not in line
    assert f"listening on 127.0.0.1 port {server.port}" in [line["message"] for line in lines]
    assert lines[-1]["message"] == "stopped"
