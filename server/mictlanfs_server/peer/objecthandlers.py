"""What a peer answers about its objects.

Owns no state. A router asks a few times a minute at most, a restore once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.wireobjects import OBJECT_SIZE_BYTES_MAX, ListObjects, ObjectPage
from mictlanfs_server.http import error_response, to_mictlan_error
from mictlanfs_server.peer.handlers import Request, digest_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mictlanfs_server.peer.budget import ByteBudget
    from mictlanfs_server.peer.objects import ObjectStore
    from mictlanfs_server.serving import Message

log = logging.getLogger(__name__)

OBJECT_TEMPLATE: Final = wire.Path.OBJECT + "{name}"
_BYTES_TYPE: Final = (b"content-type", b"application/octet-stream")
_MSGPACK_TYPE: Final = (b"content-type", wire.MSGPACK.encode())
_MESSAGE_SIZE_BYTES_MAX: Final = 4096


class Chunks(Protocol):
    """What is used here of a `ChunkStore`."""

    uploads: ByteBudget


class ObjectHandlers:
    """An ASGI application for the paths that `is_ours` recognises."""

    def __init__(self, objects: ObjectStore, chunks: Chunks) -> None:
        self._objects = objects
        self._chunks = chunks
        self._verbs = {"PUT": self._put, "GET": self._get, "DELETE": self._delete}

    def is_ours(self, path: str) -> bool:
        """Whether a request for `path` belongs here."""
        return path.startswith(wire.Path.OBJECT) or path == wire.Path.OBJECT_LIST

    def template(self, path: str) -> str:
        """The route of a path that is ours."""
        return path if path == wire.Path.OBJECT_LIST else OBJECT_TEMPLATE

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        request = Request(scope, receive, send)
        try:
            await self._dispatch(request)
        except ConnectionError as error:
            log.debug("%s %s: %s", scope["method"], scope["path"], error)
        except Exception as error:  # noqa: BLE001 - `to_mictlan_error` logs what is not ours.
            response = error_response(to_mictlan_error(error, scope["path"]))
            await response(scope, receive, send)

    async def _dispatch(self, request: Request) -> None:
        method, path = request.scope["method"], request.scope["path"]
        verb = self._verbs.get(method)
        is_list = path == wire.Path.OBJECT_LIST
        if is_list and method == "POST":
            await self._list(request)
        elif is_list or verb is None:
            raise MictlanError(Kind.UNSUPPORTED, method, path)
        else:
            await verb(request, path.removeprefix(wire.Path.OBJECT))

    async def _put(self, request: Request, name: str) -> None:
        length, digest = request.content_length(), digest_in(request)
        if length > OBJECT_SIZE_BYTES_MAX:
            detail = f"{length} bytes are more than {OBJECT_SIZE_BYTES_MAX}"
            raise MictlanError(Kind.TOO_LARGE, "put object", name, detail)
        async with self._chunks.uploads.take(length):
            is_new = await self._objects.put(name, await request.whole_body(), digest)
        await request.answer(201 if is_new else 200, ())

    async def _get(self, request: Request, name: str) -> None:
        await request.answer(200, [_BYTES_TYPE], await self._objects.get(name))

    async def _delete(self, request: Request, name: str) -> None:
        await self._objects.delete(name)
        await request.answer(204, ())

    async def _list(self, request: Request) -> None:
        asked = wire.decode(await _message(request), ListObjects)
        page = ObjectPage(tuple(await self._objects.list_behind(asked.prefix, asked.after)))
        await request.answer(200, [_MSGPACK_TYPE], wire.encode(page))


async def _message(request: Request) -> bytes:
    if request.content_length() > _MESSAGE_SIZE_BYTES_MAX:
        raise MictlanError(Kind.TOO_LARGE, "read request")
    return bytes(await request.whole_body())
