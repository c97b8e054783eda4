"""The adapter to pyfuse3: what leaves a handler, what the kernel is told, lookup counts."""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, ModeT, XAttrNameT

from mictlanfs import wire
from mictlanfs.errors import ERRNO, Kind, MictlanError
from mictlanfs.model import MIB, ROOT_INODE, FileKind, InodeNumber
from mictlanfs_mount.attributes import Presentation
from mictlanfs_mount.filesystem import FileSystem
from mictlanfs_mount.handles import HandleNumber
from mictlanfs_mount.operations import Operations
from tests.support.mount_fakes import CALLER, FakeMount, open_mount
from tests.support.mount_space import FakeSpace

CTX = cast(
    "pyfuse3.RequestContext", SimpleNamespace(uid=CALLER.uid, gid=CALLER.gid, pid=1, umask=0o022)
)
HANDLERS = sorted(
    name
    for name, method in vars(Operations).items()
    if inspect.iscoroutinefunction(method) and not name.startswith("_")
)
# Never called: the kernel checks permissions itself, and falls back to its own poll.
LEFT_TO_PYFUSE3 = {"access", "poll"}


def name_of(text: bytes) -> FileNameT:
    return FileNameT(text)


# --- what may leave a handler --------------------------------------------------------------------


class Failing:
    """A file system of which everything fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.inodes: Any = SimpleNamespace(forget=self._fail)

    def _fail(self, *_: object) -> None:
        raise self.error

    def __getattr__(self, name: str) -> Any:
        def verb(*_: object, **__: object) -> None:
            raise self.error

        return verb


def operations_that_fail(error: BaseException) -> Operations:
    return Operations(cast("FileSystem", Failing(error)), Presentation(ROOT_INODE))


def arguments(name: str) -> dict[str, object]:
    """Arguments for a handler, by the names of its parameters."""
    known: dict[str, object] = {
        "parent_inode": InodeT(1),
        "parent_inode_old": InodeT(1),
        "parent_inode_new": InodeT(1),
        "new_parent_inode": InodeT(1),
        "inode": InodeT(2),
        "inode_list": [(InodeT(2), 1)],
        "name": b"name",
        "name_old": b"old",
        "name_new": b"new",
        "new_name": b"new",
        "target": b"target",
        "mode": ModeT(stat.S_IFREG | 0o644),
        "rdev": 0,
        "flags": FlagT(0),
        "attr": pyfuse3.EntryAttributes(),
        "fields": pyfuse3.SetattrFields(),
        "fh": FileHandleT(1),
        "off": 0,
        "size": 1,
        "buf": b"x",
        "value": b"x",
        "datasync": True,
        "start_id": 0,
        "token": None,
        "ctx": CTX,
    }
    parameters = list(inspect.signature(getattr(pyfuse3.Operations, name)).parameters)[1:]
    return {parameter: known[parameter] for parameter in parameters}


async def outcome(name: str, error: BaseException) -> BaseException | None:
    """What leaves a handler when its verb raises `error`."""
    values = arguments(name).values()
    try:
        await getattr(operations_that_fail(error), name)(*values)
    except BaseException as left:  # noqa: BLE001 - Whatever leaves is what is looked at.
        return left
    return None


EXPECTED: list[tuple[Exception, int]] = [
    *((MictlanError(kind), ERRNO[kind]) for kind in Kind),
    (OSError(errno.EBADF, "unknown handle"), errno.EBADF),
    (FileNotFoundError(errno.ENOENT, "no cache"), errno.ENOENT),
    (OSError("without a number"), errno.EIO),
    (TimeoutError(), errno.EIO),
    (OSError(-2, "what the resolver says"), errno.EIO),
    (OSError(99999, "no such number"), errno.EIO),
    (OSError(errno.ENOSYS, "would switch the handler off for ever"), errno.EIO),
    (FUSEError(errno.ENOTTY), errno.ENOTTY),
    (ValueError("a defect"), errno.EIO),
    (KeyError("a defect"), errno.EIO),
    (AssertionError("a defect"), errno.EIO),
    (RecursionError("a defect"), errno.EIO),
    (MemoryError(), errno.EIO),
    (StopAsyncIteration(), errno.EIO),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a defect"), errno.EIO),
    (msgspec.ValidationError("a defect"), errno.EIO),
    (trio.ClosedResourceError(), errno.EIO),
    (trio.TooSlowError(), errno.EIO),
    (ExceptionGroup("of one", [MictlanError(Kind.NO_SPACE)]), errno.ENOSPC),
    (ExceptionGroup("", [ExceptionGroup("", [MictlanError(Kind.STALE)])]), errno.ESTALE),
    (ExceptionGroup("of several", [MictlanError(Kind.STALE), ValueError()]), errno.EIO),
    (ExceptionGroup("of ours", [FUSEError(errno.ENOTTY)]), errno.ENOTTY),
]


def test_every_handler_of_pyfuse3_is_ours_or_left_out_on_purpose() -> None:
    theirs = {
        name
        for name, method in vars(pyfuse3.Operations).items()
        if inspect.iscoroutinefunction(method)
    }
    assert theirs - set(HANDLERS) == LEFT_TO_PYFUSE3
    assert set(HANDLERS) <= theirs


@pytest.mark.parametrize("name", HANDLERS)
def test_handler_takes_what_pyfuse3_gives(name: str) -> None:
    ours = inspect.signature(getattr(Operations, name)).parameters
    theirs = inspect.signature(getattr(pyfuse3.Operations, name)).parameters
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("name", [name for name in HANDLERS if name != "forget"])
async def test_every_error_of_a_verb_becomes_an_errno(name: str) -> None:
    for error, number in EXPECTED:
        left = await outcome(name, error)
        assert isinstance(left, FUSEError), (name, error)
        assert left.errno == number, (name, error)


async def test_forget_never_raises() -> None:
    for error, _ in EXPECTED:
        assert await outcome("forget", error) is None


async def test_forget_of_one_inode_that_fails_does_not_keep_the_others() -> None:
    async with open_operations() as rig:
        ino = rig.space.add(rig.space.bucket, b"file")
        await rig.lookup(b"bucket")
        entry = await rig.lookup(b"bucket/file")
        await rig.operations.forget([(cast("InodeT", None), 1), (entry.st_ino, 1)])
        assert rig.mount.inodes.get(ino) is None


@pytest.mark.parametrize("name", [name for name in HANDLERS if name != "forget"])
async def test_cancellation_goes_through_every_handler(name: str) -> None:
    class Waiting(Failing):
        def __getattr__(self, name: str) -> Any:
            async def verb(*_: object, **__: object) -> None:
                await trio.sleep_forever()

            synchronous = {"rewinddir", "lacks_xattr", "read_now"}
            return verb if name not in synchronous else lambda *_: None

    waiting = Waiting(ValueError())
    operations = Operations(cast("FileSystem", waiting), Presentation(ROOT_INODE))
    with trio.move_on_after(0) as scope:
        await getattr(operations, name)(*arguments(name).values())
    assert scope.cancelled_caught


async def test_cancellation_beside_an_error_leaves_as_that_error() -> None:
    class Both(Failing):
        async def fsync(self, _: object) -> None:
            async def fail() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    raise MictlanError(Kind.NO_SPACE)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(fail)

    operations = Operations(cast("FileSystem", Both(ValueError())), Presentation(ROOT_INODE))
    left: list[BaseException] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await operations.fsync(FileHandleT(1), False)
        except BaseException as error:  # noqa: BLE001 - Whatever leaves is what is looked at.
            left.append(error)
    assert isinstance(left[0], FUSEError | trio.Cancelled)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
async def test_interrupts_are_not_answered(error: BaseException) -> None:
    assert await outcome("statfs", error) is error


async def test_defect_is_logged_with_its_traceback_and_an_answer_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    await outcome("getattr", MictlanError(Kind.NOT_FOUND))
    assert caplog.records == []
    await outcome("getattr", ValueError("a defect"))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "getattr" in record.getMessage()


# --- with a file system --------------------------------------------------------------------------


@dataclass
class Rig:
    """Handlers over a space in memory."""

    mount: FakeMount
    operations: Operations
    shown: Presentation

    @property
    def space(self) -> FakeSpace:
        return self.mount.space

    async def lookup(self, path: bytes) -> pyfuse3.EntryAttributes:
        """Resolve a path from the root, as the kernel does."""
        ino = pyfuse3.ROOT_INODE
        for name in path.split(b"/"):
            entry = await self.operations.lookup(ino, name_of(name), CTX)
            ino = entry.st_ino
        return entry

    def lookup_count(self, ino: int) -> int:
        inode = self.mount.inodes.get(InodeNumber(ino))
        return 0 if inode is None else inode.lookup_count


@asynccontextmanager
async def open_operations(
    space: FakeSpace | None = None, shown: Presentation | None = None, **options: float
) -> AsyncIterator[Rig]:
    shown = shown or Presentation(ROOT_INODE)
    async with open_mount(space, **options) as mount:  # type: ignore[arg-type]  # Passed through.
        yield Rig(mount, Operations(mount.filesystem, shown), shown)


async def errno_of(awaitable: Any) -> int:
    with pytest.raises(FUSEError) as caught:
        await awaitable
    return caught.value.errno


@pytest.mark.parametrize(("umask", "has_acls"), [(0, True), (0o022, False)])
async def test_the_kernel_enforces_lists_where_modes_are_those_stored(
    umask: int, has_acls: bool
) -> None:
    async with open_operations(shown=Presentation(ROOT_INODE, umask=umask)) as rig:
        assert rig.operations.enable_acl is has_acls
        assert rig.mount.filesystem.has_acls is has_acls


async def test_every_handler_that_gives_an_entry_counts_one_reference() -> None:
    async with open_operations() as rig:
        ops, bucket = rig.operations, InodeT(rig.space.bucket)
        made = [
            await ops.mknod(bucket, name_of(b"f"), ModeT(stat.S_IFREG | 0o600), 0, CTX),
            await ops.mkdir(bucket, name_of(b"d"), ModeT(stat.S_IFDIR | 0o700), CTX),
            await ops.symlink(bucket, name_of(b"s"), name_of(b"target"), CTX),
            (await ops.create(bucket, name_of(b"c"), ModeT(0o600), FlagT(os.O_RDWR), CTX))[1],
        ]
        assert [rig.lookup_count(entry.st_ino) for entry in made] == [1, 1, 1, 1]
        await ops.link(made[0].st_ino, bucket, name_of(b"l"), CTX)
        assert rig.lookup_count(made[0].st_ino) == 2
        await ops.lookup(bucket, name_of(b"f"), CTX)
        assert rig.lookup_count(made[0].st_ino) == 3
        await ops.getattr(made[0].st_ino, CTX)
        assert rig.lookup_count(made[0].st_ino) == 3
        await ops.forget([(made[0].st_ino, 3)])
        assert rig.mount.inodes.get(InodeNumber(made[0].st_ino)) is None


async def test_kinds_and_owner_arrive() -> None:
    async with open_operations() as rig:
        ops, bucket = rig.operations, InodeT(rig.space.bucket)
        fifo = await ops.mknod(bucket, name_of(b"p"), ModeT(stat.S_IFIFO | 0o600), 0, CTX)
        device = await ops.mknod(bucket, name_of(b"b"), ModeT(stat.S_IFBLK | 0o600), 0x801, CTX)
        link = await ops.symlink(bucket, name_of(b"s"), name_of(b"target"), CTX)
        assert stat.S_ISFIFO(fifo.st_mode)
        assert stat.S_ISBLK(device.st_mode)
        assert device.st_rdev == 0x801
        assert stat.S_ISLNK(link.st_mode)
        assert await ops.readlink(link.st_ino, CTX) == b"target"
        assert (link.st_uid, link.st_gid) == (CALLER.uid, CALLER.gid)


async def test_name_that_is_too_long_is_refused() -> None:
    async with open_operations() as rig:
        long = name_of(b"x" * 256)
        assert await errno_of(rig.operations.lookup(InodeT(1), long, CTX)) == errno.ENAMETOOLONG
        await errno_of(rig.operations.lookup(InodeT(1), name_of(b"x" * 255), CTX))
        assert rig.mount.script.asked() == 1


async def test_failed_lookup_counts_no_reference() -> None:
    async with open_operations() as rig:
        assert await errno_of(rig.lookup(b"bucket/nothing")) == errno.ENOENT
        assert rig.lookup_count(rig.space.bucket) == 1
        assert len(rig.mount.inodes) == 1


async def test_names_are_removed_and_moved() -> None:
    async with open_operations() as rig:
        ops, bucket = rig.operations, InodeT(rig.space.bucket)
        rig.space.add(rig.space.bucket, b"one", content=b"1")
        rig.space.add(rig.space.bucket, b"two", content=b"2")
        rig.space.add(rig.space.bucket, b"dir", FileKind.DIRECTORY)
        move = (bucket, name_of(b"one"), bucket, name_of(b"two"))
        assert await errno_of(ops.rename(*move, FlagT(1), CTX)) == errno.EEXIST
        await ops.rename(*move, FlagT(2), CTX)
        await ops.rename(*move, FlagT(0), CTX)
        assert (await rig.lookup(b"bucket/two")).st_size == 1
        assert await errno_of(rig.lookup(b"bucket/one")) == errno.ENOENT
        await ops.unlink(bucket, name_of(b"two"), CTX)
        await ops.rmdir(bucket, name_of(b"dir"), CTX)
        assert rig.space.attributes(rig.space.bucket).size == 0


async def test_file_is_written_and_read_through_its_handle() -> None:
    async with open_operations() as rig:
        ops, bucket = rig.operations, InodeT(rig.space.bucket)
        flags = FlagT(os.O_RDWR)
        info, entry = await ops.create(bucket, name_of(b"f"), ModeT(0o600), flags, CTX)
        assert info.keep_cache
        assert await ops.write(info.fh, 0, b"hello") == 5
        assert bytes(await ops.read(info.fh, 1, 100)) == b"ello"
        assert (await ops.getattr(entry.st_ino, CTX)).st_size == 5
        await ops.flush(info.fh)
        await ops.fsync(info.fh, True)
        await ops.release(info.fh)
        again = await ops.open(entry.st_ino, FlagT(os.O_RDONLY), CTX)
        assert bytes(await ops.read(again.fh, 0, 100)) == b"hello"
        await ops.release(again.fh)
        assert await errno_of(ops.read(again.fh, 0, 1)) == errno.EBADF


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", stat.S_IFREG | 0o4711),
        ("uid", 7),
        ("gid", 8),
        ("size", 9),
        ("atime", 10_000_000_011),
        ("mtime", 12_000_000_013),
    ],
)
async def test_only_the_attributes_that_are_named_change(name: str, value: int) -> None:
    async with open_operations() as rig:
        ino = rig.space.add(rig.space.bucket, b"f", content=b"123")
        before = rig.space.attributes(ino)
        wanted = pyfuse3.EntryAttributes()
        wanted.st_mode, wanted.st_uid, wanted.st_gid, wanted.st_size = ModeT(0), 1, 2, 3
        field_name = f"st_{name}_ns" if name.endswith("time") else f"st_{name}"
        setattr(wanted, field_name, value)
        every = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
        fields = SimpleNamespace(**{f"update_{one}": one == name for one in every})
        shown = await rig.operations.setattr(
            InodeT(ino), wanted, cast("pyfuse3.SetattrFields", fields), None, CTX
        )
        assert getattr(shown, field_name) == value
        after = rig.space.attributes(ino)
        attribute = field_name.removeprefix("st_")
        assert getattr(after, attribute) == (stat.S_IMODE(value) if name == "mode" else value)
        for other in {"mode", "uid", "gid", "size"} - {name}:
            assert getattr(after, other) == getattr(before, other)


async def test_mounted_directory_is_the_root() -> None:
    space = FakeSpace()
    inner = space.add(space.bucket, b"inner", FileKind.DIRECTORY)
    space.add(inner, b"file", content=b"1234")
    async with open_operations(space, Presentation(inner)) as rig:
        assert (await rig.lookup(b"file")).st_size == 4
        root = await rig.operations.getattr(pyfuse3.ROOT_INODE, CTX)
        assert root.st_ino == pyfuse3.ROOT_INODE
        assert root.st_mtime_ns == space.attributes(inner).mtime_ns


async def test_root_is_remembered_though_the_kernel_never_looks_it_up() -> None:
    async with open_operations(attr_timeout_s=1e6) as rig:
        for _ in range(3):
            await rig.operations.getattr(pyfuse3.ROOT_INODE, CTX)
            fh = await rig.operations.opendir(pyfuse3.ROOT_INODE, CTX)
            await rig.operations.releasedir(fh)
        assert rig.mount.script.asked() == 1


async def test_extended_attributes() -> None:
    async with open_operations() as rig:
        ops, ino = rig.operations, InodeT(rig.space.add(rig.space.bucket, b"f"))
        key = XAttrNameT(b"user.key")
        assert await errno_of(ops.getxattr(ino, key, CTX)) == pyfuse3.ENOATTR
        await ops.setxattr(ino, key, b"value", CTX)
        assert await ops.getxattr(ino, key, CTX) == b"value"
        assert await ops.listxattr(ino, CTX) == [b"user.key"]
        await ops.removexattr(ino, key, CTX)
        assert await ops.listxattr(ino, CTX) == []
        assert await errno_of(ops.removexattr(ino, key, CTX)) == pyfuse3.ENOATTR


async def test_who_asks_for_a_label_hears_that_there_are_none() -> None:
    async with open_operations() as rig:
        ops, ino = rig.operations, InodeT(rig.space.add(rig.space.bucket, b"f"))
        label = XAttrNameT(b"security.selinux")
        capability = XAttrNameT(b"security.capability")
        assert await errno_of(ops.getxattr(ino, label, CTX)) == errno.ENOTSUP
        assert await errno_of(ops.getxattr(ino, capability, CTX)) == pyfuse3.ENOATTR
        await ops.setxattr(ino, label, b"label", CTX)
        assert await ops.getxattr(ino, label, CTX) == b"label"
        await ops.removexattr(ino, label, CTX)
        assert await errno_of(ops.getxattr(ino, label, CTX)) == errno.ENOTSUP


async def test_more_names_of_attributes_than_the_kernel_takes_are_refused() -> None:
    async with open_operations() as rig:
        ino = rig.space.add(rig.space.bucket, b"f")
        for number in range(300):
            rig.space.apply(0, wire.SetXattr(ino, b"user.%d" % number + b"x" * 240, b"", 0))
        assert await errno_of(rig.operations.listxattr(InodeT(ino), CTX)) == errno.E2BIG


async def test_space_and_counts() -> None:
    async with open_operations() as rig:
        data = await rig.operations.statfs(CTX)
        assert data.f_frsize * data.f_blocks == 100 * MIB
        assert data.f_bsize == data.f_frsize
        assert data.f_frsize * data.f_bfree == data.f_frsize * data.f_bavail == 60 * MIB
        assert data.f_files - data.f_ffree == 10
        assert data.f_namemax == 255


# --- directories ---------------------------------------------------------------------------------


@dataclass
class Token:
    """The kernel's buffer for one readdir request: room for some entries."""

    room: int
    entries: list[tuple[bytes, pyfuse3.EntryAttributes, int]] = field(default_factory=list)

    @property
    def names(self) -> list[bytes]:
        return [name for name, _, _ in self.entries]


