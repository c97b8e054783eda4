"""Programs that know nothing of us, on a real mount: what they wrote is there, also afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.model import MIB
from tests.support.spaces import Mount, Space, mounted, run

pytestmark = pytest.mark.fuse

STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
GIT = ("git", "-c", "safe.directory=*", "-c", "user.name=test", "-c", "user.email=test@localhost")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the standard library: some 600 files, without what a running Python changes."""
    copy = tmp_path_factory.mktemp("library") / "lib"
    # Large packages of many small modules like those that stay.
    alike = ("idlelib", "lib2to3", "distutils", "turtledemo", "tkinter")
    ignored = shutil.ignore_patterns("__pycache__", "site-packages", "test", "config-*", *alike)
    shutil.copytree(STANDARD_LIBRARY, copy, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def mount(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests here; `work` is a bucket of each test's own."""
    with mounted(space.uri, tmp_path_factory.mktemp("shared")) as started:
        yield started


def sha256(path: Path) -> str:
    """The digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_copied_tree_is_equal_now_and_after_a_restart_of_everything(
    space: Space, mount: Mount, work: Path, library: Path
) -> None:
    run("cp", "-a", library, work / "lib", timeout=300)
    run("diff", "-r", library, work / "lib", timeout=300)
    sample = library / "os.py"
    assert (work / "lib" / "os.py").stat().st_mtime_ns == sample.stat().st_mtime_ns

    mount.umount()
    space.restart()
    mount.uri = space.uri
    mount.mount()

    run("diff", "-r", library, work / "lib", timeout=300)
    assert (work / "lib" / "os.py").stat().st_mtime_ns == sample.stat().st_mtime_ns
    run("rm", "-r", work / "lib", timeout=300)
    assert os.listdir(work) == []


def test_git_clones_checks_and_finds_a_clean_tree(
    work: Path, library: Path, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(library, origin, symlinks=True)
    file_count = sum(len(files) for _, _, files in os.walk(origin))
    while file_count <= 600:
        (origin / f"extra{file_count}.txt").write_text(str(file_count), encoding="ascii")
        file_count += 1
    run(*GIT, "init", "-q", cwd=origin)
    run(*GIT, "add", "-A", cwd=origin)
    run(*GIT, "commit", "-q", "-m", "all", cwd=origin)

    run(*GIT, "clone", "-q", "--no-hardlinks", origin, work / "clone", timeout=300)
    run(*GIT, "fsck", "--full", cwd=work / "clone", timeout=120)
    assert run(*GIT, "status", "--porcelain", cwd=work / "clone", timeout=120).stdout == ""

    (work / "clone" / "os.py").write_text("changed\n", encoding="ascii")
    run(*GIT, "commit", "-q", "-a", "-m", "change", cwd=work / "clone", timeout=120)
    run(*GIT, "gc", "-q", cwd=work / "clone", timeout=120)
    run(*GIT, "fsck", "--full", cwd=work / "clone", timeout=120)
    assert run(*GIT, "status", "--porcelain", cwd=work / "clone").stdout == ""


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_sqlite_database_is_whole_after_remount(mount: Mount, work: Path, journal: str) -> None:
    path = work / f"{journal}.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
    for start in range(0, 500, 50):
        with connection:
            rows = [
                (i, os.urandom(random.Random(i).randrange(5000))) for i in range(start, start + 50)
            ]
            connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    with connection:
        connection.execute("DELETE FROM t WHERE id % 3 = 0")
    connection.execute("VACUUM")
    expected = connection.execute("SELECT count(*), sum(length(body)) FROM t").fetchone()
    connection.close()

    mount.remount_cold()

    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*), sum(length(body)) FROM t").fetchone() == expected
    connection.close()


def test_tar_packs_and_unpacks_the_same_tree(work: Path, library: Path) -> None:
    run("tar", "cf", work / "lib.tar", "-C", library, ".", timeout=300)
    (work / "unpacked").mkdir()
    run("tar", "xf", work / "lib.tar", "-C", work / "unpacked", timeout=300)
    assert run("diff", "-r", library, work / "unpacked", timeout=300).stdout == ""


def test_second_rsync_transfers_nothing(work: Path, library: Path) -> None:
    source = library / "asyncio"
    run("rsync", "-a", f"{source}/", work / "copy")
    again = run("rsync", "-a", "--itemize-changes", f"{source}/", work / "copy")
    assert again.stdout == ""
    run("diff", "-r", source, work / "copy")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_large_file_has_the_same_digest_after_a_cold_remount(mount: Mount, work: Path) -> None:
    block = random.Random(5).randbytes(8 * MIB)
    digest = hashlib.sha256()
    with (work / "large").open("wb") as file:
        # Twice what the mount may keep in memory.
        for index in range(64):
            piece = index.to_bytes(8, "big") + block[8:]
            digest.update(piece)
            file.write(piece)
    assert (work / "large").stat().st_size == 512 * MIB

    mount.remount_cold()

    assert (work / "large").stat().st_size == 512 * MIB
    assert sha256(work / "large") == digest.hexdigest()
    (work / "large").unlink()


def test_virtual_environment_made_on_the_mount_works(work: Path) -> None:
    run("python3", "-m", "venv", "--without-pip", work / "venv", timeout=300)
    python = work / "venv" / "bin" / "python3"
    assert run(python, "-c", "import sys; print(sys.prefix)").stdout.strip() == str(work / "venv")


def test_sed_edits_in_place(work: Path) -> None:
    path = work / "text"
    path.write_text("one\ntwo\nthree\n", encoding="ascii")
    path.chmod(0o640)
    run("sed", "-i", "s/two/2/", path)
    assert path.read_text(encoding="ascii") == "one\n2\nthree\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(work) == ["text"]


def test_blocks_written_at_random_offsets_by_dd_are_where_they_belong(
    mount: Mount, work: Path, tmp_path: Path
) -> None:
    model = bytearray(3 * MIB)
    draw = random.Random(9)
    path, source = work / "random", tmp_path / "block"
    for _ in range(40):
        block = draw.randbytes(draw.choice([512, 4096, 65536]))
        seek = draw.randrange(0, len(model) - len(block))
        source.write_bytes(block)
        run(
            "dd", f"if={source}", f"of={path}", f"bs={len(block)}", "conv=notrunc",
            "oflag=seek_bytes", f"seek={seek}",
        )  # fmt: skip
        model[seek : seek + len(block)] = block
    size = path.stat().st_size
    assert path.read_bytes() == bytes(model[:size])

    mount.remount_cold()

    assert path.stat().st_size == size
    assert path.read_bytes() == bytes(model[:size])


def test_file_works_on_after_its_own_unlink(work: Path) -> None:
    path = work / "doomed"
    with path.open("w+b") as file:
        file.write(b"before " * 1000)
        file.flush()
        path.unlink()
        assert not path.exists()
        file.write(b"after")
        file.flush()
        file.seek(0)
        assert file.read() == b"before " * 1000 + b"after"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert os.listdir(work) == []


def test_replaced_file_stays_readable_through_its_old_descriptor(work: Path) -> None:
    (work / "config").write_text("old", encoding="ascii")
    with (work / "config").open(encoding="ascii") as old:
        (work / "config.new").write_text("new", encoding="ascii")
        (work / "config.new").rename(work / "config")
        assert old.read() == "old"
        assert (work / "config").read_text(encoding="ascii") == "new"


def test_thousands_of_files_can_be_open_at_once(work: Path) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((work / f"f{i}").open("w+")) for i in range(2000)]
        for index, file in enumerate(files):
            file.write(str(index))
            file.flush()
        for index, file in enumerate(files):
            file.seek(0)
            assert file.read() == str(index)


def test_growing_file_is_followed_by_tail(work: Path) -> None:
    path = work / "log"
    path.write_text("", encoding="ascii")
    with subprocess.Popen(
        ["tail", "-n", "+1", "-f", "-s", "0.05", path], stdout=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout is not None
        with path.open("a", encoding="ascii") as log:
            for index in range(20):
                log.write(f"line {index}\n")
                log.flush()
                assert tail.stdout.readline() == f"line {index}\n"
        tail.terminate()
