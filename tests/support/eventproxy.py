"""A way from one mount to the router on which the stream of events can be cut, and nothing else.

Passes requests of HTTP/1.1 on, each connection in two threads of its own. Requests follow each
other on a connection, so each is looked at; an answer is passed on as it comes.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from enum import Enum

from mictlanfs.wire import Path

_LENGTH = re.compile(rb"(?im)^content-length: *(\d+)\r$")
_HEAD_END = b"\r\n\r\n"
_SIZE = 65536


class Stream(Enum):
    """What becomes of requests for events."""

    WHOLE = "whole"
    # The connection is closed; those under way as well.
    CUT = "cut"
    # Nothing arrives, and nobody is told.
    SILENT = "silent"


class EventProxy:
    """Listens on a port of loopback for one router.

    Attributes:
        port: where it listens.
        counts: requests that were passed on, by path.
        withheld_count: requests for events that were not.
    """

    def __init__(self, router_port: int) -> None:
        self._router_port = router_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.counts: Counter[str] = Counter()
        self.withheld_count = 0
        self._stream = Stream.WHOLE
        # Connections of which the last request was for events.
        self._with_events: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def set_stream(self, stream: Stream) -> None:
        """Cut the stream of events, or let it flow again."""
        with self._lock:
            self._stream = stream
            under_way = list(self._with_events) if stream is not Stream.WHOLE else []
        for connection in under_way:
            _shut(connection)

    def close(self) -> None:
        """Close everything."""
        with self._lock:
            found = [self._listener, *self._open]
        for connection in found:
            _shut(connection)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                router = socket.create_connection(("127.0.0.1", self._router_port))
                with self._lock:
                    self._open |= {client, router}
                for work in (self._pass_requests, self._pass_answers):
                    threading.Thread(target=work, args=(client, router), daemon=True).start()

    def _pass_requests(self, client: socket.socket, router: socket.socket) -> None:
        received = b""
        with contextlib.suppress(OSError):
            while True:
                while _HEAD_END not in received:
                    part = client.recv(_SIZE)
                    if not part:
                        raise ConnectionError
                    received += part
                head, _, received = received.partition(_HEAD_END)
                length = _LENGTH.search(head + b"\r")
                body_size = int(length[1]) if length is not None else 0
                while len(received) < body_size:
                    part = client.recv(_SIZE)
                    if not part:
                        raise ConnectionError
                    received += part
                body, received = received[:body_size], received[body_size:]
                path = head.split(b" ", 2)[1].decode("ascii")
                if self._may_pass(client, path):
                    router.sendall(head + _HEAD_END + body)
        _shut(client)
        _shut(router)

    def _may_pass(self, client: socket.socket, path: str) -> bool:
        with self._lock:
            self._with_events.discard(client)
            if path == Path.SESSION_EVENTS:
                self._with_events.add(client)
                if self._stream is not Stream.WHOLE:
                    self.withheld_count += 1
                if self._stream is Stream.CUT:
                    raise ConnectionError
                if self._stream is Stream.SILENT:
                    return False
            self.counts[path] += 1
            return True

    def _pass_answers(self, client: socket.socket, router: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := router.recv(_SIZE):
                client.sendall(part)
        _shut(client)
        _shut(router)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def event_proxy(router_port: int) -> Iterator[EventProxy]:
    """A proxy that is gone on leaving."""
    proxy = EventProxy(router_port)
    try:
        yield proxy
    finally:
        proxy.close()
