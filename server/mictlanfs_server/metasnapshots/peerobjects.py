"""The objects of one peer, and what it holds, over HTTP: see `mictlanfs.wireobjects`.

Used by the router that makes snapshots and by a restore. Never retries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Final

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.model import Buffer, ChunkId, Struct
from mictlanfs.wireobjects import ListObjects, ObjectInfo, ObjectPage
from mictlanfs.wireverify import HeldChunk, HeldPage, ListHeld

if TYPE_CHECKING:
    from mictlanfs_server.router.peerrequests import Transport

TIMEOUT_S: Final = 10.0


class PeerObjects:
    """The objects of the peer at `url`.

    Raises:
        MictlanError: every method: UNAVAILABLE, TIMED_OUT, and what the peer answers.
    """

    def __init__(self, transport: Transport, url: str) -> None:
        self._transport = transport
        self.url = url.rstrip("/")

    async def put(self, name: str, body: Buffer) -> None:
        """Store an object; it is durable there when this returns."""
        headers = {wire.HEADER_DIGEST: digest_of([body]).hex()}
        await self._ask("PUT", wire.Path.OBJECT + name, body, headers)

    async def get(self, name: str) -> Buffer:
        """The bytes of an object, as the peer has them."""
        return await self._ask("GET", wire.Path.OBJECT + name)

    async def delete(self, name: str) -> None:
        """Remove an object, there or not."""
        await self._ask("DELETE", wire.Path.OBJECT + name)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose name begins with `prefix`, in order."""
        after = ""
        while True:
            body = await self._post(wire.Path.OBJECT_LIST, ListObjects(prefix, after))
            page = wire.decode(body, ObjectPage).objects
            if not page:
                return
            for found in page:
                yield found
            after = page[-1].name

    async def held(self) -> AsyncIterator[tuple[HeldChunk, ...]]:
        """Every chunk that the peer holds, in order of ids, page by page."""
        after, is_last = ChunkId(b""), False
        while not is_last:
            body = await self._post(wire.Path.HELD, ListHeld(after))
            page = wire.decode(body, HeldPage)
            yield page.chunks
            is_last = page.is_last or not page.chunks
            if page.chunks:
                after = page.chunks[-1].id

    async def _post(self, path: str, message: Struct) -> Buffer:
        headers = {"content-type": wire.MSGPACK}
        return await self._ask("POST", path, wire.encode(message), headers)

    async def _ask(
        self,
        method: str,
        path: str,
        body: Buffer | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Buffer:
        answer = await self._transport.request(
            method, self.url + path, body=body, headers=headers, timeout_s=TIMEOUT_S
        )
        if answer.status >= 300:
            raise wire.decode_error(answer.status, answer.body)
        return answer.body
