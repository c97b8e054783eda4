"""A network without sockets: servers in this process behind the client's own transport interface.

Requests can be made to fail before or after the server has seen them, or in the middle of an
answer, and be held back or delayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from mictlanfs import wire
from mictlanfs.client.reception import Reception
from mictlanfs.client.transport import HttpTransport, Response
from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError
from mictlanfs.model import Buffer


@dataclass(frozen=True)
class Request:
    """A request as a fake server gets it."""

    method: str
    url: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class FakeServer(Protocol):
    """Answers requests at once; a `MictlanError` it raises travels as servers send it."""

    def handle(self, request: Request) -> Response: ...


@dataclass
class _Fault:
    path: str
    error: MictlanError
    count: int
    is_late: bool


@dataclass
class FakeNet(HttpTransport):
    """A transport that reaches the servers it was told of and no others.

    Attributes:
        servers: by base URL. One that is not there refuses connections.
        requests: all that were made, in order, refused ones too.
        latency_s: of every request.
        delays_s: of those whose URL contains the key, besides.
    """

    servers: dict[str, FakeServer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    latency_s: float = 0.0
    delays_s: dict[str, float] = field(default_factory=dict)
    is_closed: bool = False
    _faults: list[_Fault] = field(default_factory=list)
    _gates: dict[str, trio.Event] = field(default_factory=dict)
    _cuts: dict[str, int] = field(default_factory=dict)

    def fail(
        self, path: str, kind: Kind = Kind.UNAVAILABLE, *, count: int = 1, is_late: bool = False
    ) -> None:
        """Fail the next `count` requests whose URL contains `path`.

        With `is_late` the server sees the request and only its answer is lost.
        """
        self._faults.append(_Fault(path, MictlanError(kind, "fake", path), count, is_late))

    def cut(self, path: str, count: int) -> None:
        """End the next answer to a URL that contains `path` after `count` bytes of its body."""
        self._cuts[path] = count

    def clear_faults(self) -> None:
        """Let every request from now on pass."""
        self._faults.clear()

    def hold(self, path: str) -> trio.Event:
        """Hold requests whose URL contains `path` until the event that is returned is set."""
        gate = self._gates[path] = trio.Event()
        return gate

    def paths(self, part: str = "") -> list[str]:
        """The paths requested so far that contain `part`."""
        return [request.path for request in self.requests if part in request.path]

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Response:
        return await self._serve(method, url, body, headers, None)

    async def request_into(
        self,
        method: str,
        url: str,
        into: Reception,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Response:
        return await self._serve(method, url, None, headers, into)

    async def _serve(
        self,
        method: str,
        url: str,
        body: Buffer | Sequence[Buffer] | None,
        headers: Mapping[str, str] | None,
        into: Reception | None,
    ) -> Response:
        base, slash, rest = url.partition("/mictlanfs/")
        request = Request(method, url, slash + rest, dict(headers or {}), _joined(body))
        self.requests.append(request)
        delays_s = (delay_s for part, delay_s in self.delays_s.items() if part in url)
        await trio.sleep(self.latency_s + sum(delays_s))
        for path, gate in list(self._gates.items()):
            if path in url:
                await gate.wait()
        fault = self._next_fault(url)
        if fault is not None and not fault.is_late:
            raise fault.error
        server = self.servers.get(base)
        if server is None:
            raise MictlanError(Kind.UNAVAILABLE, method, url, "connection refused")
        response = _answer(server, request)
        if fault is not None:
            raise fault.error
        self._cut_short(url, response, into)
        return response

    def _cut_short(self, url: str, response: Response, into: Reception | None) -> None:
        for path in [path for path in self._cuts if path in url]:
            part = response.body[: self._cuts.pop(path)]
            if into is not None and into.missing_size == len(response.body):
                into.add(part)
            raise MictlanError(Kind.UNAVAILABLE, "GET", url, "the server hung up in a body")

    def _next_fault(self, url: str) -> _Fault | None:
        for fault in self._faults:
            if fault.count > 0 and fault.path in url:
                fault.count -= 1
                return fault
        return None

    async def aclose(self) -> None:
        self.is_closed = True


def _answer(server: FakeServer, request: Request) -> Response:
    try:
        return server.handle(request)
    except MictlanError as error:
        return Response(HTTP_STATUS[error.kind], {}, wire.encode_error(error))


def _joined(body: Buffer | Sequence[Buffer] | None) -> bytes:
    if body is None:
        return b""
    return bytes(body) if isinstance(body, Buffer) else b"".join(body)
