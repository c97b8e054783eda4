"""Gives processes of this machine the descriptors of chunks; see `mictlanfs.localchunks`.

Owns a listening socket and the connections to it, all of the running event loop. Never waits for a
client: what does not fit into its socket at once ends the connection, and the client goes on by
HTTP. A peer whose socket cannot be had works without it.
"""

from __future__ import annotations

import asyncio
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


class LocalServer:
    """Serves one peer's chunks.

    Args:
        open_chunk: a new descriptor for reading a chunk and the checksums of its blocks, or None;
            must not wait for long.
    """

    def __init__(self, open_chunk: Callable[[ChunkId], tuple[int, bytes] | None]) -> None:
        self._open_chunk = open_chunk
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()

    def listen(self, space_id: str, peer_id: str) -> None:
        """Begin to answer, on the running event loop; once is enough."""
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            listener.bind(socket_name(space_id, peer_id))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            log.warning("mounts of this machine get no descriptors: %s", error)
            return
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def close(self) -> None:
        """Hang up on everybody; twice is once."""
        if self._listener is not None:
            self._drop(self._listener)
            self._listener = None
        while self._connections:
            self._hang_up(next(iter(self._connections)))

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            # The client is gone already, or there are no descriptors left.
            log.debug("nobody was accepted: %s", error)
            return
        if len(self._connections) >= CONNECTIONS_MAX or not is_trusted(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._connections.add(connection)
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

    def _hang_up(self, connection: socket.socket) -> None:
        self._connections.discard(connection)
        self._drop(connection)

    def _drop(self, one: socket.socket) -> None:
        # Without a running loop nothing listens to it any more.
        with suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(one.fileno())
        one.close()
