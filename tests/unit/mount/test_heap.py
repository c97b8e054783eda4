import ctypes
import subprocess
import sys

import pytest

from mictlanfs_mount import heap

# Makes and frees buffers as writes do, and tells how many of their pages were new.
PROGRAM = """
import resource
from mictlanfs_mount.heap import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {is_kept}:
    assert keep_freed_memory()
for round in range(4):
    before = faults()
    buffers = [b"x" * (1 << 20) for _ in range(32)]
    del buffers
print(faults() - before)
"""
PAGES = (32 << 20) // 4096


def new_pages(*, is_kept: bool) -> int:
    words = [sys.executable, "-c", PROGRAM.format(is_kept=is_kept)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_memory_that_was_freed_is_used_again() -> None:
    assert new_pages(is_kept=False) > PAGES // 2
    assert new_pages(is_kept=True) < PAGES // 20


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not heap.keep_freed_memory()
