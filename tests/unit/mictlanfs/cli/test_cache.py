"""`mictlanfs cache` on a directory that stands in for a mount, and answers as one would."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.mounts import cachewords
from mictlanfs.mounts.cachewords import Cleared, Held, Warmed
from tests.support.mounts import MountTable
from tests.unit.mictlanfs.cli.conftest import Run

LEVEL = {
    "size_bytes": 2048,
    "budget_bytes": 1 << 20,
    "entries": 3,
    "evictions": 4,
    "corrupt": 5,
    "dropped": 6,
    "is_enabled": True,
}
STATS: dict[str, Any] = {
    "memory": LEVEL,
    "disk": LEVEL,
    "local": None,
    "memory_hits": 7,
    "disk_hits": 8,
    "misses": 9,
    "fetched_bytes": 4096,
    "fetches": 2,
    "fetch_errors": 0,
}


class Mounted:
    """A directory with the words of a mount.

    Attributes:
        asked: every request: the name of the file, and what was asked.
        answers: to requests, by the name of the file; a number is an errno.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.asked: list[tuple[str, bytes]] = []
        self.answers: dict[str, cachewords.Held | Warmed | Cleared | int] = {}
        (root / ".mictlanfs").mkdir(parents=True)
        self.tell(STATS)
        monkeypatch.setattr(os, "getxattr", self._getxattr)

    def tell(self, stats: dict[str, Any]) -> None:
        (self.root / ".mictlanfs" / "stats").write_text(json.dumps({"cache": stats}))

    def add(self, name: str, size: int, answer: Held | Warmed | Cleared | int) -> Path:
        path = self.root / "b" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        self.answers[path.name] = answer
        return path

    def _getxattr(self, path: Path, name: bytes) -> bytes:
        self.asked.append((path.name, name))
        answer = self.answers[path.name]
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer), os.fspath(path))
        return cachewords.encode(answer)


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    found = Mounted(tmp_path / "mnt", monkeypatch)
    MountTable(tmp_path / "table", monkeypatch).add(found.root)
    return found


def test_every_file_below_is_warmed_and_what_became_of_it_is_summed_up(
    mounted: Mounted, cli: Run
) -> None:
    mounted.add("large", 100, Warmed(100, stored=60, near=40))
    mounted.add("d/small", 20, Warmed(20, inline=20))
    os.symlink("large", mounted.root / "b" / "link")
    done = cli("cache", "warm", "--json", mounted.root / "b")
    assert done.code == 0
    assert json.loads(done.text) == {
        "files": 2,
        "size": 120,
        "stored": 60,
        "kept": 0,
        "near": 40,
        "inline": 20,
        "small": 0,
        "refused": 0,
        "left": 0,
    }
    assert sorted(mounted.asked) == [
        ("large", cachewords.warm_from(0)),
        ("small", cachewords.warm_from(0)),
    ]
    text = cli("cache", "warm", mounted.root / "b").text.splitlines()
    assert text[0] == "2 files, 120 B"
    assert [line.split()[0] for line in text[1:]] == ["60", "40", "20"]


def test_a_file_is_asked_for_part_by_part_until_it_ends(mounted: Mounted, cli: Run) -> None:
    path = mounted.add("file", 100, Warmed(100, stored=100))
    parts = iter([Warmed(70, stored=70), Warmed(100, stored=30)])

    def next_part(path: Path, name: bytes) -> bytes:
        mounted.asked.append((path.name, name))
        return cachewords.encode(next(parts))

    os.getxattr = next_part  # type: ignore[assignment]  # The fixture puts it back.
    done = cli("cache", "warm", "--json", path)
    assert json.loads(done.text)["stored"] == 100
    assert [name for _, name in mounted.asked] == [
        cachewords.warm_from(0),
        cachewords.warm_from(70),
    ]


def test_a_file_that_became_shorter_ends_early(mounted: Mounted, cli: Run) -> None:
    path = mounted.add("file", 100, Warmed(0))
    assert cli("cache", "warm", path).code == 0
    assert len(mounted.asked) == 1


