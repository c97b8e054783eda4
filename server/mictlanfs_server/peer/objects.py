"""The objects of a peer: named runs of bytes that it keeps for its router, as files of a folder.

::

    objects/<name>       stored
    objects/.<number>    on its way; swept when the store is opened

They are no chunks: no index knows them, and nobody but their router removes them. Owns the folder.

Order of durability: the bytes (fdatasync), then the name (rename, fsync of the folder), then the
answer. So a name never stands for less than all of the bytes, whatever crashes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from mictlanfs.checksums import digest_of
from mictlanfs.durable import sync_folder
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB, Buffer
from mictlanfs.oserrors import from_os_error
from mictlanfs.wireobjects import (
    OBJECT_NAME_LENGTH_MAX,
    OBJECT_SIZE_BYTES_MAX,
    OBJECTS_PAGE_MAX,
    ObjectInfo,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FOLDER_NAME: Final = "objects"
# Kept free for the index: without it nothing can be deleted any more.
RESERVE_BYTES: Final = 32 * MIB
# A router sends one after the other; a second thread answers readers meanwhile.
THREADS: Final = 2
_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{OBJECT_NAME_LENGTH_MAX - 1}}}")

P = ParamSpec("P")
T = TypeVar("T")


class ObjectStore:
    """Puts, gets, deletes and lists objects below `folder`, which must exist. All is idempotent.

    Without `fsync` nothing outlives a crash of the machine: for benchmarks only.

    Raises:
        OSError: the folder cannot be used.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self._folder = folder / FOLDER_NAME
        self._fsync = fsync
        self._numbers = itertools.count()
        if not self._folder.is_dir():
            self._folder.mkdir()
            if fsync:
                sync_folder(folder)
        for path in self._folder.glob(".*"):
            path.unlink()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objects")

    async def put(self, name: str, body: Buffer, digest: bytes) -> bool:
        """Store an object durably. False when these very bytes were there; others are replaced.

        Cancellation: the object is stored whole or not at all.

        Raises:
            MictlanError: INVALID (name), TOO_LARGE, CORRUPT (not the bytes of the digest),
                NO_SPACE, INTERNAL.
        """
        check_name(name)
        if len(body) > OBJECT_SIZE_BYTES_MAX:
            detail = f"{len(body)} bytes are more than {OBJECT_SIZE_BYTES_MAX}"
            raise MictlanError(Kind.TOO_LARGE, "put object", name, detail)
        return await self._in_thread("put object", name, self._put, name, body, digest)

    async def get(self, name: str) -> bytes:
        """The bytes of an object, unverified. Raises NOT_FOUND, INVALID, INTERNAL."""
        check_name(name)
        return await self._in_thread("get object", name, (self._folder / name).read_bytes)

    async def delete(self, name: str) -> None:
        """Remove an object; one that is not there counts as removed. Raises INVALID, INTERNAL."""
        check_name(name)
        await self._in_thread("delete object", name, self._delete, name)

    async def list_behind(self, prefix: str, after: str) -> list[ObjectInfo]:
        """A page of objects in order of names; empty behind the last one."""
        return await self._in_thread("list objects", prefix, self._list, prefix, after)

    def close(self) -> None:
        """Finish what is under way. Blocks; twice is once."""
        self._threads.shutdown()

    async def _in_thread(
        self, operation: str, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def translated() -> T:
            try:
                return work(*args, **kwargs)
            except OSError as error:
                raise from_os_error(error, operation, name) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, translated)

    # --- in a thread ---------------------------------------------------------------------------

    def _put(self, name: str, body: Buffer, digest: bytes) -> bool:
        if digest_of([body]) != digest:
            detail = "the bytes do not match the digest"
            raise MictlanError(Kind.CORRUPT, "put object", name, detail)
        path = self._folder / name
        if path.exists() and digest_of([path.read_bytes()]) == digest:
            return False
        self._check_room(name, len(body))
        temporary = self._folder / f".{next(self._numbers)}"
        try:
            with temporary.open("wb") as file:
                file.write(body)
                if self._fsync:
                    file.flush()
                    os.fdatasync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        if self._fsync:
            sync_folder(self._folder)
        return True

    def _check_room(self, name: str, length: int) -> None:
        status = os.statvfs(self._folder)
        if status.f_bavail * status.f_frsize < length + RESERVE_BYTES:
            raise MictlanError(Kind.NO_SPACE, "put object", name, "the disk of this peer is full")

    def _delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def _list(self, prefix: str, after: str) -> list[ObjectInfo]:
        now_s = time.time()
        found = []
        for name in sorted(object_names(self._folder)):
            if name.startswith(prefix) and name > after:
                try:
                    status = (self._folder / name).stat()
                except FileNotFoundError:
                    continue
                age_s = max(0.0, now_s - status.st_mtime)
                found.append(ObjectInfo(name, status.st_size, age_s))
                if len(found) == OBJECTS_PAGE_MAX:
                    break
        return found


def object_names(folder: Path) -> Iterator[str]:
    """The names of the objects in a folder `objects`, in no order; none when it is missing."""
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                yield entry.name


def check_name(name: str) -> None:
    """Raises INVALID for what cannot be the name of an object."""
    if not _NAME.fullmatch(name):
        detail = f"an object's name has 1 to {OBJECT_NAME_LENGTH_MAX} of a-z, 0-9 and '-'"
        raise MictlanError(Kind.INVALID, "object", name[:OBJECT_NAME_LENGTH_MAX], detail)
