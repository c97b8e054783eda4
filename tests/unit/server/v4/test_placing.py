from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mictlanfs import wire
from mictlanfs.client.caller import Caller
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, FileKind, InodeNumber, Node, Struct
from mictlanfs_server.v4.placing import Placing

ROOT = Attributes(InodeNumber(1), FileKind.DIRECTORY, 0o777, 0, 0, 0, 0, 0, 0, 2)


class EmptySpace:
    """A space without buckets, on a disk that is full."""

    async def ask(self, path: str, request: Struct, answer: type[Any]) -> Any:
        assert path == wire.Path.RESOLVE
        return wire.Resolved((Node(ROOT),))

    async def new_inode(self) -> InodeNumber:
        return InodeNumber(7)

    async def apply(self, ops: object, *, is_strict: bool) -> None:
        raise MictlanError(Kind.NO_SPACE, "commit")


def test_directories_that_could_not_be_made_leave_nothing_behind() -> None:
    space: Any = EmptySpace()
    placing = Placing(space, space, Caller(uid=0, gid=0, umask=0))
    for number in range(3):
        with pytest.raises(MictlanError) as raised:
            asyncio.run(_found(placing, b"bucket-%d" % number))
        assert raised.value.kind is Kind.NO_SPACE
    assert not placing._making


async def _found(placing: Placing, bucket: bytes) -> None:
    await placing.directory((bucket,))
