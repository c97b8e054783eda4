"""What one mount removes while programs of another use it: as when both were on one local disk."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, run, several_mounted

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(120)]

ROUNDS = 5


@pytest.fixture(scope="module")
def mounts(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Mount]]:
    """Two mounts that live as long as this module, with leases as by default."""
    with several_mounted(space.uri, tmp_path_factory.mktemp("pair"), 2) as started:
        yield started


@pytest.fixture
def sides(mounts: list[Mount], tmp_path: Path) -> tuple[Path, Path]:
    """A bucket of this test's own, through both."""
    here, there = (mount.path / tmp_path.name for mount in mounts)
    here.mkdir()
    return here, there


def make_tree(top: Path, depth: int = 2) -> None:
    top.mkdir()
    for number in range(4):
        (top / f"file-{number}").write_text(f"file {number}\n", encoding="ascii")
        if depth:
            make_tree(top / f"directory-{number}", depth - 1)


def outcome(call: Callable[[], object]) -> object:
    """What a call returns, or the name of its error."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def outcomes_in_a_removed_directory(here: Path, there: Path, *, is_used: bool) -> dict[str, object]:
    """What calls say in a directory of `here` that is removed through `there`."""
    top = here / "top"
    (top / "in").mkdir(parents=True)
    (top / "in" / "file").write_text("content", encoding="ascii")
    (here / "beside").touch()
    fd = os.open(top / "in", os.O_RDONLY)
    if is_used:
        assert os.listdir(fd) == ["file"]
        os.stat("file", dir_fd=fd)
    shutil.rmtree(there / "top")
    calls: dict[str, Callable[[], object]] = {
        "stat of a name": lambda: os.stat("file", dir_fd=fd),
        "stat of no name": lambda: os.stat("none", dir_fd=fd),
        "once more": lambda: os.stat("none", dir_fd=fd),
        "open": lambda: os.open("file", os.O_RDONLY, dir_fd=fd),
        "create": lambda: os.open("new", os.O_RDWR | os.O_CREAT, dir_fd=fd),
        "mkdir": lambda: os.mkdir("new", dir_fd=fd),
        "symlink": lambda: os.symlink("target", "new", dir_fd=fd),
        "link": lambda: os.link(here / "beside", "new", dst_dir_fd=fd),
        "unlink": lambda: os.unlink("file", dir_fd=fd),
        "rmdir": lambda: os.rmdir("file", dir_fd=fd),
        "rename within": lambda: os.rename("file", "new", src_dir_fd=fd, dst_dir_fd=fd),
        "rename into": lambda: os.rename(here / "beside", "new", dst_dir_fd=fd),
        "list": lambda: os.listdir(fd),
        "fstat": lambda: os.fstat(fd).st_nlink,
        "fchmod": lambda: os.fchmod(fd, 0o700),
        "futimens": lambda: os.utime(fd),
        "fsync": lambda: os.fsync(fd),
        "getxattr": lambda: os.getxattr(fd, "user.none"),
        "listxattr": lambda: os.listxattr(fd),
        "open of itself": lambda: os.close(os.open(".", os.O_RDONLY, dir_fd=fd)),
        "stat of what it was in": lambda: os.stat("..", dir_fd=fd).st_nlink,
        "stat of its path": lambda: os.stat(top / "in"),
        "list of its path": lambda: os.listdir(top / "in"),
        "ls": lambda: subprocess.run(
            ["ls", "-A"], preexec_fn=lambda: os.fchdir(fd), check=False, capture_output=True
        ),
    }
    try:
        found = {name: outcome(call) for name, call in calls.items()}
    finally:
        os.close(fd)
    listed = found["ls"]
    assert isinstance(listed, subprocess.CompletedProcess)
    return {**found, "ls": (listed.returncode, listed.stdout, listed.stderr)}


@pytest.mark.parametrize("is_used", [False, True], ids=["untouched", "listed"])
def test_directory_that_was_removed_elsewhere_is_as_on_a_local_disk(
    sides: tuple[Path, Path], tmp_path: Path, is_used: bool
) -> None:
    here, there = sides
    expected = outcomes_in_a_removed_directory(tmp_path, tmp_path, is_used=is_used)
    assert expected["fstat"] == 0
    assert outcomes_in_a_removed_directory(here, there, is_used=is_used) == expected


def test_tree_is_removed_by_two_mounts_at_once(sides: tuple[Path, Path]) -> None:
    here, there = sides
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            make_tree(here / "tree")
            removals = [pool.submit(run, "rm", "-rf", side / "tree") for side in sides]
            for removal in removals:
                # `run` raises with what `rm` said when it failed.
                assert removal.result().stderr == ""
            assert os.listdir(there) == os.listdir(here) == []


def test_tree_is_walked_while_the_other_mount_removes_and_makes_it(
    sides: tuple[Path, Path],
) -> None:
    here, there = sides

    def storm() -> None:
        for _ in range(ROUNDS):
            make_tree(here / "tree", depth=1)
            run("rm", "-rf", here / "tree")

    with ThreadPoolExecutor(1) as pool:
        storming = pool.submit(storm)
        while not storming.done():
            for walk in (["find", "."], ["ls", "-lAR"], ["du", "."]):
                done = run(*walk, cwd=there, check=False, env={**os.environ, "LC_ALL": "C"})
                for line in done.stderr.splitlines():
                    assert line.endswith("No such file or directory"), line
        storming.result()


BODY = b"what was there " * 20_000


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    file.with_name("temporary").write_bytes(b"new")
    file.with_name("temporary").rename(file)


removals = pytest.mark.parametrize("removal", [remove, replace], ids=["unlink", "rename"])


@removals
def test_open_file_that_was_removed_elsewhere_is_read_and_written(
    sides: tuple[Path, Path], removal: Callable[[Path], None]
) -> None:
    here, there = (side / "file" for side in sides)
    here.write_bytes(BODY)
    with there.open("r+b", buffering=0) as file:
        removal(here)
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read(len(BODY) + 1) == BODY
        assert os.pwrite(file.fileno(), b"XXX", 5) == 3
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 10, 0) == BODY[:5] + b"XXX" + BODY[8:10]
        os.ftruncate(file.fileno(), 6)
        assert os.pread(file.fileno(), 10, 0) == BODY[:5] + b"X"
        with open(f"/proc/self/fd/{file.fileno()}", "rb") as again:
            assert again.read() == BODY[:5] + b"X"
    assert there.exists() == (removal is replace)


@removals
def test_mapped_file_that_was_removed_elsewhere_stays_in_memory(
    sides: tuple[Path, Path], removal: Callable[[Path], None]
) -> None:
    here, there = (side / "file" for side in sides)
    here.write_bytes(BODY)
    # In a process of its own: a page that is not there is a SIGBUS.
    script = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print('mapped', flush=True)\n"
        "sys.stdin.readline()\n"
        "sys.stdout.buffer.write(memory[:])\n"
    )
    assert len(BODY) > mmap.PAGESIZE
    with subprocess.Popen(
        [sys.executable, "-c", script, there], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"mapped\n"
        removal(here)
        found, _ = program.communicate(b"\n", timeout=30)
    assert program.returncode == 0
    assert found == BODY


def body_of(number: int) -> bytes:
    return b"%08d" % number * 1000


def test_file_that_is_replaced_all_the_time_is_always_there_and_whole(
    sides: tuple[Path, Path],
) -> None:
    here, there = (side / "file" for side in sides)
    here.write_bytes(body_of(0))

    def replace_all_the_time() -> None:
        for number in range(1, 60):
            here.with_name("temporary").write_bytes(body_of(number))
            here.with_name("temporary").rename(here)

    last = 0
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace_all_the_time)
        while not replacing.done():
            found = there.read_bytes()
            assert found == body_of(int(found[:8]))
            assert int(found[:8]) >= last
            last = int(found[:8])
            assert there.stat().st_size == len(found)
        replacing.result()
    assert there.read_bytes() == body_of(59)
