"""Has processes of this machine write chunks into files; see `mictlanfs.localwrites`.

Owns a listening socket and a task for each connection to it. Never waits for a client longer than
`PATIENCE_S` while a chunk is under way. Decides nothing about chunks: the store does.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from mictlanfs.localwrites import (
    GRANT_SIZE_BYTES,
    WRITTEN,
    State,
    pack_failure,
    unpack_grant,
    write_socket_name,
)
from mictlanfs_server.http import to_mictlan_error
from mictlanfs_server.peer.backends.base import Give, StoredChunk
from mictlanfs_server.peer.localserver import LocalListener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

# A client that takes this long to copy a chunk into the page cache is gone, or as good as.
PATIENCE_S: Final = 30.0


class LocalWrites(LocalListener):
    """Takes chunks for one peer. End it with `aclose`.

    Args:
        put_file: stores a chunk that is written elsewhere; see `ChunkStore.put_file`.
    """

    def __init__(self, put_file: Callable[[StoredChunk, Give], Awaitable[bool]]) -> None:
        super().__init__(write_socket_name)
        self._put_file = put_file
        self._tasks: dict[socket.socket, asyncio.Task[None]] = {}

    async def aclose(self) -> None:
        """Hang up on everybody; what is not written yet is forgotten. Twice is once."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.close()

    def _begin(self, connection: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks[connection] = task

    async def _serve(self, connection: socket.socket) -> None:
        try:
            # An empty packet is how the end looks; one byte more shows what is too long.
            while packet := await _received(connection, GRANT_SIZE_BYTES + 1):
                grant = unpack_grant(packet)
                chunk = StoredChunk(grant.id, grant.length, grant.digest)
                connection.send(await self._answer(connection, chunk))
        except (OSError, ValueError) as error:
            log.debug("hanging up on a client: %s", error)
        finally:
            del self._tasks[connection]
            self._hang_up(connection)

    async def _answer(self, connection: socket.socket, chunk: StoredChunk) -> bytes:
        try:
            await self._put_file(chunk, partial(_give, connection))
        except (OSError, ValueError):
            # Of the connection: there is nobody to answer to.
            raise
        except Exception as error:  # noqa: BLE001 - `to_mictlan_error` logs what is not ours.
            return pack_failure(to_mictlan_error(error, "put chunk"))
        return bytes([State.STORED])


async def _give(connection: socket.socket, descriptor: int) -> None:
    """Pass a descriptor on, and wait until the bytes are written.

    Raises:
        OSError: the client is gone, or takes too long.
        ValueError: the client says something else.
    """
    socket.send_fds(connection, [bytes([State.GRANTED])], [descriptor])
    async with asyncio.timeout(PATIENCE_S):
        packet = await _received(connection, len(WRITTEN) + 1)
    if not packet:
        raise ConnectionResetError("the client hung up")
    if packet != WRITTEN:
        raise ValueError(f"{packet!r} is not the end of writing")


async def _received(connection: socket.socket, size_max: int) -> bytes:
    return await asyncio.get_running_loop().sock_recv(connection, size_max)
