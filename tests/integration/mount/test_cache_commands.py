"""`mictlanfs cache` on real mounts, and what the disk cache serves after a remount."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mictlanfs.mounts import cachewords
from tests.support.spaces import Mount, Space, mictlanfs, mounted, run, several_mounted

pytestmark = pytest.mark.fuse

NETWORK = "noshort_circuit"
MIB = 1 << 20
NOBODY = 65534
LARGE = random.Random(1).randbytes(9 * MIB + 5)
MIDDLE = random.Random(2).randbytes(100_000)


@pytest.fixture
def remote(space: Space, tmp_path: Path) -> Iterator[Mount]:
    """A mount that treats the peers as those of other machines."""
    with mounted(space.uri, tmp_path, NETWORK) as started:
        yield started


@pytest.fixture
def there(remote: Mount, tmp_path: Path) -> Path:
    """A bucket with files of 9 MiB and of 100 KB, and a directory with one of 1 KB in it."""
    bucket = remote.path / tmp_path.name
    (bucket / "d").mkdir(parents=True)
    for name, body in (("large", LARGE), ("middle", MIDDLE), ("d/small", MIDDLE[:1000])):
        with (bucket / name).open("wb") as file:
            file.write(body)
            os.fsync(file.fileno())
    return bucket


def told(*args: str | Path) -> Any:
    return json.loads(mictlanfs("cache", *args, "--json").stdout)


def remount(mount: Mount) -> None:
    """Mount anew, with the disk cache as it is."""
    mount.umount()
    mount.mount()


def peer_requests(mount: Mount) -> int:
    return int(json.loads((mount.path / ".mictlanfs" / "stats").read_text())["peer_requests"])


def cache_files(mount: Mount) -> list[Path]:
    return [path for path in (mount.cache / "chunks").rglob("*") if path.is_file()]


def test_what_was_warmed_is_read_without_peers_after_a_remount(remote: Mount, there: Path) -> None:
    remote.remount_cold()
    warmed = told("warm", there)
    size = len(LARGE) + len(MIDDLE)
    assert (warmed["files"], warmed["stored"], warmed["inline"]) == (3, size, 1000)
    assert warmed["size"] == size + 1000
    assert told("warm", there)["kept"] == size
    remount(remote)
    assert (there / "large").read_bytes() == LARGE
    assert (there / "middle").read_bytes() == MIDDLE
    assert peer_requests(remote) == 0
    assert told("stats", there)["disk"]["written_bytes"] == 0


def test_files_are_listed_with_what_of_them_is_at_hand(remote: Mount, there: Path) -> None:
    remote.remount_cold()
    mictlanfs("cache", "warm", there / "large")
    listed = {Path(entry["path"]).name: entry for entry in told("ls", there)}
    assert {name: entry["disk"] for name, entry in listed.items()} == {
        "large": len(LARGE),
        "middle": 0,
        "small": 0,
    }
    assert {name: entry["size"] for name, entry in listed.items()} == {
        "large": len(LARGE),
        "middle": len(MIDDLE),
        "small": 1000,
    }
    assert listed["small"]["inline"] == 1000
    text = mictlanfs("cache", "ls", cwd=there).stdout.splitlines()
    assert text[0].split() == ["size", "disk", "memory", "near", "inline", "name"]
    assert sorted(line.split()[-1] for line in text[1:]) == ["d/small", "large", "middle"]


def test_files_and_everything_are_forgotten(remote: Mount, there: Path) -> None:
    remote.remount_cold()
    mictlanfs("cache", "warm", there)
    assert told("clear", there / "middle") == {"size": len(MIDDLE)}
    assert {entry["disk"] for entry in told("ls", there / "middle")} == {0}
    assert {entry["disk"] for entry in told("ls", there / "large")} == {len(LARGE)}
    done = mictlanfs("cache", "clear", remote.path)
    assert done.stdout.endswith("removed from the disk cache\n")
    assert cache_files(remote) == []
    assert (there / "large").read_bytes() == LARGE


def test_what_peers_here_have_is_not_copied(space: Space, tmp_path: Path) -> None:
    with mounted(space.uri, tmp_path) as mount:
        bucket = mount.path / tmp_path.name
        bucket.mkdir()
        with (bucket / "large").open("wb") as file:
            file.write(LARGE)
            os.fsync(file.fileno())
        mount.remount_cold()
        warmed = told("warm", bucket)
        assert (warmed["near"], warmed["stored"]) == (len(LARGE), 0)
        assert cache_files(mount) == []
        done = mictlanfs("cache", "warm", bucket / "large").stdout
        assert "read from files of peers on this machine, which are not copied" in done


def test_a_file_that_was_changed_elsewhere_meanwhile_is_read_as_it_is_now(
    space: Space, tmp_path: Path
) -> None:
    with several_mounted(space.uri, tmp_path, 2, NETWORK) as (here, elsewhere):
        name = Path(tmp_path.name) / "file"
        (here.path / name).parent.mkdir()
        (here.path / name).write_bytes(LARGE)
        mictlanfs("cache", "warm", here.path / name)
        here.umount()
        with (elsewhere.path / name).open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"new")
            file.truncate(8 * MIB)
        expected = LARGE[: 5 * MIB] + b"new" + LARGE[5 * MIB + 3 : 8 * MIB]
        here.mount()
        assert (here.path / name).read_bytes() == expected
        # Replaced as a whole, under the same name, while it is warm.
        mictlanfs("cache", "warm", here.path / name)
        here.umount()
        (elsewhere.path / f"{name}.new").write_bytes(MIDDLE)
        (elsewhere.path / f"{name}.new").rename(elsewhere.path / name)
        here.mount()
        assert (here.path / name).read_bytes() == MIDDLE


def test_damaged_and_half_written_files_of_the_cache_are_not_served(
    remote: Mount, there: Path
) -> None:
    remote.remount_cold()
    mictlanfs("cache", "warm", there)
    remote.umount()
    flipped, cut, longer, empty = sorted(cache_files(remote), key=lambda file: file.stat().st_size)
    body = bytearray(flipped.read_bytes())
    body[len(body) // 2] ^= 1
    flipped.write_bytes(body)
    os.truncate(cut, cut.stat().st_size - 1)
    longer.write_bytes(longer.read_bytes() + b"x")
    os.truncate(empty, 0)
    half = flipped.with_name(f"{flipped.name}.part")
    half.write_bytes(bytes(body)[:1000])
    remote.mount()
    assert not half.exists()
    assert (there / "large").read_bytes() == LARGE
    assert (there / "middle").read_bytes() == MIDDLE
    assert told("stats", remote.path)["disk"]["corrupt"] == 4


def test_a_cache_that_is_full_says_so(space: Space, tmp_path: Path) -> None:
    with mounted(space.uri, tmp_path, NETWORK, "cache_size=6M") as mount:
        bucket = mount.path / tmp_path.name
        bucket.mkdir()
        with (bucket / "large").open("wb") as file:
            file.write(LARGE * 8)
            os.fsync(file.fileno())
        done = mictlanfs("cache", "warm", bucket, check=False)
        assert done.returncode == 6
        assert "not tried: the disk cache would have given up" in done.stdout


# What somebody may ask of a mount, as user `argv[1]`.
ASK = """
import errno, os, sys
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
for path, name in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        print(len(os.getxattr(path, name)) > 0)
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_other_users_touch_what_they_may_read(space: Space, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with mounted(space.uri, tmp_path, NETWORK, "allow_other") as mount:
        bucket = mount.path / tmp_path.name
        bucket.mkdir()
        for name, mode in (("open", 0o644), ("closed", 0o600)):
            (bucket / name).write_bytes(MIDDLE)
            (bucket / name).chmod(mode)
        warm, held, clear = (
            word.decode() for word in (cachewords.warm_from(0), cachewords.HELD, cachewords.CLEAR)
        )
        asked: list[str | Path] = [
            *("open", warm, "open", held, "open", clear),
            *("closed", warm, "closed", held, "closed", clear),
            *("..", clear),
        ]
        # From within, since not everybody may come by the way to the mountpoint.
        done = run("/usr/bin/env", "python3", "-c", ASK, str(NOBODY), *asked, cwd=bucket)
    assert done.stdout.split() == ["True"] * 3 + ["EACCES"] * 3 + ["EPERM"]


def test_what_is_not_in_a_space_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for words in (("warm", tmp_path), ("ls", tmp_path), ("clear", tmp_path), ("stats", tmp_path)):
        done = mictlanfs("cache", *words, check=False)
        assert done.returncode == 3
        assert "it is not in a mounted space" in done.stderr