@pytest.fixture(autouse=True)
def buffer_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(token: Token, name: bytes, entry: pyfuse3.EntryAttributes, next_id: int) -> bool:
        if len(token.entries) == token.room:
            return False
        token.entries.append((name, entry, next_id))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)


async def readdir(rig: Rig, fh: FileHandleT, start_id: int, room: int = 1000) -> Token:
    token = Token(room)
    await rig.operations.readdir(fh, start_id, cast("pyfuse3.ReaddirToken", token))
    return token


def fill(space: FakeSpace, count: int) -> list[bytes]:
    names = [b"%03d" % number for number in range(count)]
    for name in names:
        space.add(space.bucket, name)
    return names


async def test_directory_begins_with_dots_and_has_every_name() -> None:
    async with open_operations() as rig:
        names = fill(rig.space, 5)
        fh = await rig.operations.opendir(InodeT(rig.space.bucket), CTX)
        token = await readdir(rig, fh, 0)
        assert token.names == [b".", b"..", *names]
        dot, dots = token.entries[0][1], token.entries[1][1]
        assert (dot.st_ino, dots.st_ino) == (rig.space.bucket, pyfuse3.ROOT_INODE)
        assert stat.S_ISDIR(dot.st_mode)
        assert stat.S_ISDIR(dots.st_mode)


