"""What a mount remembers of a tree, and takes of memory, on a real mount."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.processes import peak_rss_bytes
from tests.support.spaces import Mount, Space, mounted, wait_until

DIRECTORIES = 10
# More than are expired one by one when a lease is recalled.
FILES_EACH = 600
MIB = 2**20
MEMORY = "memory=16M"
MEMORY_SIZE_BYTES = 16 * MIB
# What 20 % of that hold.
NAMES_MAX = MEMORY_SIZE_BYTES * 20 // 100 // 1200
# Of so many names, inodes that no lease covers.
STRAYS_MAX = NAMES_MAX // 4
# What a mount may take beyond it: the interpreter, threads, bodies on their way.
BEYOND_MEMORY_BYTES = 200 * MIB
# Far more than fits into both.
LONG_MIB = 256
READERS = 64


def _kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


def stats(mount: Mount) -> dict[str, Any]:
    """What the mount says of itself."""
    found: dict[str, Any] = json.loads((mount.path / ".mictlanfs/stats").read_text())
    return found


def reads(mount: Mount) -> int:
    """How often the kernel has asked for bytes, for those of this answer too."""
    count: int = stats(mount)["kernel_requests"]["read"]
    return count


def make_tree(work: Path, files_each: int) -> None:
    """Make directories of files."""
    for directory in range(DIRECTORIES):
        (work / f"d{directory}").mkdir()
        for file in range(files_each):
            (work / f"d{directory}/f{file}").touch()


def test_what_was_walked_over_is_forgotten_by_kernel_and_mount(
    space: Space, work: Path, tmp_path: Path
) -> None:
    make_tree(work, FILES_EACH)
    with mounted(space.uri, tmp_path / "small", MEMORY) as mount:
        there = mount.path / work.name
        kept = (there / "d0/f0").open("rb")
        sizes = [
            os.stat(os.path.join(folder, name)).st_size
            for folder, _, names in os.walk(there)
            for name in names
        ]
        assert len(sizes) == DIRECTORIES * FILES_EACH
        # Those that the kernel refers to are among them.
        limit = NAMES_MAX + DIRECTORIES + FILES_EACH
        wait_until(lambda: stats(mount)["inodes"] <= limit, "the kernel has forgotten names")
        # What is in use is none of that.
        assert kept.read() == b""
        assert os.readlink(f"/proc/self/fd/{kept.fileno()}") == str(there / "d0/f0")
        kept.close()
        assert sorted(os.listdir(there / "d0")) == sorted(f"f{i}" for i in range(FILES_EACH))


@pytest.mark.skipif(_kernel_version() < (6, 18), reason="the kernel cannot be told to prune")
def test_few_are_kept_of_what_other_mounts_have_taken_away(
    space: Space, work: Path, tmp_path: Path
) -> None:
    # Few enough to be expired one by one: the kernel keeps them.
    files_each = 400
    make_tree(work, files_each)
    with mounted(space.uri, tmp_path / "small", MEMORY) as mount:
        there = mount.path / work.name
        with (there / "d1/f1").open("rb") as kept:
            for directory in range(DIRECTORIES):
                files = [there / f"d{directory}/f{number}" for number in range(files_each)]
                assert not any(file.stat().st_size for file in files)
                # Takes the lease on what is in it.
                (work / f"d{directory}/new").touch()
            wait_until(
                lambda: stats(mount)["inodes"] <= STRAYS_MAX + DIRECTORIES + 2,
                "the kernel has given up what no lease covers",
            )
            assert kept.read() == b""
            assert os.readlink(f"/proc/self/fd/{kept.fileno()}") == str(there / "d1/f1")
        assert len(os.listdir(there / "d0")) == files_each + 1


def test_pages_stay_when_another_mount_changes_a_directory_of_many_names(
    space: Space, work: Path, tmp_path: Path
) -> None:
    (work / "many").mkdir()
    for number in range(FILES_EACH):
        (work / f"many/f{number}").touch()
    for name in ("open", "closed"):
        (work / f"many/{name}").write_bytes(b"r" * MIB)
    with mounted(space.uri, tmp_path / "reader") as mount:
        there = mount.path / work.name / "many"
        with (there / "open").open("rb") as kept:
            assert not any((there / f"f{number}").stat().st_size for number in range(FILES_EACH))
            assert (there / "closed").read_bytes() == b"r" * MIB
            first, before = reads(mount), reads(mount)
            (work / "many/new").touch()
            assert (there / "new").exists()
            assert (there / "closed").read_bytes() == b"r" * MIB
            # To look costs some as well.
            assert reads(mount) - before == before - first
            assert (there / "open").stat().st_size == MIB
            assert os.readlink(f"/proc/self/fd/{kept.fileno()}") == str(there / "open")


def test_a_long_write_and_many_readers_stay_within_the_memory_of_the_mount(
    space: Space, tmp_path: Path
) -> None:
    blocks = [os.urandom(MIB) for _ in range(8)]
    with mounted(space.uri, tmp_path, "noshort_circuit", MEMORY) as mount:
        pid = mount.pid()
        assert pid is not None
        path = mount.bucket / "long"
        with path.open("wb", buffering=0) as file:
            for index in range(LONG_MIB):
                file.write(blocks[index % 8])
            os.fsync(file.fileno())
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

        def read(first: int) -> bool:
            return all(
                os.pread(descriptor, MIB, index * MIB) == blocks[index % 8]
                for index in range(first, LONG_MIB, READERS)
            )

        with ThreadPoolExecutor(READERS) as threads:
            assert all(threads.map(read, range(READERS)))
        os.close(descriptor)
        assert peak_rss_bytes(pid) < MEMORY_SIZE_BYTES + BEYOND_MEMORY_BYTES
