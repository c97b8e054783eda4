"""That a recording leads to the disks that a power cut may leave, and to no others."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.faults import recording
from tests.faults.disks import Disk, Form, differences, read_tree, write_tree
from tests.faults.recording import read_records

TIMEOUT_S = 30
# The folder that programs work in, made so that it is sure to be there.
MAKE_PART = "os.mkdir('part'); os.fsync(os.open('.', os.O_RDONLY))\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording.build(tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def played(library: Path, root: Path, program: str, places: int | None = None) -> Disk:
    """The disk after a program that works in `root`, or after its first records."""
    log = root.parent / "log"
    log.unlink(missing_ok=True)
    environment = {**os.environ, **recording.environment(library, root, log)}
    begin = f"import os, sqlite3, mmap\nos.chdir({os.fspath(root)!r})\n{MAKE_PART}"
    code = begin + textwrap.dedent(program)
    words = [sys.executable, "-c", code]
    subprocess.run(words, env=environment, check=True, timeout=TIMEOUT_S)
    disk = Disk(root)
    for number, record in enumerate(read_records(log)):
        if places is None or number < places:
            disk.apply(record)
    return disk


def held(disk: Disk, form: Form, seed: int = 0) -> Mapping[str, bytes | None]:
    return disk.content({"part": form}, random.Random(seed))


def all_held(disk: Disk, form: Form) -> Iterator[Mapping[str, bytes | None]]:
    return (held(disk, form, seed) for seed in range(40))


def test_every_call_is_recorded(library: Path, root: Path) -> None:
    disk = played(
        library, root, """
        import shutil, socket
        os.makedirs('part/a/./b')
        with open('part/a/one', 'wb') as file:
            file.write(b'x' * 5000)
            file.seek(100)
            file.write(b'y')
            file.truncate(3000)
        fd = os.open('part//a/two', os.O_CREAT | os.O_RDWR | os.O_APPEND)
        os.write(fd, b'123')
        os.writev(fd, [b'45', b'', b'67'])
        os.pwritev(fd, [b'ab', b'cd'], 1)
        other = os.open('part/a/three', os.O_CREAT | os.O_RDWR)
        os.pwrite(other, b'zz', 10)
        os.posix_fallocate(other, 0, 9000)
        os.copy_file_range(fd, other, 5, 0, 20)
        os.sendfile(other, fd, 0, 4)
        folder = os.open('part/a', os.O_RDONLY)
        os.rename('one', 'b/moved', src_dir_fd=folder, dst_dir_fd=folder)
        os.link('part/a/two', 'part/linked')
        os.unlink('three', dir_fd=folder)
        os.mkdir('new', dir_fd=folder)
        shutil.copyfile('part/a/two', 'part/a/new/copy')
        open('part/a/two', 'wb').close()
        here, there = socket.socketpair()
        passed = os.open('part/passed', os.O_CREAT | os.O_WRONLY)
        socket.send_fds(here, [b'x'], [passed])
        os.close(passed)
        [received] = socket.recv_fds(there, 1, 1)[1]
        os.write(received, b'from afar')
        """,
    )  # fmt: skip
    assert differences(dict(held(disk, Form.MOST)), read_tree(root)) == []
    assert read_tree(root)["part/a/b/moved"] is not None


def test_a_database_is_recorded_whole(library: Path, root: Path) -> None:
    disk = played(
        library, root, """
        for mode in ('WAL', 'DELETE', 'TRUNCATE'):
            database = sqlite3.connect(f'part/{mode}')
            database.execute(f'PRAGMA journal_mode={mode}')
            database.execute('CREATE TABLE t (x)')
            for number in range(50):
                with database:
                    database.execute('INSERT INTO t VALUES (?)', (os.urandom(2000),))
        os._exit(0)
        """,
    )  # fmt: skip
    assert differences(dict(held(disk, Form.MOST)), read_tree(root)) == []
    assert {"part/WAL", "part/WAL-wal", "part/DELETE"} <= read_tree(root).keys()


def test_a_mapped_file_is_not_passed_over(library: Path, root: Path) -> None:
    with pytest.raises(AssertionError, match="mapped"):
        played(
            library, root, """
            fd = os.open('part/a', os.O_CREAT | os.O_RDWR)
            os.write(fd, b'1234')
            mmap.mmap(fd, 4)[0] = 65
            """,
        )  # fmt: skip


def test_what_was_not_synced_may_be_lost_and_what_was_may_not(library: Path, root: Path) -> None:
    disk = played(
        library, root, """
        fd = os.open('part/a', os.O_CREAT | os.O_RDWR)
        os.write(fd, b'a' * 9000)
        os.fsync(fd)
        os.fsync(os.open('part', os.O_RDONLY))
        os.pwrite(fd, b'b' * 9000, 5000)
        os.rename('part/a', 'part/c')
        """,
    )  # fmt: skip
    assert held(disk, Form.LEAST) == {"part": None, "part/a": b"a" * 9000}
    most = b"a" * 5000 + b"b" * 9000
    assert held(disk, Form.MOST) == {"part": None, "part/c": most}
    seen = list(all_held(disk, Form.SOME))
    assert {name for tree in seen for name in tree} == {"part", "part/a", "part/c"}
    bodies = {body for tree in seen for body in tree.values() if body is not None}
    assert b"a" * 9000 in bodies
    assert most in bodies
    # A page in the middle may be missing.
    assert any(body[5000:8192] == b"a" * 3192 and body[-1:] == b"b" for body in bodies)
    assert all(body.startswith(b"a" * 5000) for body in bodies)
    torn = {tree["part/c"] for tree in all_held(disk, Form.TORN)}
    assert len(torn) > 5
    assert most not in torn


def test_a_name_is_not_sure_before_its_folder_was_synced(library: Path, root: Path) -> None:
    program = """
        os.mkdir('part/x')
        fd = os.open('part/x/temporary', os.O_CREAT | os.O_RDWR)
        os.write(fd, b'whole')
        os.fsync(fd)
        os.rename('part/x/temporary', 'part/final')
    """
    assert held(played(library, root, program), Form.LEAST) == {"part": None}
    synced = f"{program.rstrip()}\n        os.fsync(os.open('part', os.O_RDONLY))\n"
    shutil.rmtree(root / "part")
    disk = played(library, root, synced)
    for tree in all_held(disk, Form.SOME):
        assert tree == {"part": None, "part/x": None, "part/final": b"whole"}


def test_a_sync_covers_what_came_before_it_began(library: Path, root: Path) -> None:
    program = """
        fd = os.open('part/a', os.O_CREAT | os.O_RDWR)
        os.fsync(os.open('part', os.O_RDONLY))
        os.write(fd, b'1')
        os.fsync(fd)
    """
    whole = played(library, root, program)
    assert held(whole, Form.LEAST)["part/a"] == b"1"
    count = sum(1 for _ in read_records(root.parent / "log"))
    shutil.rmtree(root / "part")
    # Without its end a sync promises nothing.
    assert held(played(library, root, program, count - 1), Form.LEAST)["part/a"] == b""


def test_a_tree_is_written_and_read(tmp_path: Path) -> None:
    content = {"a": None, "a/b": b"body", "c": b""}
    write_tree(content, tmp_path / "tree")
    assert read_tree(tmp_path / "tree") == content
