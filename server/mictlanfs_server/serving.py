"""One server process: binds its socket, runs its application, stops it in order.

Owns the listening socket, the event loop, the signals, the lifeline, the way that large bodies take
past uvicorn. Never knows what the application does. A server never listens beyond this machine
without TLS and tokens unless told to, and never outlives the supervisor that holds the other end of
its lifeline.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import httptools
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mictlanfs.errors import MictlanError, UsageError
from mictlanfs.logsetup import DEFAULT_LOGS, LogSettings, log_to_stderr
from mictlanfs.processes import collect_garbage_rarely, raise_descriptor_limit
from mictlanfs_server.bodies import EXTENSION, LARGE_BODY_SIZE_BYTES, RequestBody

if TYPE_CHECKING:
    from types import FrameType

    from uvicorn._types import ASGIReceiveEvent

log = logging.getLogger(__name__)

BACKLOG = 1024
_PORT_MAX = 65535
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_READ_SIZE_BYTES = 64 * 1024
# Above the time-out of any client's pool, so that it is the client who closes an idle connection:
# a request that meets the server's close on its way would have to be sent again.
KEEP_ALIVE_S = 75
GRACEFUL_SHUTDOWN_S = 5

Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound server, as its application sees it.

    Attributes:
        host: the address bound, never a name.
        port: the port bound, never 0.
        stop: ends the server in order, from any thread or task; with an error, `serve` raises it
            afterwards. The first error given counts.
    """

    host: str
    port: int
    stop: Callable[[MictlanError | None], None]

    @property
    def url(self) -> str:
        """Where the server answers, without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def serve(
    app: Application,
    *,
    name: str,
    host: str,
    port: int,
    insecure: bool,
    lifeline_fd: int | None = None,
    on_listening: Callable[[Listener], None] | None = None,
    on_stopping: Callable[[], None] | None = None,
    direct_bodies: bool = False,
    joined_answers: bool = False,
    logs: LogSettings | None = DEFAULT_LOGS,
) -> None:
    """Serve `app` until SIGTERM, SIGINT, the end of the lifeline or `Listener.stop`.

    Requests that run when the end comes have 5 s to finish; then the application's lifespan ends.

    Args:
        app: an ASGI application that speaks the lifespan protocol.
        name: of the server, in log lines.
        host: a name or address of this machine.
        port: 0 lets the kernel choose one that is free.
        insecure: whether to listen beyond the loopback interface.
        lifeline_fd: the read end of a pipe whose write end the supervisor holds open; taken over.
        on_listening: called once, in this thread, when the socket is bound and before the
            application starts.
        on_stopping: called in the event loop when the end comes, before requests are waited for.
        direct_bodies: whether large bodies are offered as `bodies.RequestBody`.
        joined_answers: whether the head of an answer waits for its body. Not with `direct_bodies`.
        logs: how to log; None: the caller has seen to it.

    Raises:
        UsageError: the address is refused, not ours, or in use.
        MictlanError: what `Listener.stop` was given.
        SystemExit: the application failed to start; the reason is in the log.
    """
    if logs is not None:
        log_to_stderr(name, logs)
    raise_descriptor_limit()
    collect_garbage_rarely()
    bound = bind(host, port, insecure=insecure)
    try:
        address = bound.getsockname()
        protocol: type[Any] = _JoinedHttp if joined_answers else HttpToolsProtocol
        server = _Server(_config(app, _Connection if direct_bodies else protocol))
        server.on_stopping = on_stopping
        if on_listening is not None:
            on_listening(Listener(address[0], address[1], server.stop))
        log.info("listening on %s port %d", *address[:2], extra={"pid": os.getpid()})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve_with(bound, lifeline_fd))
    finally:
        bound.close()
    if server.error is not None:
        raise server.error
    log.info("stopped")


def bind(host: str, port: int, *, insecure: bool) -> socket.socket:
    """A socket bound to `host` and `port`, not yet listening.

    Raises:
        UsageError: the address is beyond loopback and not `insecure`, is not ours, or is in use.
    """
    where = f"{host} port {port}"
    if not 0 <= port <= _PORT_MAX:
        # getaddrinfo(3) would take the lower 16 bits.
        raise UsageError(f"cannot listen on {where}: ports go from 0 to {_PORT_MAX}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {where}: {error}") from error
    family, kind, protocol, _, address = found[0]
    # What is judged is what is bound: a name could mean another address the next time.
    if not insecure and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise UsageError(
            f"{host} can be reached from other machines: "
            "use --insecure to listen there without TLS and tokens"
        )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise _bind_error(error, where) from error
    return bound


def _bind_error(error: OSError, where: str) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"{where} is in use: choose another one with --port")
    if error.errno == errno.EACCES:
        return UsageError(f"{where} is reserved for root: choose one above 1023 with --port")
    return UsageError(f"cannot listen on {where}: {error}")


def _config(app: Application, protocol: type[Any]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # uvicorn asks for a Protocol, but hands the class to the event loop only, which takes both.
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )


class _Server(uvicorn.Server):
    """uvicorn with a lifeline, ending with status 0 after a signal."""

    error: MictlanError | None = None
    on_stopping: Callable[[], None] | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let requests end, end the application."""
        if self.on_stopping is not None:
            self.on_stopping()
        await super().shutdown(sockets)

    def stop(self, error: MictlanError | None = None) -> None:
        """End in order. Safe in any thread: uvicorn looks at the flag ten times a second."""
        self.error = self.error or error
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on a signal; the second one does not wait for requests.

        uvicorn's own form raises the signal again when all is stopped, which would make an orderly
        stop look like a death to the supervisor.
        """
        if self.should_exit:
            self.force_exit = True
        self.stop()

    async def serve_with(self, bound: socket.socket, lifeline_fd: int | None) -> None:
        """Serve on `bound` until told to stop."""
        if lifeline_fd is None:
            await self.serve([bound])
            return
        loop = asyncio.get_running_loop()
        os.set_blocking(lifeline_fd, False)
        loop.add_reader(lifeline_fd, self._read_lifeline, lifeline_fd)
        try:
            await self.serve([bound])
        finally:
            loop.remove_reader(lifeline_fd)
            os.close(lifeline_fd)

    def _read_lifeline(self, lifeline_fd: int) -> None:
        try:
            data = os.read(lifeline_fd, 4096)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(lifeline_fd)
            log.info("the supervisor is gone: stopping")
            self.stop()


class _JoinedHttp(HttpToolsProtocol):
    """uvicorn's HTTP, with the head of an answer and the first of its body in one write.

    With two, a client on the same machine is awake for the head and has to wait once more.
    """

    def on_headers_complete(self) -> None:
        """Begin a request."""
        before = self.cycle
        super().on_headers_complete()
        # A HEAD request is answered without a body.
        if self.cycle is not before and self.scope["method"] != "HEAD":
            self.cycle.transport = cast("asyncio.Transport", _HeadHolder(self.transport))


class _HeadHolder:
    """The transport of one answer: keeps the first that is written until the second comes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._is_begun = False

    def write(self, data: bytes) -> None:
        """Send, or keep."""
        if self._is_begun or data.startswith(_CONTINUE):
            self._transport.write(self._head + data if self._head else data)
            self._head = b""
        else:
            self._is_begun, self._head = True, data

    def close(self) -> None:
        """Send what is left and close."""
        if self._head:
            self._transport.write(self._head)
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._transport.is_closing()


