"""The endpoints of a peer about the truth of its copies: verify, inventory, scrub.

ASGI requests in, one message each; see `mictlanfs.wireverify`. Owns no state.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mictlanfs import wire
from mictlanfs.checksums import DIGEST_SIZE_BYTES
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import CHUNK_ID_SIZE_BYTES
from mictlanfs.wireverify import (
    HELD_COUNT_MAX,
    VERIFY_COUNT_MAX,
    HeldChunk,
    HeldPage,
    ListHeld,
    Scrub,
    ScrubState,
    Verdicts,
    VerifyCopies,
)
from mictlanfs_server.http import error_response, to_mictlan_error
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.handlers import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mictlanfs.model import Struct
    from mictlanfs_server.peer.inspection import Inspector
    from mictlanfs_server.peer.scrubbing import Scrubber
    from mictlanfs_server.peer.store import ChunkStore
    from mictlanfs_server.serving import Message

_MESSAGE_SIZE_BYTES_MAX = 64 * 1024
_HEADERS = [(b"content-type", wire.MSGPACK.encode())]


class VerifyHandlers:
    """An ASGI application for the paths in `paths`."""

    def __init__(self, store: ChunkStore, inspector: Inspector, scrubber: Scrubber) -> None:
        self._store = store
        self._inspector = inspector
        self._scrubber = scrubber
        self._verbs: dict[str, tuple[type[Struct], Callable[[Any], Awaitable[Struct]]]] = {
            wire.Path.VERIFY: (VerifyCopies, self._verify),
            wire.Path.HELD: (ListHeld, self._list),
            wire.Path.SCRUB: (Scrub, self._scrub),
        }
        self.paths = frozenset(self._verbs)

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        request = Request(scope, receive, send)
        try:
            answer = await self._answer(request)
        except Exception as error:  # noqa: BLE001 - `to_mictlan_error` logs what is not ours.
            response = error_response(to_mictlan_error(error, scope["path"]))
            await response(scope, receive, send)
        else:
            await request.answer(200, _HEADERS, wire.encode(answer))

    async def _answer(self, request: Request) -> Struct:
        method, path = request.scope["method"], request.scope["path"]
        if method != "POST":
            raise MictlanError(Kind.UNSUPPORTED, method, path)
        if request.content_length() > _MESSAGE_SIZE_BYTES_MAX:
            raise MictlanError(Kind.TOO_LARGE, "read message", path)
        kind, verb = self._verbs[path]
        return await verb(wire.decode(await request.whole_body(), kind))

    async def _verify(self, message: VerifyCopies) -> Verdicts:
        if len(message.chunks) > VERIFY_COUNT_MAX:
            raise MictlanError(Kind.INVALID, "verify", detail="these are too many chunks")
        if any(
            len(chunk.id) != CHUNK_ID_SIZE_BYTES or len(chunk.digest) != DIGEST_SIZE_BYTES
            for chunk in message.chunks
        ):
            raise MictlanError(Kind.INVALID, "verify", detail="an id or digest has another size")
        return Verdicts(
            tuple(
                [
                    await self._inspector.judge(StoredChunk(chunk.id, chunk.length, chunk.digest))
                    for chunk in message.chunks
                ]
            )
        )

    async def _list(self, message: ListHeld) -> HeldPage:
        count_max = min(message.count_max, HELD_COUNT_MAX)
        if count_max < 1:
            raise MictlanError(Kind.INVALID, "list", detail="a page has at least one chunk")
        page = await self._store.page(message.after, count_max)
        now_s = time.time()
        held = [
            HeldChunk(entry.id, entry.length, entry.digest, max(0.0, now_s - added_s))
            for entry, added_s in page
        ]
        return HeldPage(tuple(held), len(held) < count_max)

    async def _scrub(self, message: Scrub) -> ScrubState:
        if message.begin:
            self._scrubber.begin()
        return self._scrubber.state()
