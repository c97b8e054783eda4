"""Where snapshots of the metadata are restored from: peers that answer, or the folders of peers.

Both give the same: who the peer is, its objects, and the chunks it holds. Nothing is changed there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

import msgspec

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import SMALL_CHUNK_SIZE_BYTES, Buffer
from mictlanfs.oserrors import translated_os_errors
from mictlanfs.wireverify import HeldChunk
from mictlanfs_server.metasnapshots.form import MANIFEST_PREFIX
from mictlanfs_server.metasnapshots.peerobjects import TIMEOUT_S, PeerObjects
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.backends.file import CHUNKS_NAME, chunk_files
from mictlanfs_server.peer.folder import INDEX_NAME, read_identity, read_space, read_store
from mictlanfs_server.peer.index import read_index
from mictlanfs_server.peer.objects import FOLDER_NAME, object_names
from mictlanfs_server.router.peerrequests import Transport

_PAGE_COUNT: Final = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a source is.

    Attributes:
        space_id: whose data it holds; empty: none yet.
        peer_id: empty when nobody knows.
        number: in the metadata; 0 when nobody knows.
        url: where it answers, or did.
        router: the router that it is registered with at this moment; empty: with none.
        store_id: token of its store; empty when nobody knows.
    """

    space_id: str
    peer_id: str
    number: int
    url: str
    zone: str
    router: str = ""
    store_id: str = ""


class Source(Protocol):
    """One peer to restore from.

    Raises:
        MictlanError: every method: UNAVAILABLE, TIMED_OUT, NOT_FOUND, INTERNAL, CORRUPT.
    """

    @property
    def name(self) -> str:
        """What people call it: its URL or folder."""
        ...

    async def identity(self) -> Identity:
        """Who it is."""
        ...

    async def manifests(self) -> list[str]:
        """The names of the manifests it has."""
        ...

    async def get(self, name: str) -> Buffer:
        """The bytes of an object."""
        ...

    def holdings(self) -> AsyncIterator[Sequence[wire.FrameChunk]]:
        """All chunks it holds, page by page; some may come twice."""
        ...


class _Link(msgspec.Struct, frozen=True):
    """What is used here of the link in the status of a peer."""

    router: str = ""
    is_registered: bool = False
    number: int | None = None


class _Status(msgspec.Struct, frozen=True):
    """What is used here of the status of a peer."""

    id: str
    space_id: str
    zone: str = ""
    link: _Link = _Link()
    store_id: str = ""


class PeerSource:
    """A peer that answers at a URL."""

    def __init__(self, transport: Transport, url: str) -> None:
        self._transport = transport
        self._objects = PeerObjects(transport, url)

    @property
    def name(self) -> str:
        """Its URL."""
        return self._objects.url

    async def identity(self) -> Identity:
        """What its status says."""
        url = self._objects.url + wire.Path.STATUS
        answer = await self._transport.request("GET", url, timeout_s=TIMEOUT_S)
        if answer.status != 200:
            raise wire.decode_error(answer.status, answer.body)
        try:
            status = msgspec.json.decode(answer.body, type=_Status)
        except msgspec.MsgspecError as error:
            raise MictlanError(Kind.PROTOCOL, "ask peer", self.name, str(error)) from error
        router = status.link.router if status.link.is_registered else ""
        number = status.link.number or 0
        return Identity(
            *(status.space_id, status.id, number, self.name),
            *(status.zone, router, status.store_id),
        )

    async def manifests(self) -> list[str]:
        """Those among its objects."""
        return [found.name async for found in self._objects.list(MANIFEST_PREFIX)]

    async def get(self, name: str) -> Buffer:
        """One of its objects."""
        return await self._objects.get(name)

    async def holdings(self) -> AsyncIterator[Sequence[wire.FrameChunk]]:
        """What its index says."""
        async for page in self._objects.held():
            yield _listed(page)


class FolderSource:
    """The data folder of a peer, which need not run. Blocks the loop: nothing else runs there.

    Raises:
        UsageError: it is not the folder of a peer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not (path / INDEX_NAME).is_file():
            raise UsageError(f"{path} is not the data of a peer: it has no {INDEX_NAME}")

    @property
    def name(self) -> str:
        """Its path."""
        return str(self._path)

    async def identity(self) -> Identity:
        """What the peer noted when a router welcomed it."""
        with translated_os_errors("read", self.name):
            found, space_id = read_identity(self._path), read_space(self._path)
            store_id = read_store(self._path)
        if found is None:
            return Identity(space_id, "", 0, "", "", store_id=store_id)
        return Identity(space_id, found.id, found.number, found.url, found.zone, store_id=store_id)

    async def manifests(self) -> list[str]:
        """Those among its objects."""
        with translated_os_errors("list", self.name):
            names = object_names(self._path / FOLDER_NAME)
            return sorted(name for name in names if name.startswith(MANIFEST_PREFIX))

    async def get(self, name: str) -> Buffer:
        """One of its objects."""
        with translated_os_errors("read", self.name):
            return (self._path / FOLDER_NAME / name).read_bytes()

    async def holdings(self) -> AsyncIterator[Sequence[wire.FrameChunk]]:
        """The small chunks of its index, and the files that are really there."""
        with translated_os_errors("list", self.name):
            for page in _pages(chunk_files(self._path / CHUNKS_NAME)):
                yield _listed(page)
        for page in _pages(read_index(self._path / INDEX_NAME)):
            # Of a larger one the row alone says nothing.
            yield _listed(chunk for chunk in page if chunk.length < SMALL_CHUNK_SIZE_BYTES)


def _pages(chunks: Iterable[StoredChunk]) -> Iterator[list[StoredChunk]]:
    rest = iter(chunks)
    while page := list(islice(rest, _PAGE_COUNT)):
        yield page


def _listed(chunks: Iterable[StoredChunk | HeldChunk]) -> list[wire.FrameChunk]:
    return [wire.FrameChunk(chunk.id, chunk.length, chunk.digest) for chunk in chunks]
