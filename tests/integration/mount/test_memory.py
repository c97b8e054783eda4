"""What a mount remembers of a tree that is larger than its memory allows, on a real mount."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.support.spaces import Mount, Space, mounted, wait_until

DIRECTORIES = 10
# More than are expired one by one when a lease is recalled.
FILES_EACH = 600
MEMORY = "memory=16M"
# What 20 % of that hold.
NAMES_MAX = 16 * 2**20 * 20 // 100 // 1200


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
