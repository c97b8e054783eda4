"""Traces of requests by OpenTelemetry, sent by OTLP over HTTP: off unless an endpoint is given.

Owns the provider of the process and the spans of requests. The only module that knows the library,
which is an extra of the installation and loaded when traces are made. Spans are sent by a thread of
the library; an endpoint that does not answer costs spans, never a request, and at the end of the
process two seconds at most.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from mictlanfs import __version__, tracecontext
from mictlanfs.errors import UsageError
from mictlanfs_server import environment as variables

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Callable[[], Awaitable[Message]], Send], Awaitable[None]]

TRACES_PATH: Final = "/v1/traces"
EXPORT_TIMEOUT_S: Final = 2
_SERVER_FAULT: Final = 500
# Source: W3C Trace Context.
_CONTEXT_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})


class TraceSettings(Struct, frozen=True):
    """Where traces go, and whose they are.

    Attributes:
        endpoint: a URL, without `/v1/traces`.
        service: `service.name`.
        instance: `service.instance.id`, the id of the server.
    """

    endpoint: str
    service: str
    instance: str


def trace_settings(environ: Mapping[str, str], service: str, instance: str) -> TraceSettings | None:
    """What the environment asks for; None: no traces.

    Raises:
        UsageError: a variable means nothing.
    """
    if not variables.TRACES.value(environ):
        return None
    named = variables.TRACES_ENDPOINT.read(environ) or variables.OTLP_ENDPOINT.read(environ)
    if named is None:
        log.info(
            "no traces: neither %s nor %s says where to",
            *(variables.TRACES_ENDPOINT.name, variables.OTLP_ENDPOINT.name),
        )
        return None
    if not named.startswith(("http://", "https://")):
        name = next(
            v.name for v in (variables.TRACES_ENDPOINT, variables.OTLP_ENDPOINT) if v.read(environ)
        )
        raise UsageError(f"{name} is {named!r}: it must be a URL such as http://localhost:4318")
    return TraceSettings(named.rstrip("/"), service, instance)


class _Process:
    """What the process makes traces with, while it does."""

    tracer: Tracer | None = None


@contextmanager
def tracing(settings: TraceSettings | None) -> Iterator[None]:
    """Make traces inside the block; what is left of them is sent at its end.

    Raises:
        UsageError: the library is not installed.
    """
    if settings is None:
        yield
        return
    provider = _provider(settings)
    _Process.tracer = provider.get_tracer("mictlanfs", __version__)
    from opentelemetry.propagate import inject

    def headers() -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        inject(carrier)
        return carrier

    tracecontext.set_source(headers)
    log.info("sending traces to %s", settings.endpoint + TRACES_PATH)
    try:
        yield
    finally:
        tracecontext.set_source(None)
        _Process.tracer = None
        _shut_down(provider)


def span(name: str) -> AbstractContextManager[Span | None]:
    """A span around the block, within that of the request; None where no traces are made."""
    tracer = _Process.tracer
    return nullcontext() if tracer is None else tracer.start_as_current_span(name)


def traced(app: Application) -> Application:
    """`app` with a span around each request, if traces are made when it is called here."""
    return app if _Process.tracer is None else _Traced(app, _Process.tracer)


def _provider(settings: TraceSettings) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(
            f"{variables.TRACES.name} asks for traces and OpenTelemetry is not installed: "
            f"pip install 'mictlanfs[otel]' ({error})"
        ) from error
    resource = Resource.create(
        {
            "service.name": settings.service,
            "service.instance.id": settings.instance,
            "service.version": __version__,
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(settings.endpoint + TRACES_PATH, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _shut_down(provider: TracerProvider) -> None:
    # A thread of its own, and not waited for longer: the library tries again while it can.
    thread = threading.Thread(target=provider.shutdown, daemon=True, name="traces-end")
    thread.start()
    thread.join(EXPORT_TIMEOUT_S)
    if thread.is_alive():
        log.warning("the last traces could not be sent")


class _Traced:
    """An application with a span around each request."""

    def __init__(self, app: Application, tracer: Tracer) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, StatusCode

        self._app = app
        self._tracer = tracer
        self._extract = extract
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        names = ("traceparent", "tracestate")
        texts = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        context = self._extract({name: texts[name] for name in names if name in texts})
        method, path = scope["method"], scope["path"]
        with self._tracer.start_as_current_span(
            method,
            context,
            self._kind,
            {"http.request.method": method, "url.path": path},
        ) as current:

            async def send_and_see(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._answered(current, message["status"])
                await send(message)

            await self._app(scope, receive, send_and_see)
            template = getattr(scope.get("route"), "path", None) or scope.get("template")
            if template is not None:
                current.set_attribute("http.route", template)
                current.update_name(f"{method} {template}")

    def _answered(self, current: Span, status: int) -> None:
        current.set_attribute("http.response.status_code", status)
        if status >= _SERVER_FAULT:
            current.set_status(self._error)
