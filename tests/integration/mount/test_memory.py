"""What a mount remembers of a tree, and takes of memory, on a real mount."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
# What a mount may take beyond it: the interpreter, threads, bodies on their way.
BEYOND_MEMORY_BYTES = 200 * MIB
# Far more than fits into both.
LONG_MIB = 256
READERS = 64


def stats(mount: Mount) -> dict[str, Any]:
    """What the mount says of itself."""
    found: dict[str, Any] = json.loads((mount.path / ".mictlanfs/stats").read_text())
    return found


def test_what_was_walked_over_is_forgotten_by_kernel_and_mount(
    space: Space, work: Path, tmp_path: Path
) -> None:
    for directory in range(DIRECTORIES):
        (work / f"d{directory}").mkdir()
        for file in range(FILES_EACH):
            (work / f"d{directory}/f{file}").touch()
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
