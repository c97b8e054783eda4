import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs import recoveries, wire
from mictlanfs.client.session import Session
from mictlanfs.config import MountOptions
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from mictlanfs.recoveries import KnownPath, RecoveryFile, list_recoveries
from mictlanfs_mount import salvage as module
from mictlanfs_mount.inodes import Inode, InodeTable
from mictlanfs_mount.leases import LeaseTable
from mictlanfs_mount.salvage import Salvager
from mictlanfs_mount.settings import MountSettings
from tests.support.mount_fakes import FakeClock
from tests.support.mount_space import START_NS, attributes_of
from tests.support.writeback_rig import Rig, open_rig

FENCED = MictlanError(Kind.FENCED, "commit")
MOUNTPOINT = Path("/mnt/vss")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "mictlanfs" / "recovery"


@dataclass
class FakeSession:
    """A session whose log is answered when a test says so."""

    unanswered_count: int = 0
    answered: trio.Event = field(default_factory=trio.Event)
    given_up: list[MictlanError] = field(default_factory=list)
    grant: Any = field(default_factory=lambda: SimpleNamespace(space_id="space"))

    async def flush(self) -> None:
        await self.answered.wait()

    def give_up(self, error: MictlanError) -> None:
        self.given_up.append(error)


class Tasks:
    """A nursery whose tasks run when a test says so."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[..., Awaitable[object]], tuple[Any, ...]]] = []

    def start_soon(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        self._waiting.append((task, args))

    async def run(self) -> None:
        while self._waiting:
            task, args = self._waiting.pop(0)
            await task(*args)


class Scene:
    """A salvager over write-back of a fake space, and the names that leases keep."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.session = FakeSession()
        self.tasks = Tasks()
        self.inodes = InodeTable()
        self.table = LeaseTable(FakeClock(), 1000)
        bucket = self._inode(rig.space.bucket)
        self.name(ROOT_INODE, b"bucket", bucket)
        self.file = self._inode(rig.ino)
        self.file.is_dirty = True
        self.file.open_count = 1
        self.name(rig.space.bucket, b"file", self.file)
        self.salvager = Salvager(
            cast("trio.Nursery", self.tasks),
            cast("Session", self.session),
            rig.writeback,
            self.inodes,
            FakeClock(),
            MountSettings("mictlanx://r@h:1/", MOUNTPOINT, MountOptions()),
        )
        self.salvager.table = self.table

    def _inode(self, ino: InodeNumber) -> Inode:
        return self.inodes.learn(self.rig.space.attributes(ino), 0.0)

    def name(self, parent: InodeNumber, name: bytes, inode: Inode) -> None:
        lease = self.table.granted(parent, wire.LeaseMode.WRITE, 1)
        assert lease is not None
        self.table.set_name(lease, name, inode)

    def lose_session(self) -> None:
        self.salvager.note_paths()
        self.table.end_all()
        self.salvager.take_dirty()

    async def recovery(self) -> RecoveryFile:
        """The only one, when what was gathered is written."""
        await self.tasks.run()
        (file,) = list_recoveries()
        assert isinstance(file, RecoveryFile)
        return file

    def make(self, name: bytes) -> tuple[wire.MakeNode, Inode]:
        ino = self.rig.space.new_inode()
        op = wire.MakeNode(self.rig.space.bucket, name, ino, FileKind.FILE, 0o644, 1, 2, START_NS)
        return op, Inode(attributes_of(ino, content_version=1))


async def test_dirty_bytes_of_a_lost_session_are_taken_and_never_committed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig() as rig:
        scene = Scene(rig)
        rig.write(0, b"0123456789")
        rig.writer.seal_all()
        mtime_ns = rig.write(4, b"newer")
        with caplog.at_level(logging.WARNING):
            scene.lose_session()
            scene.session.answered.set()
            file = await scene.recovery()
            await wait_all_tasks_blocked()
        (lost,) = file.recovery.files
        assert lost.path == KnownPath((b"bucket", b"file"))
        assert (lost.size, lost.mtime_ns, lost.ranges) == (10, mtime_ns, ((0, 10),))
        assert lost.content_version == rig.space.attributes(rig.ino).content_version
        assert b"".join(data for _, data in file.ranges(0)) == b"0123newer9"
        assert file.recovery.space_id == "space"
        assert file.recovery.mountpoint == str(MOUNTPOINT)
        assert rig.commits == []
        assert rig.writeback.budget.used_bytes == 0
    assert str(file.path) in caplog.text
    assert "mictlanfs recover" in caplog.text


