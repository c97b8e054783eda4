"""A connection that goes bad: a TCP proxy before a server that can be slow, silent, or cut."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from enum import Enum

_PIECE_SIZE_BYTES = 16 * 1024
_POLL_S = 0.1


class Link(Enum):
    """How the connections are."""

    GOOD = "passes everything"
    SLOW = "passes some bytes a second"
    SILENT = "accepts, and passes nothing: half open, as behind a dead machine"
    CUT = "breaks every connection off, and refuses new ones"
    CUT_IN_BODIES = "breaks each connection off after some bytes of an answer"


class BadLink:
    """Passes connections to a port of loopback on, as `link` says at the moment.

    Attributes:
        port: where it listens.
        bytes_per_s: of each direction of each connection while SLOW.
        cut_after_bytes: of an answer with CUT_IN_BODIES.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.link = Link.GOOD
        self.bytes_per_s = 20_000
        self.cut_after_bytes = 50_000
        self.cut_count = 0
        self._is_over = False
        self._threads = [threading.Thread(target=self._accept, name="badlink")]
        self._threads[0].start()

    def close(self) -> None:
        """Break off everything."""
        self._is_over = True
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._is_over:
            if not select.select([self._listener], [], [], _POLL_S)[0]:
                continue
            near, _ = self._listener.accept()
            thread = threading.Thread(target=self._pass_on, args=(near,), name="badlink")
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, near: socket.socket) -> None:
        with near:
            if self.link is Link.CUT:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target_port), 5)
            except OSError:
                return
            with far, contextlib.suppress(OSError):
                self._exchange(near, far)

    def _exchange(self, near: socket.socket, far: socket.socket) -> None:
        answered = 0
        while not self._is_over and self.link is not Link.CUT:
            if self.link is Link.SILENT:
                time.sleep(_POLL_S)
                continue
            for source in select.select([near, far], [], [], _POLL_S)[0]:
                piece = source.recv(_PIECE_SIZE_BYTES)
                if not piece:
                    return
                if self.link is Link.SLOW:
                    time.sleep(len(piece) / self.bytes_per_s)
                (far if source is near else near).sendall(piece)
                if source is far:
                    answered += len(piece)
            if self.link is Link.CUT_IN_BODIES and answered > self.cut_after_bytes:
                self.cut_count += 1
                return


@contextlib.contextmanager
def bad_link(target_port: int) -> Iterator[BadLink]:
    """A proxy before a port, gone on leaving."""
    link = BadLink(target_port)
    try:
        yield link
    finally:
        link.close()
