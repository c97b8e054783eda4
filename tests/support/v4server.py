"""Servers of the v4 API for tests: real HTTP on loopback, with faults made to order.

What they answer is in `v4router` and `v4peer`.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote

import h11
import trio

from tests.support.v4space import REQUIRED, Json, V4Space


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def parts(self) -> list[str]:
        return [unquote(part) for part in self.path.split("/")[3:]]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Answer:
    status: int = 200
    content: Json = None
    data: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> tuple[list[tuple[str, str]], bytes]:
        """Headers and body; data has no length, as in the public router."""
        if self.data is not None:
            return [("Content-Type", "application/octet-stream"), *self.headers.items()], self.data
        body = b"" if self.content is None else json.dumps(self.content).encode()
        length = [] if self.status == 204 else [("Content-Length", str(len(body)))]
        return [("Content-Type", "application/json"), *length, *self.headers.items()], body


class RefusalError(Exception):
    def __init__(self, status: int, detail: Json) -> None:
        super().__init__(status, detail)
        self.answer = Answer(status, {"detail": detail})


@dataclass
class Fault:
    """What goes wrong with the next `count` requests that match, after `skip` others.

    Attributes:
        what: "status" (answers `status` and does nothing), "drop" (hangs up and does nothing),
            "lose" (does it and hangs up), "cut" (hangs up in the middle of the body), "flip" (one
            bit of the body), "short" (a byte less), "long" (a byte more), "stall" (never answers).
    """

    what: str
    pattern: str
    count: float
    skip: int = 0
    status: int = 503
    content: Json = None


class V4Server:
    """One server. `requests` are all that came, `busy_max` how many at once.

    Attributes:
        on_request: called before each request is handled.
    """

    def __init__(self, space: V4Space) -> None:
        self.space = space
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.busy = 0
        self.busy_max = 0
        self.delay_s = 0.0
        self.connection_count = 0
        self.port = 0
        self.on_request: Callable[[Request], None] = lambda request: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(
        self,
        what: str,
        pattern: str = "",
        *,
        count: float = 1,
        skip: int = 0,
        status: int = 503,
        content: Json = None,
    ) -> None:
        """Make requests fail whose method and path, with one blank between, match a pattern."""
        self.faults.append(Fault(what, pattern, count, skip, status, content))

    def asked(self, pattern: str = "") -> list[str]:
        """The requests so far that match a pattern."""
        return [str(request) for request in self.requests if re.search(pattern, str(request))]

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connection_count += 1
        connection = h11.Connection(h11.SERVER)
        try:
            while (request := await _receive(stream, connection)) is not None:
                self.busy += 1
                self.busy_max = max(self.busy_max, self.busy)
                try:
                    if not await self._respond(stream, connection, request):
                        return
                finally:
                    self.busy -= 1
                if connection.our_state is not h11.DONE:
                    return
                connection.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _respond(
        self, stream: trio.abc.Stream, connection: h11.Connection, request: Request
    ) -> bool:
        """Whether the connection can be used again."""
        self.requests.append(request)
        self.on_request(request)
        await trio.sleep(self.delay_s)
        fault = self._fault(request)
        what = fault.what if fault else ""
        if what == "stall":
            await trio.sleep_forever()
        if what == "drop":
            return False
        if fault is not None and what == "status":
            answer = Answer(fault.status, fault.content)
        else:
            answer = self._handled(request)
        if what == "lose":
            return False
        await _send(stream, connection, answer, what)
        return what != "cut"

    def _fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.count > 0 and re.search(fault.pattern, str(request)):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.count -= 1
                return fault
        return None

    def _handled(self, request: Request) -> Answer:
        if not request.path.startswith("/api/v4/"):
            return Answer(404, {"detail": "Not Found"})
        for method, pattern, handle in self.routes():
            match = re.fullmatch(pattern, request.path)
            if match and method == request.method:
                try:
                    return handle(request, *map(unquote, match.groups()))
                except RefusalError as refusal:
                    return refusal.answer
        return Answer(404, {"detail": "Not Found"})

    def routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        raise NotImplementedError


async def _receive(stream: trio.abc.Stream, connection: h11.Connection) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(1 << 20)))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            target = head.target.decode()
            path, _, query = target.partition("?")
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return Request(head.method.decode(), path, dict(parse_qsl(query)), headers, bytes(body))
        else:
            return None


async def _send(
    stream: trio.abc.Stream, connection: h11.Connection, answer: Answer, what: str
) -> None:
    headers, body = answer.encoded()
    if what == "flip":
        body = bytes([body[0] ^ 1]) + body[1:]
    elif what == "short":
        body = body[:-1]
    elif what == "long":
        body += b"!"
    response = h11.Response(status_code=answer.status, headers=headers)
    await stream.send_all(connection.send(response) or b"")
    # Pieces of any size, as a router passes them on.
    step = max(1, len(body) // 3)
    for start in range(0, len(body), step):
        if what == "cut" and start:
            return
        data = connection.send(h11.Data(data=body[start : start + step]))
        await stream.send_all(data or b"")
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")


def checked_metadata(request: Request, *, flag: str) -> dict[str, Json]:
    """The body of the first step of a put, complete; `flag` is what `is_disabled` is called."""
    try:
        given = json.loads(request.body)
    except ValueError:
        raise RefusalError(422, [{"msg": "JSON decode error"}]) from None
    known = {**REQUIRED, "tags": dict, "content_type": str, flag: bool, "replication_factor": int}
    wrong = [
        name
        for name, kind in known.items()
        if (name in REQUIRED and name not in given)
        or (name in given and not isinstance(given[name], kind))
    ]
    wrong += [n for n, v in given.get("tags", {}).items() if not isinstance(v, str)]
    if wrong:
        raise RefusalError(422, [{"loc": ["body", name], "msg": "wrong"} for name in wrong])
    given["is_disabled"] = given.pop(flag, False)
    given.setdefault("tags", {})
    given.setdefault("content_type", "application/octet-stream")
    return dict(given)


def form_field(request: Request, name: str) -> bytes:
    """The only field of a form, which must be a file called `name`."""
    kind, _, boundary = request.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    body = request.body
    start, end = f"--{boundary}\r\n".encode(), f"\r\n--{boundary}--\r\n".encode()
    assert body.startswith(start)
    assert body.endswith(end)
    head, _, value = body[len(start) : -len(end)].partition(b"\r\n\r\n")
    assert f'name="{name}"; filename="'.encode() in head
    return value


@asynccontextmanager
async def serving(
    *servers: V4Server, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[V4Server, ...]]:
    """Servers that answer inside the block, each on a free port."""
    async with trio.open_nursery() as nursery:
        for server in servers:
            if tls is None:
                serve: Any = partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1")
            else:
                serve = partial(
                    trio.serve_ssl_over_tcp,
                    server.serve,
                    0,
                    tls,
                    host="127.0.0.1",
                    https_compatible=True,
                )
            listeners = await nursery.start(serve)
            listener = getattr(listeners[0], "transport_listener", listeners[0])
            server.port = listener.socket.getsockname()[1]
        yield servers
        nursery.cancel_scope.cancel()


@contextmanager
def serving_in_a_thread(*servers: V4Server) -> Iterator[None]:
    """Servers that answer inside the block, also to whoever blocks."""
    started, done = threading.Event(), trio.Event()
    token: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with serving(*servers):
            started.set()
            await done.wait()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    started.wait()
    try:
        yield
    finally:
        token[0].run_sync_soon(done.set)
        thread.join()


def uri_of(*servers: V4Server, protocol: str = "http") -> str:
    specs = ",".join(f"router-{i}@127.0.0.1:{s.port}" for i, s in enumerate(servers))
    return f"mictlanx://{specs}/?protocol={protocol}"
