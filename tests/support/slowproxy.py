"""A way to one server that can be slow, and that can end in the middle of a body.

Passes bytes of TCP connections on, each direction in a thread of its own. What is passed on from
and to all connections together is limited to a rate, like a narrow link.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

_SIZE = 256 * 1024
# Of a throttled link: what one connection may be ahead of the others.
_SLICE = 16 * 1024


class SlowProxy:
    """Listens on a port of loopback for the server at `port`.

    Attributes:
        port: where it listens.
        passed_bytes: passed on so far, from the server and to it.
    """

    def __init__(self, server_port: int, port: int = 0) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.passed_bytes = {"from": 0, "to": 0}
        self._rate: float | None = None
        self._free_at_s = 0.0
        self._cuts: dict[str, tuple[int, Callable[[], None]]] = {}
        self._open: set[socket.socket] = set()
        self._is_over = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """What the server advertises, so that everybody comes this way."""
        return f"http://127.0.0.1:{self.port}"

    def throttle(self, bytes_per_s: float | None) -> None:
        """Pass at most so much on from now on, in both directions together; None: any amount."""
        with self._lock:
            self._rate = bytes_per_s
            self._free_at_s = time.monotonic()

    def end_after(self, count: int, direction: str, then: Callable[[], None]) -> None:
        """Call `then`, and end for good, when `count` more bytes have passed `from` or `to`."""
        with self._lock:
            self._cuts[direction] = (self.passed_bytes[direction] + count, then)

    def close(self) -> None:
        """End for good: connections are reset, and new ones refused."""
        with self._lock:
            self._is_over = True
            found = [self._listener, *self._open]
        for connection in found:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port))
                except OSError:
                    client.close()
                    continue
                for connection in (client, server):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    if self._is_over:
                        client.close()
                        server.close()
                        return
                    self._open |= {client, server}
                for source, sink, direction in (
                    (client, server, "to"),
                    (server, client, "from"),
                ):
                    words = (source, sink, direction)
                    threading.Thread(target=self._pass_on, args=words, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(_SIZE if self._rate is None else _SLICE):
                self._wait(len(part))
                sink.sendall(part)
                self._count(len(part), direction)
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _wait(self, size: int) -> None:
        with self._lock:
            if self._rate is None:
                return
            now_s = time.monotonic()
            wait_s = max(0.0, self._free_at_s - now_s)
            self._free_at_s = max(self._free_at_s, now_s) + size / self._rate
        time.sleep(wait_s)

    def _count(self, size: int, direction: str) -> None:
        with self._lock:
            self.passed_bytes[direction] += size
            limit, then = self._cuts.get(direction, (None, None))
            if limit is None or then is None or self.passed_bytes[direction] < limit:
                return
            del self._cuts[direction]
        then()
        self.close()


@contextlib.contextmanager
def slow_proxy(server_port: int) -> Iterator[SlowProxy]:
    """A proxy that is gone on leaving."""
    proxy = SlowProxy(server_port)
    try:
        yield proxy
    finally:
        proxy.close()