async def test_nothing_is_above_a_directory_that_is_mounted_alone() -> None:
    space = FakeSpace()
    async with open_operations(space, Presentation(space.bucket)) as rig:
        fh = await rig.operations.opendir(pyfuse3.ROOT_INODE, CTX)
        token = await readdir(rig, fh, 0)
        assert [entry[1].st_ino for entry in token.entries[:2]] == [pyfuse3.ROOT_INODE] * 2


@pytest.mark.parametrize("room", [1, 2, 3, 7])
async def test_directory_read_in_parts_has_every_name_once_by_one_request(room: int) -> None:
    async with open_operations() as rig:
        names = fill(rig.space, 10)
        fh = await rig.operations.opendir(InodeT(rig.space.bucket), CTX)
        seen: list[bytes] = []
        start_id = 0
        while (token := await readdir(rig, fh, start_id, room)).entries:
            seen += token.names
            start_id = token.entries[-1][2]
        assert seen == [b".", b"..", *names]
        assert rig.mount.script.asked("list") == 1


async def test_part_that_the_kernel_threw_away_is_sent_again() -> None:
    async with open_operations() as rig:
        fill(rig.space, 10)
        fh = await rig.operations.opendir(InodeT(rig.space.bucket), CTX)
        first = await readdir(rig, fh, 0, room=8)
        again = await readdir(rig, fh, first.entries[3][2], room=4)
        assert again.names == first.names[4:8]