class _Http(HttpToolsProtocol):
    """uvicorn's HTTP, with large bodies led past its parser.

    The parser sees the head, and the part of the body that came with it. Once a body has gone past
    it, a new parser takes over for the next request.

    Attributes:
        body: what is being received now, None between bodies and for small ones.
    """

    body: RequestBody | None = None

    def on_headers_complete(self) -> None:
        """Begin a request."""
        super().on_headers_complete()
        length = self._content_length()
        # A request that waits behind another one is left to uvicorn, which stops reading then.
        if length >= LARGE_BODY_SIZE_BYTES and not self.pipeline:
            cycle = self.cycle
            self.body = RequestBody(length, self.flow, lambda: _send_continue(cycle))
            self.scope["extensions"] = {EXTENSION: cast("dict[object, object]", self.body)}
            _receive_from(cycle, self.body)

    def on_body(self, body: bytes) -> None:
        """Take what the parser found of a body."""
        if self.body is None:
            super().on_body(body)
        else:
            self.body.feed(body)

    def on_message_complete(self) -> None:
        """End a request that went through the parser."""
        self.body = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Let what is left of the body go by."""
        if self.body is not None:
            self.body.abandon()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever reads."""
        if self.body is not None:
            self.body.lost()
        super().connection_lost(exc)

    def end_body(self) -> None:
        """End a request whose body went past the parser."""
        self.body = None
        self.cycle.more_body = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _content_length(self) -> int:
        for name, value in self.headers:
            if name == b"content-length" and value.isdigit():
                return int(value)
        return 0


class _Connection(asyncio.BufferedProtocol):
    """One connection: bodies go into the buffers of whoever reads them, all else to `_Http`."""

    def __init__(self, **uvicorn_arguments: Any) -> None:
        self._http = _Http(**uvicorn_arguments)
        self._buffer = memoryview(bytearray(_READ_SIZE_BYTES))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._http.connection_made(cast("asyncio.Transport", transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._http.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to receive to."""
        del sizehint
        body = self._http.body
        return self._buffer if body is None else body.target()

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        body = self._http.body
        if body is None:
            self._http.data_received(bytes(self._buffer[:nbytes]))
            if self._http.body is not None:
                self._http.body.hold()
            return
        body.received(nbytes)
        if not body.left:
            self._http.end_body()

    def eof_received(self) -> None:
        """The client sends no more; its answers may still be on their way."""
        self._http.eof_received()

    def pause_writing(self) -> None:
        """The client takes its answers slowly."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._http.resume_writing()


def _send_continue(cycle: RequestResponseCycle) -> None:
    """Answer `Expect: 100-continue` (RFC 9110, section 10.1.1), once."""
    if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
        cycle.transport.write(_CONTINUE)
        cycle.waiting_for_100_continue = False


def _receive_from(cycle: RequestResponseCycle, body: RequestBody) -> None:
    """Make `receive` of a request give its body, for applications that know nothing of bodies."""
    receive = cycle.receive

    async def receive_body() -> ASGIReceiveEvent:
        if not body.unread:
            return await receive()
        piece = bytearray(min(body.unread, _READ_SIZE_BYTES))
        try:
            await body.read_into(memoryview(piece))
        except ConnectionError:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": bytes(piece), "more_body": body.unread > 0}

    # mypy cannot know that uvicorn looks the method up when it calls the application.
    cycle.receive = receive_body  # type: ignore[method-assign]
