"""What the router asks of peers: to delete chunks, and to fetch chunks from one another.

Owns no state and never tries again: whoever asks knows what is left to be done.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer, ChunkId
from mictlanfs.wirecopies import PullChunks
from mictlanfs.wirefragments import FragmentMade, MakeFragment

log = logging.getLogger(__name__)

DELETE_TIMEOUT_S = 10.0
# For 32 MiB between two peers that have other things to do.
PULL_TIMEOUT_S = 60.0


class Answer(Protocol):
    """The part of an HTTP answer that is used here."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def body(self) -> Buffer:
        """The whole body."""
        ...


class Transport(Protocol):
    """How peers are reached; `mictlanfs.client.transport.HttpTransport` is one."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Answer:
        """One exchange. Raises UNAVAILABLE, TIMED_OUT."""
        ...


async def delete_on_peer(
    transport: Transport, url: str, ids: Sequence[ChunkId]
) -> list[ChunkId] | None:
    """The chunks that a peer confirms not to hold any more; None when it does not answer."""
    frame = wire.frame(wire.FrameDelete(tuple(ids)))
    try:
        response = await transport.request(
            "POST", url + wire.Path.FRAME_DELETE, body=frame, timeout_s=DELETE_TIMEOUT_S
        )
        if response.status != 200:
            raise wire.decode_error(response.status, response.body)
        results = wire.unframe(response.body, wire.FrameAnswer)[0].results
    except MictlanError as error:
        log.info("dead chunks stay on %s for now: %s", url, error)
        return None
    if len(results) != len(ids):
        log.warning("%s answered for %d of %d chunks", url, len(results), len(ids))
        return None
    return [
        chunk_id
        for chunk_id, result in zip(ids, results, strict=True)
        if result.error is None or result.error.kind == Kind.NOT_FOUND.value
    ]


async def make_fragment(transport: Transport, target: str, request: MakeFragment) -> FragmentMade:
    """Have the peer at `target` get a fragment of a chunk.

    Raises:
        MictlanError: the target does not answer, or refuses; it may have the fragment.
    """
    response = await transport.request(
        "POST",
        target + wire.Path.FRAGMENT_MAKE,
        body=wire.frame(request),
        timeout_s=PULL_TIMEOUT_S,
    )
    if response.status != 200:
        raise wire.decode_error(response.status, response.body)
    return wire.unframe(response.body, FragmentMade)[0]


async def pull(
    transport: Transport, target: str, source: str, chunks: Sequence[wire.FrameChunk]
) -> list[MictlanError | None]:
    """Have the peer at `target` fetch chunks from that at `source`; None for each that it has.

    Raises:
        MictlanError: the target does not answer, or refuses; it may have some of them.
    """
    frame = wire.frame(PullChunks(source, tuple(chunks)))
    response = await transport.request(
        "POST", target + wire.Path.FRAME_PULL, body=frame, timeout_s=PULL_TIMEOUT_S
    )
    if response.status != 200:
        raise wire.decode_error(response.status, response.body)
    results = wire.unframe(response.body, wire.FrameAnswer)[0].results
    if len(results) != len(chunks):
        detail = f"{len(results)} results for {len(chunks)} chunks"
        raise MictlanError(Kind.PROTOCOL, "pull", target, detail)
    return [None if result.error is None else result.error.to_error() for result in results]
