import errno
from pathlib import Path

import pytest
import trio

from mictlanfs.errors import UsageError
from mictlanfs_server.mountpoint import check_free, is_answering, wait_until_answering
from tests.support.mounts import URI, MountTable


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MountTable:
    """A table of mounts that the test writes."""
    return MountTable(tmp_path / "mountinfo", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "vss"
    folder.mkdir()
    return folder


# --- checks -------------------------------------------------------------------------------------


def test_nothing_or_an_empty_directory_can_be_mounted_at(folder: Path) -> None:
    check_free(folder)
    check_free(folder / "new" / "deep")


def test_a_file_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(UsageError, match="file is not a directory"):
        check_free(folder / "file")


def test_a_directory_with_something_in_it_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(UsageError, match="vss is not empty: choose"):
        check_free(folder)


@pytest.mark.parametrize("kind", ["fuse.mictlanfs", "fuse.sshfs"])
def test_a_place_that_is_mounted_is_refused_with_the_remedy(
    table: MountTable, folder: Path, kind: str
) -> None:
    table.add(folder, kind, source="mictlanx://a:1")
    with pytest.raises(UsageError, match=rf"\(mictlanx://a:1\): .*`mictlanfs umount {folder}`"):
        check_free(folder)


def test_the_empty_root_of_a_disk_can_be_mounted_at(table: MountTable, folder: Path) -> None:
    table.add(folder, "ext4")
    check_free(folder)


# --- answers ------------------------------------------------------------------------------------


async def test_a_directory_that_is_not_mounted_does_not_answer(folder: Path) -> None:
    assert not await is_answering(folder)


async def test_a_mount_answers_when_it_lists_its_root(table: MountTable, folder: Path) -> None:
    table.add(folder, source=URI)
    assert await is_answering(folder)
    assert not await is_answering(folder.parent)


async def test_a_mount_is_waited_for(
    table: MountTable, folder: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_until_answering, folder)
        await trio.sleep(5.0)
        assert nursery.child_tasks
        table.add(folder)


async def test_a_mount_that_fails_or_hangs_does_not_answer(
    table: MountTable,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    table.add(folder)

    async def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    async def hang(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    for behaviour in (fail, hang):
        monkeypatch.setattr(trio.to_thread, "run_sync", behaviour)
        assert not await is_answering(folder)
