"""Gives processes of this machine the descriptors of chunks; see `mictlanfs.localchunks`.

Owns a listening socket and the connections to it, all of the running event loop. Never waits for a
client: what does not fit into its socket at once ends the connection, and the client goes on by
HTTP. A peer whose socket cannot be had works without it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mictlanfs.errors import MictlanError
from mictlanfs.localchunks import (
    REQUEST_SIZE_BYTES_MAX,
    is_trusted,
    pack_answer,
    socket_name,
    split_ids,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mictlanfs.model import ChunkId

log = logging.getLogger(__name__)

# As many mounts of one machine; further ones go on by HTTP.
CONNECTIONS_MAX: Final = 256
_BACKLOG: Final = 64
# What accepting fails with while descriptors or memory are short: who waits is still there then, so
# the loop would call again at once, for ever.
_SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
SHORTAGE_PAUSE_S: Final = 1.0


class LocalListener:
    """A listening socket of one peer that processes of this machine and user may connect to.

    Args:
        name_of: the socket's name, by the ids of the space and the peer.
    """

    def __init__(self, name_of: Callable[[str, str], str]) -> None:
        self._name_of = name_of
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._is_complained = False

    def listen(self, space_id: str, peer_id: str) -> None:
        """Begin to answer, on the running event loop, unless that has been done.

        Never fails. Call it again from time to time: what was in the way may be gone.
        """
        if self._listener is not None:
            return
        try:
            self._listener = _listener_of(self._name_of(space_id, peer_id))
        except OSError as error:
            if not self._is_complained:
                log.warning("mounts of this machine get no descriptors: %s", error)
            self._is_complained = True
            return
        self._is_complained = False
        self._watch(self._listener)

    def close(self) -> None:
        """Hang up on everybody; twice is once."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._listener is not None:
            self._drop(self._listener)
            self._listener = None
        while self._connections:
            self._hang_up(next(iter(self._connections)))

    def _watch(self, listener: socket.socket) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            log.debug("nobody was accepted: %s", error)
            if error.errno in _SHORTAGES:
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener.fileno())
                self._pause = loop.call_later(SHORTAGE_PAUSE_S, self._watch, listener)
            return
        if len(self._connections) >= CONNECTIONS_MAX or not is_trusted(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._connections.add(connection)
        self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        """Serve a connection from now on. Must not fail."""
        raise NotImplementedError

    def _hang_up(self, connection: socket.socket) -> None:
        self._connections.discard(connection)
        self._drop(connection)

    def _drop(self, one: socket.socket) -> None:
        # Without a running loop nothing listens to it any more.
        with suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(one.fileno())
        one.close()


class LocalServer(LocalListener):
    """Gives away one peer's chunks.

    Args:
        open_chunk: a new descriptor for reading a chunk and the checksums of its blocks, or None;
            must not wait for long.
    """

    def __init__(self, open_chunk: Callable[[ChunkId], tuple[int, bytes] | None]) -> None:
        super().__init__(socket_name)
        self._open_chunk = open_chunk

    def _begin(self, connection: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(connection.fileno(), self._answer, connection)

    def _answer(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            # One byte more, so that what is too long is seen to be.
            packet = connection.recv(REQUEST_SIZE_BYTES_MAX + 1)
            all_sums: list[bytes | None] = []
            for chunk_id in split_ids(packet):
                opened = self._open_chunk(chunk_id)
                all_sums.append(None if opened is None else opened[1])
                if opened is not None:
                    descriptors.append(opened[0])
            socket.send_fds(connection, [pack_answer(all_sums)], descriptors)
        except (OSError, ValueError, MictlanError) as error:
            # An empty packet, which is none, is how the end looks.
            log.debug("hanging up on a client: %s", error)
            self._hang_up(connection)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _listener_of(name: str) -> socket.socket:
    """A socket that listens at `name`. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        listener.bind(name)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
