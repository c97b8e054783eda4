"""The short form of `fsx`, and that it would see what it looks for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stateful.fsx import DifferenceError, Fsx, RouterKiller, main
from tests.stateful.own_mount import OwnMount, make_bucket
from tests.support.spaces import mounted, running_space

SEED = 2026
# Smaller than what is written, so that chunks, windows and the budget are used up again and again.
SMALL_CHUNKS, SMALL_MEMORY = "64K", "memory=8M"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnMount]:
    base = tmp_path_factory.mktemp("fsx")
    with running_space(base / "data") as space, mounted(space.uri, base, SMALL_MEMORY) as mount:
        make_bucket(space, "bucket", SMALL_CHUNKS)
        yield OwnMount(base, space, mount)


@pytest.mark.fuse
@pytest.mark.slow
def test_one_file_holds_what_random_operations_put_into_it(own: OwnMount) -> None:
    fsx = Fsx(own.bucket, SEED)
    fsx.run(3000)
    own.mount.remount_cold()
    fsx.check_all()


@pytest.mark.fuse
@pytest.mark.slow
def test_two_files_with_interleaved_handles_do_not_mix(own: OwnMount) -> None:
    fsx = Fsx(own.bucket, SEED + 1, file_count=2)
    fsx.run(1500)
    fsx.check_all()


@pytest.mark.fuse
@pytest.mark.slow
def test_no_operation_is_lost_while_the_router_is_killed(own: OwnMount) -> None:
    fsx = Fsx(own.bucket, SEED + 2, file_count=2)
    with RouterKiller(own, every_s=1) as killer:
        while killer.count < 2:
            fsx.run(200)
    own.mount.remount_cold()
    fsx.check_all()


def test_local_file_system_has_no_difference(tmp_path: Path) -> None:
    fsx = Fsx(tmp_path, SEED)
    fsx.run(2000)
    fsx.remove()
    assert os.listdir(tmp_path) == []


def test_lost_write_is_reported_with_operations_offset_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    write = os.pwrite

    def forget_one(fd: int, data: bytes, offset: int) -> int:
        if next(calls) == 150:
            return len(data)
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", forget_one)
    with pytest.raises(DifferenceError) as raised:
        Fsx(tmp_path, SEED).run(2000)
    message = str(raised.value)
    assert "first difference at 0x" in message
    assert len([line for line in message.splitlines() if " fsx-" in line]) >= 50


def test_wrong_size_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "ftruncate", lambda fd, size: None)
    monkeypatch.setattr(os, "truncate", lambda path, size: None)
    with pytest.raises(DifferenceError, match=r"size|bytes at|SIGBUS|cannot|Invalid"):
        Fsx(tmp_path, SEED).run(2000)


def test_program_says_the_seed_and_ends_with_1_after_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path), "--operations", "500", "--seed", "7"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("seed 7\n500 operations\n500 operations in")
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: len(data))
    assert main(words) == 1
    assert "last operations" in capsys.readouterr().err
