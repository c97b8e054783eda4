"""A file written at random is put together by a real mount, and every byte stays what it was."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from mictlanfs.model import KIB, MIB
from tests.support.spaces import Mount, Space, mounted, wait_until

pytestmark = pytest.mark.fuse

SIZE, PAGE = 8 * MIB, 4 * KIB
SLICES = 2


def written_at_random(path: Path, seed: int) -> bytes:
    """Write every other page or so of a file anew, in any order; returns the content."""
    draw = random.Random(seed)
    content = bytearray(path.read_bytes())
    offsets = [page * PAGE for page in range(SIZE // PAGE) if draw.random() < 0.3]
    draw.shuffle(offsets)
    with path.open("r+b", buffering=0) as file:
        for offset in offsets:
            page = draw.randbytes(PAGE)
            content[offset : offset + PAGE] = page
            os.pwrite(file.fileno(), page, offset)
        os.fsync(file.fileno())
    return bytes(content)


def chunk_count(path: Path) -> int | None:
    """Chunks of a file of few pieces; None when it is in more than 256."""
    told = json.loads(os.getxattr(path, "user.mictlanx.chunks"))
    return int(told["count"]) if told["is_complete"] else None


def defragmented(mount: Mount) -> dict[str, int]:
    """What the mount has put together."""
    counts: dict[str, int] = json.loads((mount.path / ".mictlanfs/stats").read_bytes())[
        "defragmented"
    ]
    return counts


def test_a_file_written_at_random_is_put_together_and_stays_what_it_is(
    mount: Mount, work: Path
) -> None:
    path = work / "file"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    content = written_at_random(path, 2)
    assert chunk_count(path) is None
    before = path.stat()
    with path.open("rb") as reader:
        assert reader.read(PAGE) == content[:PAGE]
        wait_until(lambda: defragmented(mount)["slices"] == SLICES, "it is put together", 60)
        assert reader.read() == content[PAGE:]
    assert defragmented(mount)["pending"] == 0
    assert chunk_count(path) == SLICES
    mount.remount_cold()
    assert path.read_bytes() == content
    assert chunk_count(path) == SLICES
    after = path.stat()
    for name in ("st_size", "st_blocks", "st_mtime_ns", "st_ctime_ns"):
        assert getattr(after, name) == getattr(before, name), name


def test_the_end_of_the_mount_meanwhile_changes_no_byte(mount: Mount, work: Path) -> None:
    path = work / "file"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    content = written_at_random(path, 4)
    # It spends up to two seconds on the slices, however many that are enough for.
    mount.remount_cold()
    assert path.read_bytes() == content


def test_another_mount_reads_the_same_before_and_after(
    space: Space, mount: Mount, work: Path, tmp_path: Path
) -> None:
    path = work / "file"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    with mounted(space.uri, tmp_path / "other", "noleases") as other:
        seen = other.path / path.relative_to(mount.path)
        content = written_at_random(path, 6)
        with seen.open("rb", buffering=0) as reader:
            assert os.pread(reader.fileno(), MIB, 0) == content[:MIB]
            # Reading there took the lease for writing away here; writing the same again takes it.
            with path.open("r+b", buffering=0) as file:
                for offset in range(0, SIZE, SIZE // SLICES):
                    os.pwrite(file.fileno(), content[offset : offset + PAGE], offset)
                os.fsync(file.fileno())
            wait_until(lambda: defragmented(mount)["slices"] == SLICES, "it is put together", 60)
            assert os.pread(reader.fileno(), SIZE, 0) == content
        assert seen.read_bytes() == content
        assert chunk_count(seen) == SLICES
