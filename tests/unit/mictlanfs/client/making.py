"""Contents, local files and observers for tests of the client library."""

import io
from collections.abc import Iterable
from pathlib import Path

from mictlanfs.client.copytree import CopyEvents
from mictlanfs.client.space import SpaceClient
from mictlanfs.errors import MictlanError
from mictlanfs.model import KIB, Attributes

CHUNK = 64 * KIB


def pattern(size: int) -> bytes:
    """Bytes of which no two chunks are the same."""
    return b"".join(i.to_bytes(4, "big") for i in range((size + 3) // 4))[:size]


async def content(client: SpaceClient, path: str) -> bytes:
    sink = io.BytesIO()
    await client.get("b", path, sink)
    return sink.getvalue()


class Events:
    """What a tree copy reported."""

    def __init__(self) -> None:
        self.size = 0
        self.files: list[str] = []
        self.errors: list[tuple[str, MictlanError]] = []

    @property
    def callbacks(self) -> CopyEvents:
        return CopyEvents(self._add, self._file, lambda path, e: self.errors.append((path, e)))

    def _add(self, count: int) -> None:
        self.size += count

    def _file(self, path: str, attributes: Attributes) -> None:
        self.files.append(path)


def write_sparse(path: Path, pieces: Iterable[tuple[int, bytes]], size: int) -> None:
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
