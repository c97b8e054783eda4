"""Removing files and whole trees of the space."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

import trio

from mictlanfs import wire
from mictlanfs.client.session import Session
from mictlanfs.client.tree import Tree
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs.taskerrors import raising_single_errors

# Removed together, in few batches; also what is held in memory of a large directory.
TOGETHER_COUNT_MAX = 1000

Progress = Callable[[int], None]


async def remove_tree(
    tree: Tree,
    session: Session,
    parent: InodeNumber,
    name: bytes,
    ino: InodeNumber,
    progress: Progress | None = None,
) -> None:
    """Remove the directory `ino`, which is `name` in `parent`, and all that is in it.

    What somebody else removes meanwhile counts as removed. `progress` is called with the number of
    names removed since the last call.

    Cancellation: some of it is gone.

    Raises:
        MictlanError: NOT_EMPTY when somebody else added something meanwhile.
    """
    # A stack and no recursion: trees may be deeper than Python's stack. Each directory is on it
    # twice, to be emptied and then, when all above it is done, to be removed.
    stack = [(parent, name, ino, False)]
    while stack:
        parent, name, ino, is_emptied = stack.pop()
        if is_emptied:
            op = wire.RemoveDirectory(parent, name, time.time_ns())
            await _apply_together(session, [op], progress)
            continue
        stack.append((parent, name, ino, True))
        stack.extend(await _empty(tree, session, ino, progress))


async def _empty(
    tree: Tree, session: Session, ino: InodeNumber, progress: Progress | None
) -> list[tuple[InodeNumber, bytes, InodeNumber, bool]]:
    """Unlink all in a directory but its directories, which are returned."""
    directories = []
    ops: list[wire.Operation] = []
    async with aclosing(tree.entries(ino)) as entries:
        async for entry in entries:
            attributes = entry.node.attributes
            if attributes.kind is FileKind.DIRECTORY:
                directories.append((ino, entry.name, attributes.ino, False))
                continue
            ops.append(wire.Unlink(ino, entry.name, time.time_ns()))
            if len(ops) >= TOGETHER_COUNT_MAX:
                await _apply_together(session, ops, progress)
                ops.clear()
    await _apply_together(session, ops, progress)
    return directories


async def _apply_together(
    session: Session, ops: Sequence[wire.Operation], progress: Progress | None
) -> None:
    """Apply operations that do not depend on each other; what is gone already is no error."""

    async def apply(op: wire.Operation) -> None:
        try:
            await session.apply(op)
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        if progress is not None:
            progress(1)

    with raising_single_errors():
        async with trio.open_nursery() as nursery:
            for op in ops:
                nursery.start_soon(apply, op)