async def test_directory_is_read_anew_from_its_start_only() -> None:
    async with open_operations() as rig:
        fill(rig.space, 3)
        fh = await rig.operations.opendir(InodeT(rig.space.bucket), CTX)
        await readdir(rig, fh, 0)
        rig.space.add(rig.space.bucket, b"new")
        assert b"new" not in (await readdir(rig, fh, 1)).names
        assert b"new" not in (await readdir(rig, fh, 2)).names
        assert b"new" in (await readdir(rig, fh, 0)).names
        assert rig.mount.script.asked("list") == 2


async def test_entries_that_were_sent_count_as_references_and_no_others() -> None:
    async with open_operations() as rig:
        fill(rig.space, 5)
        await rig.lookup(b"bucket")
        fh = await rig.operations.opendir(InodeT(rig.space.bucket), CTX)
        token = await readdir(rig, fh, 0, room=4)
        sent = {entry.st_ino for name, entry, _ in token.entries[2:]}
        assert [rig.lookup_count(ino) for ino in sent] == [1, 1]
        assert rig.lookup_count(rig.space.bucket) == 1
        assert rig.lookup_count(ROOT_INODE) == 0
        assert len(rig.mount.inodes) == 1 + len(sent)
        await readdir(rig, fh, 0, room=4)
        assert [rig.lookup_count(ino) for ino in sent] == [2, 2]


