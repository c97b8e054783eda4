"""Chunks written into files of peers on this machine; see `mictlanfs.localwrites`.

Owns idle connections to such peers, one for each put under way. A peer that cannot be written to
this way is no error: the answer is "not this way", the caller sends the bytes by HTTP, and the peer
is left alone for a while. What a peer refuses for a reason of its own is the error that HTTP would
bring, and is not asked again.
"""

from __future__ import annotations

import array
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from mictlanfs.durable import write_all
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.localchunks import is_trusted
from mictlanfs.localwrites import (
    ANSWER_SIZE_BYTES_MAX,
    WRITTEN,
    Grant,
    State,
    pack_grant,
    unpack_answer,
    write_socket_name,
)
from mictlanfs.model import KIB, Buffer, PeerInfo, PeerNumber
from mictlanfs.wire import FrameChunk

log = logging.getLogger(__name__)

# A peer that has stopped holds a writer up for so long, then the bytes go by HTTP.
GRANT_TIMEOUT_S: Final = 2.0
# As long as a put by HTTP may take: the disk syncs in it.
STORE_TIMEOUT_S: Final = 20.0
# How long a peer that did not answer, or that is not to be reached this way, is not tried again.
AVOID_S: Final = 5.0
# Writing to the page cache is copying: more at a time do not help two cores.
_WRITE_THREADS_MAX: Final = 4
_IDLE_MAX: Final = 8
# Bytes of one system call. For larger ones the kernel takes larger pages, which on a virtual
# machine are often not there yet: the host has to find memory for them. Measured, two copies of
# 0.5 GiB: 3.5 CPU-seconds in the mount with 4 MiB, 2.0 with 256 KiB and with 64.
PART_SIZE_BYTES: Final = 256 * KIB
_DESCRIPTORS_SIZE_BYTES: Final = socket.CMSG_SPACE(array.array("i").itemsize)


class LocalWriter:
    """Puts chunks into files of peers on this machine. `close` it at the end.

    Args:
        space_id: whose peers they are.
        boot_id: of this machine; "" when it has none, and no peer is on it then.

    Attributes:
        stored_count: chunks that were stored this way.
    """

    def __init__(self, space_id: str, boot_id: str) -> None:
        self._space_id = space_id
        self._boot_id = boot_id
        self._idle: defaultdict[PeerNumber, list[trio.socket.SocketType]] = defaultdict(list)
        self._avoid_until_s: dict[PeerNumber, float] = {}
        self._limiter = trio.CapacityLimiter(_WRITE_THREADS_MAX)
        self.stored_count = 0

    async def put(self, peer: PeerInfo, chunk: FrameChunk, pieces: Sequence[Buffer]) -> bool:
        """Have a peer store a chunk, durably; False: not this way, or nobody knows.

        `pieces` must not change meanwhile.

        Cancellation: the chunk is stored whole or not at all; waits until bytes that are on their
        way to the page cache are there.

        Raises:
            MictlanError: what the peer refused the chunk for; TIMED_OUT.
        """
        if not self._is_near(peer):
            return False
        try:
            connection = await self._connection(peer)
        except (OSError, trio.TooSlowError) as error:
            self._avoid(peer, error)
            return False
        is_usable = False
        try:
            await self._put_by(connection, peer, chunk, pieces)
            is_usable = True
        except MictlanError as error:
            # The peer has answered, and waits for the next one, unless it cannot do this at all.
            is_usable = error.kind is not Kind.TIMED_OUT
            if error.kind is Kind.UNSUPPORTED:
                self._avoid(peer, error)
                return False
            raise
        except (OSError, ValueError, trio.TooSlowError) as error:
            self._avoid(peer, error)
            return False
        finally:
            if is_usable and len(self._idle[peer.number]) < _IDLE_MAX:
                self._idle[peer.number].append(connection)
            else:
                connection.close()
        self.stored_count += 1
        return True

    def close(self) -> None:
        """End all idle connections; nothing may be under way."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _put_by(
        self,
        connection: trio.socket.SocketType,
        peer: PeerInfo,
        chunk: FrameChunk,
        pieces: Sequence[Buffer],
    ) -> None:
        with trio.fail_after(GRANT_TIMEOUT_S):
            await connection.send(pack_grant(Grant(chunk.id, chunk.digest, chunk.length)))
            descriptor = await _granted(connection)
        if descriptor is None:
            return
        try:
            await trio.to_thread.run_sync(_write, descriptor, pieces, limiter=self._limiter)
        finally:
            # Before the peer is told: it wants to be the only one.
            os.close(descriptor)
        try:
            with trio.fail_after(STORE_TIMEOUT_S):
                await connection.send(WRITTEN)
                unpack_answer(await connection.recv(ANSWER_SIZE_BYTES_MAX))
        except trio.TooSlowError:
            raise MictlanError(Kind.TIMED_OUT, "put chunk", peer.id) from None

    def _is_near(self, peer: PeerInfo) -> bool:
        if not self._boot_id or peer.boot_id != self._boot_id:
            return False
        return self._avoid_until_s.get(peer.number, 0.0) <= trio.current_time()

    def _avoid(self, peer: PeerInfo, error: Exception) -> None:
        log.debug("chunks are not written to files of %s: %s", peer.id, error)
        self._avoid_until_s[peer.number] = trio.current_time() + AVOID_S

    async def _connection(self, peer: PeerInfo) -> trio.socket.SocketType:
        idle = self._idle[peer.number]
        while idle:
            connection = idle.pop()
            if not connection.is_readable():
                return connection
            # The end: a peer says nothing unasked.
            connection.close()
        self._drop_ended()
        connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with trio.fail_after(GRANT_TIMEOUT_S):
                await connection.connect(write_socket_name(self._space_id, peer.id))
            if not is_trusted(connection):
                raise OSError("another user has bound its socket")
        except BaseException:
            connection.close()
            raise
        return connection

    def _drop_ended(self) -> None:
        """Let go of peers that have ended: some never come back."""
        for number, idle in list(self._idle.items()):
            for connection in [one for one in idle if one.is_readable()]:
                connection.close()
                idle.remove(connection)
            if not idle:
                del self._idle[number]


def _write(descriptor: int, pieces: Sequence[Buffer]) -> None:
    """Write `pieces` one behind the other. Raises OSError."""
    if all(len(piece) <= PART_SIZE_BYTES for piece in pieces):
        write_all(descriptor, pieces)
        return
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), PART_SIZE_BYTES):
            write_all(descriptor, [view[start : start + PART_SIZE_BYTES]])


async def _granted(connection: trio.socket.SocketType) -> int | None:
    """The descriptor that a peer grants; None: it has the chunk already.

    Raises:
        OSError: the connection broke.
        ValueError: the answer is none.
        MictlanError: the peer refuses.
    """
    packet, ancillary, _, _ = await connection.recvmsg(
        ANSWER_SIZE_BYTES_MAX, _DESCRIPTORS_SIZE_BYTES, socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    try:
        state = unpack_answer(packet)
        if len(descriptors) != (state is State.GRANTED):
            # The kernel leaves out what there are no free descriptors for.
            raise ValueError("the descriptors are not those of the answer")
    except BaseException:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)
        raise
    return descriptors[0] if descriptors else None
