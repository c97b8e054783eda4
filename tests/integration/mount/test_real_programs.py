"""Larger programs on the mount: a compiler, pip, a database server, editors, walkers."""

from __future__ import annotations

import os
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, free_ports, mounted, run, wait_until

pytestmark = pytest.mark.fuse

POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture(scope="module")
def mount(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests here; `work` is a bucket of each test's own."""
    with mounted(space.uri, tmp_path_factory.mktemp("shared")) as started:
        yield started


def test_make_and_the_compiler_build_a_project(work: Path) -> None:
    (work / "main.c").write_text(
        '#include <stdio.h>\n#include "answer.h"\n'
        'int main(void) { printf("%d\\n", answer()); return 0; }\n',
        encoding="ascii",
    )
    (work / "answer.h").write_text("int answer(void);\n", encoding="ascii")
    (work / "answer.c").write_text("int answer(void) { return 42; }\n", encoding="ascii")
    (work / "Makefile").write_text(
        "program: main.o answer.o\n\tcc -o $@ $^\n%.o: %.c answer.h\n\tcc -c -o $@ $<\n",
        encoding="ascii",
    )
    run("make", "-j2", cwd=work)
    assert run(work / "program").stdout == "42\n"
    assert "up to date" in run("make", cwd=work).stdout
    (work / "answer.c").write_text("int answer(void) { return 43; }\n", encoding="ascii")
    run("make", cwd=work)
    assert run(work / "program").stdout == "43\n"


def test_pip_installs_into_an_environment_on_the_mount(work: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "greeting-1.0-py3-none-any.whl"
    info = "greeting-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("greeting/__init__.py", "def greet():\n    return 'hello'\n")
        metadata = "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", metadata)
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")
    run("python3", "-m", "venv", work / "venv", timeout=300)
    python = work / "venv" / "bin" / "python3"
    run(python, "-m", "pip", "install", "-q", "--no-index", wheel, timeout=120)
    assert run(python, "-c", "import greeting; print(greeting.greet())").stdout == "hello\n"


def test_editor_that_saves_by_rename_keeps_what_it_must(work: Path) -> None:
    path = work / "document"
    path.write_text("first\n", encoding="ascii")
    path.chmod(0o604)
    for text in ("second\n", "third\n"):
        # As vim does: the old file becomes the backup, a new one takes its name and mode.
        path.rename(work / "document~")
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
        os.fchmod(descriptor, 0o604)
        os.close(descriptor)
        (work / "document~").unlink()
        assert path.read_text(encoding="ascii") == text
        assert path.stat().st_mode & 0o777 == 0o604
    assert os.listdir(work) == ["document"]


def test_find_and_du_see_the_whole_tree(work: Path) -> None:
    for folder in range(5):
        (work / f"d{folder}").mkdir()
        for index in range(20):
            (work / f"d{folder}" / f"f{index}").write_bytes(b"x" * 8192)
    assert len(run("find", work, "-type", "f").stdout.splitlines()) == 100
    assert len(run("find", work, "-type", "d").stdout.splitlines()) == 6
    assert int(run("du", "-s", "--block-size=1", work).stdout.split()[0]) == 100 * 8192
    total = run("du", "-s", "--apparent-size", "--block-size=1", work / "d0").stdout
    assert int(total.split()[0]) >= 20 * 8192


@pytest.fixture
def open_mount(space: Space) -> Iterator[Mount]:
    """A mount that other users may enter: a database server does not run as root."""
    # Not below tmp_path, which pytest keeps for its own user.
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        with mounted(space.uri, Path(base), "allow_other") as started:
            yield started


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not POSTGRESQL, reason="PostgreSQL is not installed")
def test_postgresql_runs_a_benchmark_and_survives_a_restart(
    open_mount: Mount, tmp_path: Path
) -> None:
    programs = POSTGRESQL[-1].parent
    bucket = open_mount.path / tmp_path.name
    bucket.mkdir()
    run("chown", "postgres:", bucket)
    data = bucket / "data"
    (port,) = free_ports(1)

    def postgres(*words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return run("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *words,
                   timeout=timeout, cwd="/")  # fmt: skip

    def start() -> None:
        options = f"-p {port} -k {bucket} -c listen_addresses="
        postgres(
            programs / "pg_ctl", "-D", data, "-o", options, "-l", bucket / "log", "-w", "start"
        )

    connection = ("-h", os.fspath(bucket), "-p", str(port))
    postgres(programs / "initdb", "-D", data, "--no-locale", "-E", "UTF8")
    start()
    try:
        postgres(programs / "createdb", *connection, "bench")
        postgres(programs / "pgbench", *connection, "-i", "-s", "1", "-q", "bench")
        done = postgres(programs / "pgbench", *connection, "-T", "4", "-c", "4", "bench")
        assert "number of failed transactions: 0" in done.stdout
        postgres(programs / "pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
        start()
        count = "SELECT count(*) = (SELECT count(*) FROM pgbench_history) FROM pgbench_history"
        query = postgres(programs / "psql", *connection, "-At", "-c", count, "bench")
        assert query.stdout.strip() == "t"
        sums = (
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts)"
            " = (SELECT sum(delta) FROM pgbench_history)"
        )
        assert postgres(programs / "psql", *connection, "-At", "-c", sums, "bench").stdout == "t\n"
    finally:
        run("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups",
            programs / "pg_ctl", "-D", data, "-m", "immediate", "stop", check=False)  # fmt: skip
        wait_until(lambda: not (data / "postmaster.pid").exists(), "the server ended")