def test_without_a_disk_cache_the_mount_says_what_is_near_and_what_is_refused(
    mounted: Mounted, cli: Run
) -> None:
    mounted.tell({**STATS, "disk": None})
    mounted.add("near", 30, Warmed(30, near=30))
    mounted.add("far", 20, Warmed(20, refused=20))
    done = cli("cache", "warm", str(mounted.root / "b"), "--json")
    told = json.loads(done.text)
    assert (told["near"], told["refused"], told["left"]) == (30, 20, 0)
    assert done.code == Exit.NO_SPACE


def test_what_the_cache_has_no_room_for_is_left_out_and_told(mounted: Mounted, cli: Run) -> None:
    mounted.tell({**STATS, "disk": {**LEVEL, "budget_bytes": 50}})
    mounted.add("a", 60, Warmed(60, stored=60))
    mounted.add("b", 40, Warmed(40, stored=40))
    done = cli("cache", "warm", "--json", mounted.root / "b")
    assert done.code == 6
    assert json.loads(done.text)["left"] == 40
    mounted.tell(STATS)
    mounted.add("a", 60, Warmed(60, refused=60))
    done = cli("cache", "warm", mounted.root / "b")
    assert done.code == 6
    assert "refused by the disk cache" in done.text


def test_files_that_may_not_be_read_are_told_and_the_others_go_on(
    mounted: Mounted, cli: Run
) -> None:
    mounted.add("closed", 10, errno.EACCES)
    mounted.add("open", 10, Warmed(10, stored=10))
    done = cli("cache", "warm", "--json", mounted.root / "b")
    assert done.code == 7
    assert json.loads(done.text)["stored"] == 10
    assert "closed" in done.err


def test_what_is_at_hand_is_listed(mounted: Mounted, cli: Run) -> None:
    path = mounted.add("file", 100, Held(100, disk=60, memory=10, near=5, inline=4, holes=3))
    (listed,) = json.loads(cli("cache", "ls", "--json", path).text)
    assert listed == {
        "path": os.fspath(path),
        "size": 100,
        "disk": 60,
        "memory": 10,
        "near": 5,
        "inline": 4,
        "holes": 3,
    }
    head, line = cli("cache", "ls", path).text.splitlines()
    assert head.split() == ["size", "disk", "memory", "near", "inline", "name"]
    assert line.split()[:4] == ["100", "B", "60", "B"]
    assert line.endswith(os.fspath(path))


def test_files_are_cleared_one_by_one_and_a_mount_at_once(mounted: Mounted, cli: Run) -> None:
    mounted.add("x", 1, Cleared(10))
    mounted.add("y", 1, Cleared(20))
    mounted.answers[mounted.root.name] = Cleared(4096)
    assert json.loads(cli("cache", "clear", "--json", mounted.root / "b").text) == {"size": 30}
    assert cli("cache", "clear", mounted.root).text == "4.0 KiB removed from the disk cache\n"
    assert mounted.asked[-1] == (mounted.root.name, cachewords.CLEAR)
    mounted.answers[mounted.root.name] = errno.EPERM
    assert cli("cache", "clear", mounted.root).code == 7


def test_stats_say_what_is_held_and_what_answered(mounted: Mounted, cli: Run) -> None:
    assert json.loads(cli("cache", "stats", "--json", mounted.root).text) == STATS
    assert cli("cache", "stats", mounted.root / ".mictlanfs").text.splitlines() == [
        "memory    2.0 KiB of 1.0 MiB in 3 entries, 4 evicted",
        "disk      2.0 KiB of 1.0 MiB in 3 entries, 4 evicted, 5 damaged, 6 not written",
        "reads     7 in memory, 8 on disk, 0 near, 9 fetched",
        "fetched   4.0 KiB in 2 requests",
    ]
    mounted.tell(
        {
            **STATS,
            "disk": None,
            "local": {"descriptors": 1, "corrupt": 2, "hits": 3},
            "fetch_errors": 1,
        }
    )
    assert cli("cache", "stats", mounted.root).text.splitlines()[1:] == [
        "disk      none",
        "near      1 chunk open, 2 damaged",
        "reads     7 in memory, 8 on disk, 3 near, 9 fetched",
        "fetched   4.0 KiB in 2 requests",
        "failed    1 request",
    ]


def test_a_mount_that_knows_no_such_request_is_told(mounted: Mounted, cli: Run) -> None:
    path = mounted.add("file", 10, errno.ENODATA)
    done = cli("cache", "ls", path)
    assert done.code == 3
    assert "it is not in a mounted space" in done.err
