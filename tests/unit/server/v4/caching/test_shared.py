"""LRU_SM among processes: what they share, what is left of those that are killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mictlanfs_server.v4.caching.base import Cache, CacheLimits
from mictlanfs_server.v4.caching.bounded import BoundedCache
from mictlanfs_server.v4.caching.orders import RecencyOrder
from mictlanfs_server.v4.caching.shared import SHARED_MEMORY, SharedValues

# A process that puts what it is told on its standard input, until that ends.
WORKER = """
import sys
from pathlib import Path
from mictlanfs_server.v4.caching.settings import CacheSettings, open_cache
cache = open_cache(CacheSettings(), sys.argv[1], Path(sys.argv[2]))
print("ready", flush=True)
for line in sys.stdin:
    verb, key, *value = line.split()
    if verb == "put":
        print(cache.put(key, "t", value[0].encode()), flush=True)
    else:
        print(cache.get(key, "t"), flush=True)
cache.close()
"""


class Worker:
    """A cache in another process."""

    def __init__(self, namespace: str, memory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, namespace, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def ask(self, words: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, *, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.process.communicate(timeout=30)
        assert self.process.returncode == (-signal.SIGKILL if kill else 0)


@contextmanager
def worker(namespace: str, memory: Path) -> Iterator[Worker]:
    found = Worker(namespace, memory)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.end(kill=True)


def open_shared(memory: Path, *, entries: int = 100, size: int = 10_000) -> Cache:
    limits = CacheLimits(entries, size)
    return BoundedCache(limits, RecencyOrder(), SharedValues("space", memory))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    opened = open_shared(tmp_path)
    yield opened
    opened.close()


def files(memory: Path) -> set[Path]:
    return {path for path in memory.rglob("*") if path.is_file() and path.name != "lock"}


def test_blocks_are_private_and_one_for_each_value(tmp_path: Path, cache: Cache) -> None:
    cache.put("b@k", "t", b"value")
    cache.put("b@l", "t", b"value")
    blocks = files(tmp_path)
    assert len(blocks) == 2
    for path in blocks:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_block_goes_with_its_value(tmp_path: Path) -> None:
    cache = open_shared(tmp_path, entries=2)
    for key in "abc":
        cache.put(key, "t", b"x")
    assert len(files(tmp_path)) == 2
    cache.remove("c")
    assert len(files(tmp_path)) == 1
    cache.clear()
    assert files(tmp_path) == set()
    cache.put("a", "t", b"x")
    cache.close()
    assert list(tmp_path.iterdir()) == []


def test_it_uses_the_shared_memory_of_the_machine_and_leaves_nothing() -> None:
    values = SharedValues(f"test {os.getpid()}")
    try:
        assert values.path.parent == SHARED_MEMORY
        values.write("k", "t", memoryview(b"value"))
        assert values.read("k", "t") == b"value"
    finally:
        values.close()
    assert not values.path.exists()


def test_spaces_do_not_share(tmp_path: Path) -> None:
    one, other = SharedValues("one", tmp_path), SharedValues("other", tmp_path)
    one.write("k", "t", memoryview(b"value"))
    assert other.read("k", "t") is None
    one.close()
    other.close()


def test_processes_of_one_space_share_values(tmp_path: Path, cache: Cache) -> None:
    with worker("space", tmp_path) as other:
        assert other.ask("put k from-there") == "True"
        assert cache.keys() == []
        assert cache.get("k", "t") == b"from-there"
        assert cache.stats().used == len("from-there")
        cache.put("l", "t", b"from-here")
        assert other.ask("get l") == "b'from-here'"
        cache.remove("k")
        assert other.ask("get k") == "None"
        other.end()


def test_what_another_process_put_anew_is_counted_as_it_is(tmp_path: Path, cache: Cache) -> None:
    cache.put("k", "t", b"short")
    with worker("space", tmp_path) as other:
        assert other.ask("put k " + "long" * 10) == "True"
        assert cache.get("k", "t") == b"long" * 10
    assert cache.stats().used == 40


def test_a_process_that_ends_in_order_leaves_what_others_use(tmp_path: Path, cache: Cache) -> None:
    cache.put("mine", "t", b"value")
    with worker("space", tmp_path) as other:
        assert other.ask("put theirs value") == "True"
        other.end()
    # It had taken over all blocks, and lets go of them; what is left are misses, not errors.
    assert cache.get("mine", "t") is None
    assert cache.get("theirs", "t") is None
    assert cache.put("mine", "t", b"value")
    assert cache.get("mine", "t") == b"value"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with worker("space", tmp_path) as killed:
        assert killed.ask("put k value") == "True"
        killed.end(kill=True)
    assert len(files(tmp_path)) == 1
    unfinished = files(tmp_path).pop().with_name("new-1-1")
    unfinished.write_bytes(b"half of a")
    cache = open_shared(tmp_path)
    assert files(tmp_path) == set()
    assert cache.get("k", "t") is None
    cache.close()
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_a_process_that_was_killed_among_others_are_taken_over(tmp_path: Path) -> None:
    first = open_shared(tmp_path)
    first.put("a", "t", b"from the first")
    with worker("space", tmp_path) as killed:
        for key in ("x", "y", "z"):
            killed.ask(f"put {key} value")
        killed.end(kill=True)
    later = open_shared(tmp_path, entries=3)
    assert sorted(later.keys()) == ["x", "y", "z"]
    assert first.get("a", "t") is None
    assert later.get("y", "t") == b"value"
    first.close()
    later.close()
    assert list(tmp_path.iterdir()) == []


def test_a_block_too_large_for_a_process_is_let_go_of_when_it_starts(tmp_path: Path) -> None:
    first = open_shared(tmp_path)
    first.put("large", "t", b"x" * 500)
    first.put("small", "t", b"x" * 5)
    later = open_shared(tmp_path, size=100)
    assert later.keys() == ["small"]
    later.close()
    first.close()


def test_a_value_larger_than_the_own_limit_is_answered_from_another_process(
    tmp_path: Path,
) -> None:
    small, large = open_shared(tmp_path, size=100), open_shared(tmp_path)
    large.put("k", "t", b"x" * 500)
    assert small.get("k", "t") == b"x" * 500
    assert small.stats().used == 0
    small.close()
    large.close()


@pytest.mark.parametrize("content", [b"", b"short", b"MFSBLK01" + b"\xff" * 40])
def test_a_file_that_is_no_block_is_a_miss(tmp_path: Path, cache: Cache, content: bytes) -> None:
    cache.put("k", "t", b"value")
    block = files(tmp_path).pop()
    block.write_bytes(content)
    block.with_name("0" * 32).write_bytes(content)
    other = open_shared(tmp_path)
    assert other.keys() == []
    other.close()
    assert cache.get("k", "t") is None
    assert cache.stats().used == 0


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    values = SharedValues("space", tmp_path)
    values.close()
    values.path.mkdir()
    values.path.chmod(0o777)
    with pytest.raises(PermissionError):
        SharedValues("space", tmp_path)
    values.path.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    values.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=str(values.path)):
        SharedValues("space", tmp_path)


def test_a_folder_that_was_removed_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_shared(tmp_path)
    cache.put("k", "t", b"value")
    folder = files(tmp_path).pop().parent
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert cache.get("k", "t") is None
    assert not cache.put("k", "t", b"value")
    assert "cannot be cached" in caplog.text
    cache.close()