async def test_a_commit_under_way_does_not_matter_any_more(autojump_clock: MockClock) -> None:
    async with open_rig(inline_size_max=100) as rig:
        scene = Scene(rig)
        hold = rig.script.hold("WriteExtents:asked")
        rig.script.fail("WriteExtents:served", FENCED)
        rig.write(0, b"bytes")
        rig.writer.seal_all()
        await wait_all_tasks_blocked()
        writer = rig.writer
        scene.lose_session()
        hold.release()
        await wait_all_tasks_blocked()
        assert writer.is_clean
        with pytest.raises(MictlanError) as caught:
            writer.raise_error()
        assert caught.value.kind is Kind.STALE
        writer.raise_error()


async def test_a_file_that_nobody_has_open_keeps_no_error(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        scene = Scene(rig)
        scene.file.open_count = 0
        rig.write(0, b"bytes")
        scene.lose_session()
        assert rig.writeback.get(rig.ino) is None


async def test_operations_come_in_order_with_their_paths(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        scene = Scene(rig)
        scene.session.unanswered_count = 2
        scene.lose_session()
        made = [scene.make(name) for name in (b"a", b"b")]
        for op, inode in made:
            scene.salvager.take_operation(op, FENCED, (inode,))
        scene.session.answered.set()
        file = await scene.recovery()
        assert [lost.op for lost in file.recovery.ops] == [op for op, _ in made]
        assert {lost.parent for lost in file.recovery.ops} == {KnownPath((b"bucket",))}
        assert [lost.touched[0].ino for lost in file.recovery.ops] == [op.ino for op, _ in made]


async def test_the_bytes_of_a_file_that_the_router_refused_to_make_are_kept(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(inline_size_max=100) as rig:
        scene = Scene(rig)
        scene.session.answered.set()
        op, inode = scene.make(b"new")
        scene.inodes.keep(inode)
        rig.writer_of(op.ino).write(0, b"bytes", START_NS)
        scene.salvager.take_operation(op, MictlanError(Kind.NO_SPACE, "commit"), (inode,))
        rig.writer_of(op.ino).seal_all()
        await wait_all_tasks_blocked()
        file = await scene.recovery()
        assert [lost.ino for lost in file.recovery.files] == [op.ino]
        assert "no space" in file.recovery.reason


async def test_the_bytes_of_a_file_that_was_removed_are_dropped(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(inline_size_max=100) as rig:
        Scene(rig)
        rig.space.apply(0, wire.Unlink(rig.space.bucket, b"file", START_NS))
        rig.write(0, b"bytes")
        rig.writer.seal_all()
        await trio.sleep(10)
        assert list_recoveries() == []


async def test_a_log_that_is_not_answered_does_not_hold_it_up(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        scene = Scene(rig)
        rig.write(0, b"bytes")
        scene.lose_session()
        await scene.recovery()


async def test_what_is_beyond_the_bounds_is_counted_and_logged(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "OPS_MAX", 1)
    monkeypatch.setattr(module, "SIZE_BYTES_MAX", 4)
    async with open_rig() as rig:
        scene = Scene(rig)
        scene.session.answered.set()
        rig.write(0, b"bytes")
        scene.lose_session()
        for name in (b"a", b"b", b"c"):
            op, inode = scene.make(name)
            scene.salvager.take_operation(op, FENCED, (inode,))
        recovery = (await scene.recovery()).recovery
        assert (len(recovery.ops), recovery.dropped_ops) == (1, 2)
        assert (recovery.files, recovery.dropped_bytes) == ((), 5)
    assert "more than 1 operations" in caplog.text
    assert "5 bytes" in caplog.text


async def test_a_disk_that_takes_nothing_is_told_in_the_log(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recoveries, "RECOVERIES_MAX", 0)
    async with open_rig() as rig:
        scene = Scene(rig)
        rig.write(0, b"bytes")
        scene.lose_session()
        assert await scene.salvager.write() is None
    assert "is lost" in caplog.text


async def test_an_unmount_keeps_what_it_could_not_store(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        scene = Scene(rig)
        rig.script.fail("store:asked", MictlanError(Kind.UNAVAILABLE), count=1000)
        rig.write(0, b"bytes")
        assert await rig.writeback.flush_all(5) == 5
        path = await scene.salvager.take_all()
        file = await scene.recovery()
        assert path == file.path
        assert file.recovery.lost_bytes == 5
        assert len(scene.session.given_up) == 1


async def test_an_unmount_that_stored_everything_keeps_nothing(folder: Path) -> None:
    async with open_rig() as rig:
        scene = Scene(rig)
        assert await scene.salvager.take_all() is None
        assert scene.session.given_up == []
    assert not folder.exists()


async def test_a_path_ends_at_the_highest_directory_that_is_known(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        scene = Scene(rig)
        root = scene.table.held(ROOT_INODE)
        assert root is not None
        scene.table.forget_names(root)
        rig.write(0, b"bytes")
        scene.lose_session()
        scene.session.answered.set()
        (lost,) = (await scene.recovery()).recovery.files
        assert lost.path == KnownPath((b"file",), rig.space.bucket)
        assert msgspec.structs.asdict(lost)["size"] == 5
