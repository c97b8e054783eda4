"""The trash of a space: what buckets keep of what they lost, and how it comes back.

Owns no state. What is given back appears under its old path, or another one, in one step each;
nothing that is there is ever overwritten.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mictlanfs import wire
from mictlanfs.client.caller import Caller
from mictlanfs.client.lazysession import LazySession
from mictlanfs.client.names import Names, parse_path, show_path
from mictlanfs.client.router import RouterClient
from mictlanfs.client.tree import Tree
from mictlanfs.client.upload import new_directories
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber

# Called for each item that cannot be restored with others, with the error that says why.
OnError = Callable[[MictlanError], None]
Progress = Callable[[int], None]


class Trash:
    """Lists, restores and empties the trash; made by `SpaceClient`."""

    def __init__(
        self, router: RouterClient, tree: Tree, sessions: LazySession, caller: Caller
    ) -> None:
        self._router = router
        self._tree = tree
        self._sessions = sessions
        self._caller = caller

    async def items(self, path: str | bytes = "") -> AsyncGenerator[wire.TrashItem, None]:
        """What lies in the trash at a path and below it, in order of paths, the oldest first.

        Raises:
            MictlanError: the space cannot be reached; INVALID for what is no path.
        """
        names = parse_path(path)
        after = (b"", 0, 0)
        while True:
            page = await self._router.list_trash(wire.ListTrash(b"/".join(names), after))
            for item in page.items:
                yield item
            if page.is_last or not page.items:
                return
            last = page.items[-1]
            after = (last.path, last.removed_ns, last.ino)

    async def empty(
        self,
        path: str | bytes = "",
        *,
        older_than_s: float = 0.0,
        progress: Progress | None = None,
    ) -> wire.Emptied:
        """Give up what lies in the trash at a path and below it, by the clock of this machine.

        `progress` is called with the number of items given up since the last call.

        Cancellation: some of it is given up.
        """
        before_ns = time.time_ns() - int(older_than_s * 1e9) if older_than_s else 2**63 - 1
        request = wire.EmptyTrash(b"/".join(parse_path(path)), before_ns)
        count = nbytes = 0
        while True:
            emptied = await self._router.empty_trash(request)
            count, nbytes = count + emptied.count, nbytes + emptied.nbytes
            if progress is not None:
                progress(emptied.count)
            if emptied.is_last:
                return wire.Emptied(count, nbytes, is_last=True)

    async def restore(
        self, path: str | bytes, *, to: str | bytes | None = None, item: int | None = None
    ) -> Names:
        """Give the newest item of a path, or the one of that number, its name back, or `to`.

        Directories that are missing are made: those of the trash with the mode and owner that they
        had. Returns the names of what is restored.

        Raises:
            MictlanError: NOT_FOUND (nothing of it is in the trash, or the bucket is gone), EXISTS,
                BUSY (a program has it open), QUOTA_EXCEEDED, NOT_DIRECTORY.
        """
        names = parse_path(path)
        found = await self._newest(names, item)
        if found is None:
            detail = "nothing with this path is in the trash"
            raise MictlanError(Kind.NOT_FOUND, "restore", show_path(names), detail)
        goal = names if to is None else parse_path(to)
        await self._restore(found, goal)
        return goal

    async def restore_tree(
        self, path: str | bytes, on_error: OnError, *, to: str | bytes | None = None
    ) -> int:
        """Give all that was removed at a path and below it its name back, or one below `to`.

        Of each path the newest is restored, if that was removed; directories that are there are
        filled. Errors of single items go to `on_error`. Returns how many were restored.

        Raises:
            MictlanError: one that every other item would meet too: the space does not answer.
        """
        names = parse_path(path)
        goal = names if to is None else parse_path(to)
        count = 0
        async with aclosing(self._newest_below(names)) as items:
            async for item in items:
                if item.reason is not wire.TrashReason.REMOVED:
                    continue
                below = parse_path(item.path)[len(names) :]
                try:
                    await self._restore(item, (*goal, *below))
                    count += 1
                except MictlanError as error:
                    if error.is_retryable:
                        raise
                    is_there = error.kind is Kind.EXISTS and item.kind is FileKind.DIRECTORY
                    if not is_there:
                        on_error(error)
        return count

    async def _newest_below(self, names: Names) -> AsyncGenerator[wire.TrashItem, None]:
        newest: wire.TrashItem | None = None
        async with aclosing(self.items(b"/".join(names))) as items:
            async for item in items:
                if newest is not None and newest.path != item.path:
                    yield newest
                    newest = None
                newest = _newer(newest, item)
        if newest is not None:
            yield newest

    async def _newest(self, names: Names, number: int | None) -> wire.TrashItem | None:
        path = b"/".join(names)
        found: wire.TrashItem | None = None
        async with aclosing(self.items(path)) as items:
            async for item in items:
                if item.path != path:
                    # Those of the path itself come first.
                    break
                if number is None or item.ino == number:
                    found = _newer(found, item)
        return found

    async def _restore(self, item: wire.TrashItem, goal: Names) -> None:
        if len(goal) < 2:
            raise MictlanError(Kind.INVALID, "restore", show_path(goal), "it is not in a bucket")
        parent = await self._directory(goal[:-1])
        session = await self._sessions.get()
        op = wire.Restore(item.ino, await session.new_inode(), parent, goal[-1], time.time_ns())
        try:
            await session.apply(op, sync=True)
        except MictlanError as error:
            raise MictlanError(error.kind, "restore", show_path(goal), error.detail) from error

    async def _directory(self, names: Names) -> InodeNumber:
        """A directory, made with those above it when it is missing. Raises NOT_DIRECTORY, ..."""
        found = await self._tree.find(names)
        reached = len(found.nodes) - 1
        if reached == 0:
            raise found.missing()
        if found.nodes[-1].attributes.kind is not FileKind.DIRECTORY:
            raise MictlanError(Kind.NOT_DIRECTORY, "restore", show_path(names[:reached]))
        parent = found.nodes[-1].attributes.ino
        session = await self._sessions.get()
        for depth in range(reached, len(names)):
            item = await self._newest(names[: depth + 1], None)
            op: wire.Operation
            if item is not None and item.kind is FileKind.DIRECTORY and not item.is_open:
                ino = await session.new_inode()
                op = wire.Restore(item.ino, ino, parent, names[depth], time.time_ns())
            else:
                (op,), ino = await new_directories(
                    session, self._caller, parent, names[depth : depth + 1]
                )
            await session.apply(op)
            parent = ino
        return parent


def _newer(known: wire.TrashItem | None, item: wire.TrashItem) -> wire.TrashItem:
    if known is None or (known.removed_ns, known.ino) < (item.removed_ns, item.ino):
        return item
    return known
