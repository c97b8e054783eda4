"""What is on the disks of a router and of peers, opened by their own code, without a network.

Much faster than a space that is started, so that many power cuts can be looked at. The stores are
the real ones, and do what they do at a start; what is not here is a mount.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mictlanfs.checksums import digest_of
from mictlanfs.model import ChunkId
from mictlanfs_server.metadata.check import find_damage
from mictlanfs_server.metadata.sqlite import SqliteStore
from mictlanfs_server.peer.backends.file import FileBackend
from mictlanfs_server.peer.folder import INDEX_NAME, DataFolder
from mictlanfs_server.peer.index import Index
from mictlanfs_server.peer.recovery import reconcile
from mictlanfs_server.router.datadir import DataDirectory
from tests.faults.model import FileNode, FolderNode, Names, SymlinkNode

KIND_FOLDER, KIND_SYMLINK = 4, 10


@dataclass
class OpenPeer:
    """A peer as it is after its start."""

    index: Index
    backend: FileBackend

    def body(self, chunk_id: bytes) -> bytes | None:
        """The bytes of a chunk; None when the peer does not have it."""
        found = self.index.read(ChunkId(chunk_id))
        if found is None:
            return None
        entry, body = found
        if body is not None:
            return bytes(body)
        descriptor = self.backend.open_file(entry)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()


@contextlib.contextmanager
def open_peer(folder: Path) -> Iterator[OpenPeer]:
    """Start the store of a peer."""
    with contextlib.closing(DataFolder(folder)):
        backend = FileBackend(folder)
        with contextlib.closing(backend), contextlib.closing(Index(folder / INDEX_NAME)) as index:
            reconcile(index, backend)
            yield OpenPeer(index, backend)


class Parts:
    """A router's metadata and the peers' chunks, open.

    Args:
        disk: has the folders `router`, `peer-0`, …
    """

    def __init__(self, metadata: sqlite3.Connection, peers: dict[int, OpenPeer]) -> None:
        self._metadata = metadata
        self._peers = peers

    def problems(self) -> list[str]:
        """Broken invariants, and copies that the metadata names and are not what it says."""
        found = find_damage(self._metadata)
        rows = self._metadata.execute(
            "SELECT id, length, digest, peer FROM replica JOIN chunk ON chunk = id WHERE refs > 0"
        )
        for chunk_id, length, digest, peer in rows.fetchall():
            body = self._peers[peer].body(chunk_id) if peer in self._peers else None
            if body is None:
                found.append(f"chunk {chunk_id.hex()} is not on peer {peer}")
            elif len(body) != length or digest_of([body]) != digest:
                found.append(f"chunk {chunk_id.hex()} is damaged on peer {peer}")
        return found

    def folder(self, path: Sequence[bytes]) -> Names | None:
        """What is below a folder; None when it is not there."""
        ino = 1
        for name in path:
            row = self._metadata.execute(
                "SELECT ino FROM dentry WHERE parent = ? AND name = ?", (ino, name)
            ).fetchone()
            if row is None:
                return None
            (ino,) = row
        return self._names(ino, "")

    def _names(self, folder: int, prefix: str) -> Names:
        found: Names = {}
        files: dict[int, FileNode] = {}
        rows = self._metadata.execute(
            "SELECT name, ino, kind, size, target FROM dentry JOIN inode USING (ino)"
            " WHERE dentry.parent = ? ORDER BY name",
            (folder,),
        )
        for name, ino, kind, size, target in rows.fetchall():
            path = prefix + os.fsdecode(name)
            if kind == KIND_FOLDER:
                found[path] = FolderNode()
                found |= self._names(ino, f"{path}/")
            elif kind == KIND_SYMLINK:
                found[path] = SymlinkNode(os.fsdecode(target))
            else:
                if ino not in files:
                    files[ino] = FileNode(content=self._content(ino, size))
                found[path] = files[ino]
        return found

    def _content(self, ino: int, size: int) -> bytearray:
        content = bytearray(size)
        rows = self._metadata.execute(
            "SELECT offset, length, chunk, chunk_offset, data FROM extent"
            " LEFT JOIN inline USING (chunk) WHERE ino = ?",
            (ino,),
        )
        for offset, length, chunk, chunk_offset, inline in rows.fetchall():
            body = inline if inline is not None else self._body(chunk)
            content[offset : offset + length] = body[chunk_offset : chunk_offset + length]
        return content

    def _body(self, chunk: bytes) -> bytes:
        """The bytes of a chunk from any of its peers; b"" when none has them."""
        rows = self._metadata.execute("SELECT peer FROM replica WHERE chunk = ?", (chunk,))
        bodies = [self._peers[peer].body(chunk) for (peer,) in rows if peer in self._peers]
        return next((body for body in bodies if body is not None), b"")


@contextlib.contextmanager
def open_parts(disk: Path) -> Iterator[Parts]:
    """Start the stores on a disk that has the folders `router`, `peer-0`, …"""
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(contextlib.closing(DataDirectory(disk / "router")))
        store = SqliteStore(data.database)
        stack.callback(lambda: asyncio.run(store.close()))
        metadata = stack.enter_context(
            contextlib.closing(sqlite3.connect(data.database, isolation_level=None))
        )
        numbers = dict(metadata.execute("SELECT id, number FROM peer").fetchall())
        peers = {}
        for folder in sorted(disk.glob("peer-*")):
            peer = stack.enter_context(open_peer(folder))
            number = numbers.get(f"mictlanx-{folder.name}")
            if number is not None:
                peers[number] = peer
        yield Parts(metadata, peers)