async def test_listed_files_need_no_question_about_their_attributes() -> None:
    async with open_operations(attr_timeout_s=1e6) as rig:
        fill(rig.space, 5)
        fh = await rig.operations.opendir(InodeT(rig.space.bucket), CTX)
        token = await readdir(rig, fh, 0)
        rig.mount.script.counts.clear()
        for _, entry, _ in token.entries[2:]:
            assert entry.entry_timeout > 1e5
            await rig.operations.getattr(entry.st_ino, CTX)
        assert rig.mount.script.asked() == 0


async def test_listed_file_shows_what_is_dirty() -> None:
    async with open_operations() as rig:
        bucket = InodeT(rig.space.bucket)
        info, _ = await rig.operations.create(
            bucket, name_of(b"f"), ModeT(0o600), FlagT(os.O_RDWR), CTX
        )
        await rig.operations.write(info.fh, 0, b"12345")
        fh = await rig.operations.opendir(bucket, CTX)
        token = await readdir(rig, fh, 0)
        assert token.entries[2][1].st_size == 5


async def test_name_changed_here_since_it_was_listed_is_not_to_be_believed() -> None:
    async with open_operations(attr_timeout_s=1e6) as rig:
        fill(rig.space, 6)
        ops, bucket = rig.operations, InodeT(rig.space.bucket)
        fh = await ops.opendir(bucket, CTX)
        await readdir(rig, fh, 0, room=4)
        await ops.rename(bucket, name_of(b"001"), bucket, name_of(b"004"), FlagT(0), CTX)
        rest = await readdir(rig, fh, 4)
        assert [entry.entry_timeout for _, entry, _ in rest.entries] == [0.0] * 4


