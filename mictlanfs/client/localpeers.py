"""Descriptors of chunks from peers on this machine; see `mictlanfs.localchunks`.

Owns one connection to each such peer. Whatever fails is no error here: the answer is "not this
way", the caller asks by HTTP, and a peer that failed is left alone for a while.
"""

from __future__ import annotations

import array
import logging
import os
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

import trio

from mictlanfs.client.lanes import Lane
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.localchunks import (
    ANSWER_SIZE_BYTES_MAX,
    REQUEST_CHUNKS_MAX,
    is_trusted,
    socket_name,
    unpack_answer,
)
from mictlanfs.model import Chunk, ChunkId, PeerInfo, PeerNumber

log = logging.getLogger(__name__)

# A peer that has stopped holds readers up for so long; what is not answered is had by HTTP.
ANSWER_TIMEOUT_S: Final = 0.5
# How long a peer that did not answer, or that is not to be reached this way, is not tried again.
AVOID_S: Final = 5.0
_DESCRIPTOR_SIZE_BYTES: Final = array.array("i").itemsize


class OpenChunk(NamedTuple):
    """A chunk that was opened.

    Attributes:
        fd: for reading; of whoever got it.
        sums: checksums of its blocks, empty when the peer has none.
        peer: whose file it is.
    """

    fd: int
    sums: bytes
    peer: PeerNumber = PeerNumber(0)


_Answer = OpenChunk | MictlanError


@asynccontextmanager
async def open_local_peers(
    directory: PeerDirectory, space_id: str, boot_id: str
) -> AsyncIterator[LocalPeers]:
    """Peers of this machine, with a nursery for their requests; connections end with the block."""
    with ExitStack() as cleanup:
        async with trio.open_nursery() as nursery:
            local = LocalPeers(nursery, directory, space_id, boot_id)
            # When nobody waits at a connection any more: a task that did would fail.
            cleanup.callback(local.close)
            try:
                yield local
            finally:
                nursery.cancel_scope.cancel()


class LocalPeers:
    """Opens chunks of peers on this machine; made by `open_local_peers`.

    Attributes:
        opened_count: descriptors received.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        directory: PeerDirectory,
        space_id: str,
        boot_id: str,
    ) -> None:
        self._nursery = nursery
        self._directory = directory
        self._space_id = space_id
        self._boot_id = boot_id
        self._lanes: dict[PeerNumber, Lane[ChunkId, OpenChunk]] = {}
        self._sockets: dict[PeerNumber, trio.socket.SocketType] = {}
        self._avoid_until_s: dict[PeerNumber, float] = {}
        self.opened_count = 0

    def may_open(self, chunk: Chunk) -> bool:
        """Whether some holder of the chunk is worth asking. None has all of a coded one."""
        return chunk.coding is None and any(
            self._is_near(peer) for peer in self._directory.holders(chunk)
        )

    async def open(self, chunk: Chunk) -> OpenChunk | None:
        """A descriptor for reading the whole chunk; None: not this way.

        What it reads must be verified before it is believed.

        Not to be cancelled but at the end of the process: a descriptor that comes later stays open.
        """
        for peer in self._directory.holders(chunk):
            if not self._is_near(peer):
                continue
            try:
                return await self._lane(peer).submit(chunk.id, 1)
            except MictlanError as error:
                log.debug("chunk %s not opened at %s: %s", chunk.id.hex(), peer.id, error)
        return None

    async def open_many(self, chunks: Sequence[Chunk]) -> Sequence[OpenChunk | None]:
        """The same for many chunks, by few requests; each is asked for at one peer only.

        Chunks of several peers are asked for one peer after the other: nobody waits for this.
        """
        by_peer: defaultdict[PeerNumber, list[int]] = defaultdict(list)
        near: dict[PeerNumber, PeerInfo] = {}
        for index, chunk in enumerate(chunks):
            peer = next((p for p in self._directory.holders(chunk) if self._is_near(p)), None)
            if peer is not None:
                near[peer.number] = peer
                by_peer[peer.number].append(index)
        opened: list[OpenChunk | None] = [None] * len(chunks)
        for number, indices in by_peer.items():
            ids = [chunks[index].id for index in indices]
            answers = await self._lane(near[number]).submit_all(ids, 1)
            for index, answer in zip(indices, answers, strict=True):
                if isinstance(answer, OpenChunk):
                    opened[index] = answer
        return opened

    def close(self) -> None:
        """End all connections. No request may be under way."""
        for number in list(self._sockets):
            self._drop(number)

    def _is_near(self, peer: PeerInfo) -> bool:
        if not self._boot_id or peer.boot_id != self._boot_id:
            return False
        return self._avoid_until_s.get(peer.number, 0.0) <= trio.current_time()

    def _lane(self, peer: PeerInfo) -> Lane[ChunkId, OpenChunk]:
        lane = self._lanes.get(peer.number)
        if lane is None:
            lane = self._lanes[peer.number] = Lane(
                self._nursery, partial(self._ask, peer), REQUEST_CHUNKS_MAX, REQUEST_CHUNKS_MAX
            )
        return lane

    async def _ask(self, peer: PeerInfo, ids: Sequence[ChunkId]) -> Sequence[_Answer]:
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                connection = await self._connection(peer)
                await connection.send(b"".join(ids))
                return await self._receive(connection, ids, peer.number)
        except (OSError, trio.TooSlowError) as error:
            if isinstance(error, trio.TooSlowError):
                self._directory.slow(peer.number)
            self._drop(peer.number)
            self._avoid_until_s[peer.number] = trio.current_time() + AVOID_S
            raise MictlanError(Kind.UNAVAILABLE, "open chunks", peer.id, str(error)) from error

    async def _connection(self, peer: PeerInfo) -> trio.socket.SocketType:
        connection = self._sockets.get(peer.number)
        if connection is None:
            connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._sockets[peer.number] = connection
            await connection.connect(socket_name(self._space_id, peer.id))
            if not is_trusted(connection):
                raise OSError("another user has bound its socket")
        return connection

    async def _receive(
        self, connection: trio.socket.SocketType, ids: Sequence[ChunkId], peer: PeerNumber
    ) -> Sequence[_Answer]:
        room = socket.CMSG_SPACE(len(ids) * _DESCRIPTOR_SIZE_BYTES)
        packet, ancillary, _, _ = await connection.recvmsg(
            ANSWER_SIZE_BYTES_MAX + 1, room, socket.MSG_CMSG_CLOEXEC
        )
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_SIZE_BYTES])
        try:
            all_sums = unpack_answer(packet, len(ids))
            if len(descriptors) != len(ids) - all_sums.count(None):
                # The kernel leaves out what there are no free descriptors for.
                raise ValueError("the descriptors are not one for each chunk")
        except ValueError as error:
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError(str(error)) from error
        self.opened_count += len(descriptors)
        left = iter(descriptors)
        return [
            MictlanError(Kind.NOT_FOUND, "open chunk", chunk_id.hex())
            if sums is None
            else OpenChunk(next(left), sums, peer)
            for chunk_id, sums in zip(ids, all_sums, strict=True)
        ]

    def _drop(self, number: PeerNumber) -> None:
        connection = self._sockets.pop(number, None)
        if connection is not None:
            connection.close()
