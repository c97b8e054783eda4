"""Whole directories between a local file system and the space, file by file.

Directories, regular files and symlinks are copied; symlinks as they are, never followed. Anything
else is reported and left out. An error of one file does not keep the others from being copied;
losing the space, or running out of room, ends it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from mictlanfs import wire
from mictlanfs.client.caller import Caller
from mictlanfs.client.download import MODE_MASK, Downloader, FileSink
from mictlanfs.client.names import Names, show_path
from mictlanfs.client.pipeline import for_each
from mictlanfs.client.session import Session
from mictlanfs.client.sources import open_source
from mictlanfs.client.tree import Tree
from mictlanfs.client.upload import Directory, Uploader, new_directories
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, FileKind, Node
from mictlanfs.oserrors import translated_os_errors

# Small files are bound by round trips: 128 at once were copied twice as fast as 32.
FILES_AT_ONCE_MAX = 128
# Small files then need no request of their own for their extents.
EXTENTS_WITH_ENTRY_MAX = 8
_FATAL_KINDS = frozenset({Kind.NO_SPACE, Kind.QUOTA_EXCEEDED, Kind.FENCED, Kind.CONFLICT})


@dataclass(frozen=True, slots=True)
class CopyEvents:
    """What a caller wants to be told while a tree is copied.

    Attributes:
        on_bytes: so many bytes more were copied.
        on_file: this file, symlink or directory is done; named by its path at the destination.
        on_error: this one is not, and why; named by its path at the source.
    """

    on_bytes: Callable[[int], None]
    on_file: Callable[[str, Attributes], None]
    on_error: Callable[[str, MictlanError], None]

    def report(self, path: str, error: MictlanError) -> None:
        """Report `error`, or raise it when it would meet every other file too."""
        if error.is_retryable or error.kind in _FATAL_KINDS:
            raise error
        self.on_error(path, error)


# --- into the space ------------------------------------------------------------------------------


class TreePut:
    """Copies local directories into the space."""

    def __init__(
        self, tree: Tree, uploader: Uploader, session: Session, caller: Caller, events: CopyEvents
    ) -> None:
        self._tree = tree
        self._uploader = uploader
        self._session = session
        self._caller = caller
        self._events = events

    async def put(self, source: Path, names: Names, *, keep_times: bool) -> None:
        """Copy what is in the local directory `source` into the directory `names`.

        The directory and those above it are made when they are missing; what is there already
        stays unless it has the same name. With `keep_times` files keep their mtime.

        Raises:
            MictlanError: nothing more can be copied.
        """
        top = await self._directory(names)

        async def put_one(item: tuple[os.DirEntry[str], Names, Directory]) -> None:
            entry, target, directory = item
            try:
                await self._put_entry(entry, target, directory, keep_times=keep_times)
            except MictlanError as error:
                self._events.report(entry.path, error)

        await for_each(self._walk(source, names, top), put_one, tasks_max=FILES_AT_ONCE_MAX)

    async def _walk(
        self, source: Path, names: Names, top: Directory
    ) -> AsyncGenerator[tuple[os.DirEntry[str], Names, Directory], None]:
        """Everything below `source` but directories, which are made in the space on the way."""
        stack = [(str(source), names, top)]
        while stack:
            path, names, directory = stack.pop()
            try:
                with translated_os_errors("read", path), os.scandir(path) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except MictlanError as error:
                self._events.report(path, error)
                continue
            for entry in entries:
                target = (*names, os.fsencode(entry.name))
                if not entry.is_dir(follow_symlinks=False):
                    yield entry, target, directory
                    continue
                try:
                    below = await self._subdirectory(directory, target)
                except MictlanError as error:
                    self._events.report(entry.path, error)
                else:
                    stack.append((entry.path, target, below))

    async def _put_entry(
        self, entry: os.DirEntry[str], target: Names, directory: Directory, *, keep_times: bool
    ) -> None:
        if entry.is_symlink():
            attributes = await self._put_symlink(entry, target, directory)
        elif entry.is_file(follow_symlinks=False):
            source = open_source(Path(entry.path))
            try:
                attributes = await self._uploader.put(
                    self._session,
                    source,
                    target,
                    directory=directory,
                    keep_times=keep_times,
                    progress=self._events.on_bytes,
                )
            finally:
                source.close()
        else:
            detail = "it is no file, directory or symbolic link; left out"
            raise MictlanError(Kind.UNSUPPORTED, "put", entry.path, detail)
        self._events.on_file(show_path(target), attributes)

    async def _put_symlink(
        self, entry: os.DirEntry[str], target: Names, directory: Directory
    ) -> Attributes:
        """Make a symlink, in the place of what is no directory and has its name."""
        destination = _local_symlink(entry.path)
        ino = await self._session.new_inode()
        temporary = target[-1][:200] + b".%d" % ino
        now_ns = time.time_ns()
        touched = await self._session.apply_all(
            [
                wire.MakeNode(
                    directory.ino,
                    temporary,
                    ino,
                    FileKind.SYMLINK,
                    MODE_MASK,
                    self._caller.uid,
                    self._caller.gid,
                    now_ns,
                    target=destination,
                ),
                wire.Rename(directory.ino, temporary, directory.ino, target[-1], now_ns),
            ]
        )
        return touched[-1][0]

    async def _directory(self, names: Names) -> Directory:
        """The directory `names`, made with those above it when missing."""
        found = await self._tree.find(names)
        reached = found.nodes[-1]
        if reached.policy is None or reached.attributes.kind is not FileKind.DIRECTORY:
            raise found.missing() if not found.is_complete else _no_directory(names)
        if found.is_complete:
            return Directory(reached.attributes.ino, reached.policy)
        ops, ino = await new_directories(
            self._session, self._caller, reached.attributes.ino, found.missing_names
        )
        try:
            await self._session.apply_all(ops)
        except MictlanError as error:
            if error.kind is not Kind.EXISTS:
                raise
            return await self._directory(names)
        return Directory(ino, reached.policy)

    async def _subdirectory(self, parent: Directory, names: Names) -> Directory:
        """The directory `names[-1]` in `parent`, made when missing."""
        ops, ino = await new_directories(self._session, self._caller, parent.ino, names[-1:])
        try:
            await self._session.apply(ops[0])
        except MictlanError as error:
            if error.kind is not Kind.EXISTS:
                raise
            return await self._directory(names)
        return Directory(ino, parent.policy)


def _no_directory(names: Names) -> MictlanError:
    return MictlanError(Kind.NOT_DIRECTORY, "use", show_path(names), "it is not a directory")


# --- out of the space ----------------------------------------------------------------------------


class TreeGet:
    """Copies directories of the space to local ones."""

    def __init__(self, tree: Tree, downloader: Downloader, events: CopyEvents) -> None:
        self._tree = tree
        self._downloader = downloader
        self._events = events

    async def get(self, directory: Node, names: Names, destination: Path) -> None:
        """Copy what is in `directory` of the space, which is called `names`, to `destination`.

        The local directory is made when it is missing; what is there already stays unless it has
        the same name. Modes and mtimes are kept.

        Raises:
            MictlanError: nothing more can be copied.
        """
        made: list[tuple[Path, Attributes]] = []

        async def get_one(item: tuple[wire.Entry, Names, Path]) -> None:
            entry, source, target = item
            try:
                await self._get_entry(entry.node, source, target)
            except MictlanError as error:
                self._events.report(show_path(source), error)
            else:
                self._events.on_file(str(target), entry.node.attributes)

        walk = self._walk(directory, names, destination, made)
        await for_each(walk, get_one, tasks_max=FILES_AT_ONCE_MAX)
        # Last and innermost first: making a file changes the times of its directory, and needs a
        # directory that can be written.
        for path, attributes in reversed(made):
            with translated_os_errors("change", str(path)):
                path.chmod(attributes.mode & MODE_MASK)
                os.utime(path, ns=(attributes.mtime_ns, attributes.mtime_ns))

    async def _walk(
        self,
        directory: Node,
        names: Names,
        destination: Path,
        made: list[tuple[Path, Attributes]],
    ) -> AsyncGenerator[tuple[wire.Entry, Names, Path], None]:
        """Everything below `directory` but directories, which are made locally on the way."""
        stack = [(directory.attributes, names, destination)]
        while stack:
            attributes, names, path = stack.pop()
            try:
                if _make_local(path):
                    made.append((path, attributes))
            except MictlanError as error:
                self._events.report(str(path), error)
                continue
            pages = self._tree.entries(
                attributes.ino,
                extents_max=EXTENTS_WITH_ENTRY_MAX,
                inline_max=wire.INLINE_CHUNK_SIZE_BYTES_MAX,
            )
            async with aclosing(pages) as entries:
                async for entry in entries:
                    target = path / os.fsdecode(entry.name)
                    below = (*names, entry.name)
                    if entry.node.attributes.kind is FileKind.DIRECTORY:
                        stack.append((entry.node.attributes, below, target))
                    else:
                        yield entry, below, target

    async def _get_entry(self, node: Node, source: Names, target: Path) -> None:
        kind = node.attributes.kind
        if kind is FileKind.SYMLINK:
            _make_local_symlink(target, node.target)
        elif kind is FileKind.FILE:
            await self._downloader.get_whole(
                source, node, lambda: FileSink(target), self._events.on_bytes
            )
        else:
            detail = f"it is a {kind.name.lower().replace('_', ' ')}; left out"
            raise MictlanError(Kind.UNSUPPORTED, "get", str(target), detail)


def _make_local(path: Path) -> bool:
    """Make a local directory; False when it is there. A symlink in its place is not followed."""
    with translated_os_errors("make directory", str(path)):
        try:
            path.mkdir(0o700)
        except FileExistsError:
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise
            return False
    return True


def _local_symlink(path: str) -> bytes:
    """What a local symlink names."""
    with translated_os_errors("read", path):
        return os.fsencode(Path(path).readlink())


def _make_local_symlink(path: Path, target: bytes) -> None:
    """Make a local symlink, in the place of another one."""
    with translated_os_errors("write", str(path)):
        if path.is_symlink():
            path.unlink()
        path.symlink_to(os.fsdecode(target))