async def test_name_is_not_believed_for_longer_than_its_listing(autojump_clock: object) -> None:
    async with open_operations(attr_timeout_s=1.0) as rig:
        ino = rig.space.add(rig.space.bucket, b"file")
        fh = await rig.operations.opendir(InodeT(rig.space.bucket), CTX)
        await rig.mount.filesystem.readdir(HandleNumber(fh), 0)
        await trio.sleep(0.75)
        await rig.lookup(b"bucket/file")
        token = await readdir(rig, fh, 2)
        assert token.entries[0][1].st_ino == ino
        assert token.entries[0][1].entry_timeout <= 0.25


async def test_directory_handle_is_no_file_handle() -> None:
    async with open_operations() as rig:
        fh = await rig.operations.opendir(InodeT(rig.space.bucket), CTX)
        assert await errno_of(rig.operations.read(fh, 0, 1)) == errno.EBADF
        await rig.operations.fsyncdir(fh, False)
        await rig.operations.releasedir(fh)
        assert await errno_of(rig.operations.readdir(fh, 0, cast("Any", Token(1)))) == errno.EBADF


async def test_requests_are_counted_by_kind_also_those_that_fail() -> None:
    operations = operations_that_fail(MictlanError(Kind.NOT_FOUND))
    for name in ("lookup", "lookup", "getattr", "forget"):
        with contextlib.suppress(FUSEError):
            await getattr(operations, name)(*arguments(name).values())
    assert operations.request_counts == {"lookup": 2, "getattr": 1, "forget": 1}
