import asyncio
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest

from mictlanfs import tracecontext
from mictlanfs.errors import UsageError
from mictlanfs_server.metering import Meters
from mictlanfs_server.tracing import TraceSettings, span, trace_settings, traced, tracing
from tests.support.otlp import receiving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ON = {"MICTLANX_ROUTER_OPENTELEMETRY": "1"}


async def nothing() -> dict[str, Any]:
    return {}


async def drop(_: Any) -> None:
    return None


def call(app: Any, *headers: tuple[bytes, bytes], path: str = "/raw") -> None:
    scope = {"type": "http", "method": "GET", "path": path, "headers": list(headers)}
    asyncio.run(app(scope, nothing, drop))


class App:
    """Answers with a status, says what a request made now would carry, makes a span."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.passed_on: Mapping[str, str] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with span("peer.stats") as inner:
            self.passed_on = tracecontext.with_trace({"a": "b"})
            if inner is not None:
                inner.set_attribute("peer.stats.start", 1.5)
                inner.add_event("peers.stats.completed", {"peers.count": 3})
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Metered:
    """As servers do: a template is told by who counts."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._meters = Meters()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._meters.run(self._app, "/t/{x}", scope, receive, send)


def test_a_request_is_a_span_of_the_trace_it_came_with_and_goes_on() -> None:
    app = App()
    with receiving() as receiver, tracing(TraceSettings(receiver.url, "service", "me")):
        call(
            traced(Metered(app)),
            (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()),
            (b"host", b"h"),
        )
    assert receiver.paths == {"/v1/traces"}
    [request] = receiver.named("GET /t/{x}")
    [inner] = receiver.named("peer.stats")
    assert (request.service, request.instance) == ("service", "me")
    assert (request.trace, request.parent) == (TRACE, PARENT)
    assert request.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/t/{x}",
        "url.path": "/raw",
    }
    assert not request.is_error
    assert (inner.trace, inner.parent) == (TRACE, request.id)
    assert inner.attributes == {"peer.stats.start": 1.5}
    assert inner.events == ("peers.stats.completed",)
    assert app.passed_on == {"a": "b", "traceparent": f"00-{TRACE}-{inner.id}-01"}


def test_a_request_without_a_trace_begins_one_and_failures_are_marked() -> None:
    with receiving() as receiver, tracing(TraceSettings(receiver.url, "service", "me")):
        call(traced(Metered(App(503))))
        call(traced(Metered(App(404))), (b"traceparent", b"\xff nonsense"))
    failed, missing = receiver.named("GET /t/{x}")
    assert failed.parent == missing.parent == ""
    assert failed.trace != missing.trace
    assert (failed.is_error, missing.is_error) == (True, False)


def test_without_settings_nothing_is_made_or_passed_on() -> None:
    app = App()
    with tracing(None):
        assert traced(app) is app
        call(app)
    assert app.passed_on == {"a": "b"}


def test_traces_end_with_their_block() -> None:
    with receiving() as receiver, tracing(TraceSettings(receiver.url, "service", "me")):
        assert tracecontext.with_trace(None) is None
    with span("x") as made:
        assert made is None


def test_an_endpoint_that_is_not_there_holds_nobody_up() -> None:
    started_s = time.monotonic()
    with tracing(TraceSettings("http://127.0.0.1:9", "service", "me")):
        call(traced(Metered(App())))
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, None),
        ({"MICTLANX_JAEGER_ENDPOINT": "http://a:1"}, None),
        ({"MICTLANX_ROUTER_OPENTELEMETRY": "0", "MICTLANX_JAEGER_ENDPOINT": "http://a:1"}, None),
        (ON, None),
        ({**ON, "MICTLANX_JAEGER_ENDPOINT": "http://a:1/"}, "http://a:1"),
        ({**ON, "OTEL_EXPORTER_OTLP_ENDPOINT": "https://b:2"}, "https://b:2"),
        (
            {
                **ON,
                "MICTLANX_JAEGER_ENDPOINT": "http://a:1",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:2",
            },
            "http://a:1",
        ),
    ],
)
def test_traces_need_the_switch_and_an_endpoint(
    environ: dict[str, str], endpoint: str | None
) -> None:
    found = trace_settings(environ, "service", "me")
    assert found == (None if endpoint is None else TraceSettings(endpoint, "service", "me"))


@pytest.mark.parametrize("name", ["MICTLANX_JAEGER_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_a_bad_endpoint_is_refused_by_the_name_of_its_variable(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is 'jaeger:4318': it must be a URL"):
        trace_settings({**ON, name: "jaeger:4318"}, "service", "me")


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with (
        pytest.raises(UsageError, match=r"pip install 'mictlanfs\[otel\]'"),
        tracing(TraceSettings("http://127.0.0.1:9", "service", "me")),
    ):
        pass


def test_servers_load_no_library_before_it_is_needed() -> None:
    # The interface of OpenTelemetry, without anything behind it, comes with the web framework.
    names = ("opentelemetry.sdk", "opentelemetry.exporter", "prometheus_client", "dotenv")
    program = (
        "import sys; import mictlanfs_server.router.app, mictlanfs_server.peer.app; "
        f"print([name for name in {names} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
