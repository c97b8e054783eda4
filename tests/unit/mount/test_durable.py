from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.model import ROOT_INODE, FileKind
from mictlanfs_mount.durable import DurableFileSystem
from mictlanfs_mount.filesystem import FileSystem
from tests.support.mount_fakes import CALLER, FakeClock, FakeMount, FakeRouter, open_mount


class CountingSession:
    """A session that counts barriers and leaves the rest to another."""

    def __init__(self, session: object) -> None:
        self._session = session
        self.sync_count = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    async def sync(self) -> None:
        self.sync_count += 1


@asynccontextmanager
async def counted_mount(
    kind: type[FileSystem],
) -> AsyncIterator[tuple[FakeMount, FileSystem, CountingSession]]:
    async with open_mount() as mount:
        session = CountingSession(mount.session)
        filesystem = kind(
            cast("RouterClient", FakeRouter(mount.space, mount.script)),
            cast("Session", session),
            mount.content,
            mount.inodes,
            FakeClock(),
            attr_timeout_s=1.0,
        )
        mount.inodes.root = ROOT_INODE
        yield mount, filesystem, session


async def sync_counts(kind: type[FileSystem]) -> list[int]:
    """How many barriers there were after each of some changes."""
    async with counted_mount(kind) as (mount, filesystem, session):
        bucket, counts = mount.space.bucket, []
        inode = await filesystem.make(bucket, b"a", FileKind.FILE, 0o644, CALLER)
        counts.append(session.sync_count)
        await filesystem.rename(bucket, b"a", bucket, b"b", 0)
        counts.append(session.sync_count)
        await filesystem.setattr(inode.ino, mode=0o600)
        counts.append(session.sync_count)
        await filesystem.setxattr(inode.ino, b"user.x", b"1")
        counts.append(session.sync_count)
        await filesystem.unlink(bucket, b"b")
        return [*counts, session.sync_count]


async def test_each_change_is_followed_by_a_barrier() -> None:
    assert await sync_counts(DurableFileSystem) == [1, 2, 3, 4, 5]


async def test_without_it_there_is_none() -> None:
    assert await sync_counts(FileSystem) == [0, 0, 0, 0, 0]
