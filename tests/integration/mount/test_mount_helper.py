"""mount(8), fstab, remount and umount(8) on a real mount, as an administrator uses them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mictlanfs.mounts.table import find_mount
from mictlanfs_mount import helperlinks
from tests.support.spaces import Space, is_mounted, is_running, mictlanfs, run, wait_until

HELPER = Path(helperlinks.DIRECTORY)
LOOP_COUNT = 8


@pytest.fixture(scope="module")
def links() -> Iterator[None]:
    """mount(8) finds the helper of this environment; what was there before comes back."""
    paths = [HELPER / name for name in helperlinks.NAMES]
    before = {path: os.readlink(path) for path in paths if path.is_symlink()}
    mictlanfs("mount", "--install-helper")
    yield
    for path in paths:
        path.unlink()
        if path in before:
            path.symlink_to(before[path])


@dataclass
class Place:
    """A mountpoint, a file like /etc/fstab with a line for it, and short names of the space."""

    path: Path
    cache: Path
    fstab: Path
    conf: Path
    uri: str

    def mount(self, options: str = "", spec: str | None = None) -> None:
        """Mount with mount(8)."""
        words = ",".join(filter(None, (f"cache_dir={self.cache}", options)))
        run("mount", "-t", "mictlanfs", spec or self.uri, self.path, "-o", words, env=self.env)

    def remount(self, options: str, *, check: bool = True) -> int:
        """Mount anew with mount(8), by the directory alone; returns its exit code."""
        words = f"remount,{options}"
        return run("mount", "-o", words, self.path, check=check, env=self.env).returncode

    @property
    def env(self) -> dict[str, str]:
        """With a personal configuration that knows the space as `attic`."""
        return {**os.environ, "XDG_CONFIG_HOME": str(self.conf)}

    def options(self) -> frozenset[str]:
        """What /proc says of the mount."""
        mount = find_mount(self.path)
        assert mount is not None
        return mount.options

    def source(self) -> str:
        """What /proc names as the source."""
        mount = find_mount(self.path)
        assert mount is not None
        return mount.source


@pytest.fixture
def place(space: Space, tmp_path: Path, links: None) -> Iterator[Place]:
    conf = tmp_path / "conf" / "mictlanfs" / "spaces.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f'[spaces]\nattic = "{space.uri}"\n')
    path = tmp_path / "mnt"
    path.mkdir()
    place = Place(path, tmp_path / "cache", tmp_path / "fstab", tmp_path / "conf", space.uri)
    yield place
    mictlanfs("umount", path, check=False)
    if is_mounted(path):
        run("umount", "-l", path, check=False)


def test_mount_8_returns_when_the_mount_answers(place: Place) -> None:
    place.mount()
    assert (place.path / "..").samefile(place.path.parent)
    assert place.source() == place.uri
    (place.path / "bucket").mkdir(exist_ok=True)


def test_a_short_name_stands_for_a_uri_and_is_the_source(place: Place) -> None:
    place.mount(spec="attic")
    assert place.source() == "attic"
    os.statvfs(place.path)


def test_an_unknown_short_name_is_an_error_that_says_where_to_write_it(place: Place) -> None:
    done = run("mount", "-t", "mictlanfs", "cellar", place.path, check=False, env=place.env)
    assert done.returncode == 1
    assert "spaces.conf" in done.stderr
    assert not is_mounted(place.path)


def test_a_line_of_fstab_mounts(place: Place) -> None:
    options = f"noauto,_netdev,nofail,x-systemd.automount,relatime,cache_dir={place.cache}"
    place.fstab.write_text(f"attic {place.path} mictlanfs {options} 0 0\n")
    run("mount", "-T", place.fstab, place.path, env=place.env)
    assert place.source() == "attic"
    run("mount", "-T", place.fstab, "-o", "remount,ro", place.path, env=place.env)
    assert "ro" in place.options()


def test_a_space_that_does_not_answer_is_exit_code_32(place: Place) -> None:
    uri = "mictlanx://r@127.0.0.1:9/?protocol=http"
    done = run("mount", "-t", "mictlanfs", uri, place.path, check=False)
    assert done.returncode == 32
    assert not is_mounted(place.path)


def test_an_option_that_is_unknown_is_exit_code_1(place: Place) -> None:
    done = run(
        "mount", "-t", "mictlanfs", place.uri, place.path, "-o", "colour=red", check=False
    )  # fmt: skip
    assert done.returncode == 1
    assert "colour" in done.stderr


@pytest.mark.parametrize(
    "option", ["nosuid", "nodev", "noexec", "noatime", "sync", "ro", "rw", "dirsync"]
)
def test_flags_take_effect_and_the_others_are_those_of_mount_8(place: Place, option: str) -> None:
    place.mount(f"{option},x-mine=1,_netdev,allow_other,default_permissions")
    shown = place.options()
    # The kernel does not show everything it was told: dirsync is ours.
    assert option in shown or option == "dirsync"
    for other in {"nosuid", "nodev", "noexec", "noatime"} - {option}:
        assert other not in shown


# --- remount -------------------------------------------------------------------------------------


def test_a_live_mount_becomes_read_only_and_writable_again(place: Place) -> None:
    place.mount()
    bucket = place.path / place.path.parent.name
    bucket.mkdir()
    file = bucket / "file"
    file.write_text("before")
    with file.open() as reader:
        assert place.remount("ro") == 0
        with pytest.raises(OSError, match="Read-only file system"):
            file.write_text("refused")
        assert reader.read() == "before"
    assert place.remount("rw") == 0
    file.write_text("after")
    assert file.read_text() == "after"


def test_a_mount_with_files_open_for_writing_stays_writable(place: Place) -> None:
    place.mount()
    bucket = place.path / place.path.parent.name
    bucket.mkdir()
    with (bucket / "file").open("w") as writer:
        assert place.remount("ro", check=False) == 32
        writer.write("kept")
    assert (bucket / "file").read_text() == "kept"


def test_a_remount_keeps_what_it_is_not_told_of(place: Place) -> None:
    place.mount("nosuid,nodev,noatime,sync")
    place.remount("ro")
    assert {"ro", "nosuid", "nodev", "noatime", "sync"} <= place.options()
    place.remount("suid,exec,rw")
    assert {"rw", "nodev", "noatime"} <= place.options()
    assert "nosuid" not in place.options()


def test_what_cannot_change_while_mounted_is_refused(place: Place) -> None:
    place.mount("uid=5")
    assert place.remount("uid=5") == 0
    done = run("mount", "-o", "remount,uid=6", place.path, check=False)
    assert done.returncode == 1
    assert "uid" in done.stderr


def test_a_remount_of_nothing_is_refused(place: Place) -> None:
    done = run(
        HELPER / helperlinks.PROGRAM, place.uri, place.path, "-o", "remount,ro", check=False
    )  # fmt: skip
    assert done.returncode == 1
    assert "no space is mounted" in done.stderr


# --- umount --------------------------------------------------------------------------------------


def process_of(path: Path) -> int:
    """The process that serves the mount at `path`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(path) in words and b"mictlanfs_mount" in words:
                return int(entry.name)
    raise AssertionError(f"nothing serves {path}")


def test_umount_8_alone_stores_everything_and_ends_the_process(place: Place) -> None:
    place.mount()
    pid = process_of(place.path)
    bucket = place.path / place.path.parent.name
    bucket.mkdir()
    (bucket / "file").write_bytes(b"x" * 3_000_000)
    run("umount", place.path)
    wait_until(lambda: not is_running(pid), "the mount process ended")
    place.mount()
    assert (bucket / "file").read_bytes() == b"x" * 3_000_000


def test_a_new_mount_straight_after_umount_works_again_and_again(place: Place) -> None:
    bucket = place.path / place.path.parent.name
    for index in range(LOOP_COUNT):
        # With the same disk cache, which has one owner at a time.
        place.mount()
        bucket.mkdir(exist_ok=True)
        assert len(list(bucket.iterdir())) == index
        (bucket / str(index)).write_text(str(index))
        run("umount", place.path)
    assert not is_mounted(place.path)
