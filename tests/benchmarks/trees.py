"""The workloads on a tree of source code: the Python standard library, by the usual programs.

Adds them to those of `workloads`; `WORKLOADS` here are all.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from tests.benchmarks.workloads import WORKLOADS, Stopwatch, make_durable, workload

__all__ = ["WORKLOADS"]

_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
_WORD = "import"
# Nobody's settings, and a name that needs none.
_GIT_ENVIRONMENT = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{
        f"GIT_{who}_{what}": "bench@localhost"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


@functools.cache
def _sources(scale: float) -> list[Path]:
    """A part of the library, every directory in the same proportion; all at scale 1."""
    found = sorted(path for path in _LIBRARY.rglob("*.py") if "site-packages" not in path.parts)
    return found[:: max(1, round(1 / scale))]


@functools.cache
def _archive(scale: float) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115  # It lives as long as the run.
    with tarfile.open(fileobj=file, mode="w") as tar:
        for path in _sources(scale):
            tar.add(path, path.relative_to(_LIBRARY))
    return file


@functools.cache
def _repository(scale: float) -> tempfile.TemporaryDirectory[str]:
    """A repository of the library, one commit."""
    folder = tempfile.TemporaryDirectory(prefix="mictlanfs-bench-git-")
    subprocess.run(["tar", "xf", "-", "-C", folder.name], stdin=_rewound(scale), check=True)
    _git("init", "--quiet", at=folder.name)
    _git("add", ".", at=folder.name)
    _git("commit", "--quiet", "--message", "all", at=folder.name)
    return folder


def _rewound(scale: float) -> IO[bytes]:
    file = _archive(scale)
    file.flush()
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    return file


def _git(*words: str, at: str | Path) -> bytes:
    return _output("git", "-C", os.fspath(at), *words)


def _output(*words: str | Path) -> bytes:
    return subprocess.run(words, check=True, capture_output=True, env=_GIT_ENVIRONMENT).stdout


@workload("untar", "files/s")
def _untar(directory: Path, scale: float, watch: Stopwatch) -> float:
    sources = _sources(scale)
    with watch.running():
        subprocess.run(["tar", "xf", "-", "-C", directory], stdin=_rewound(scale), check=True)
        make_durable(directory)
    for path in sources[::10]:
        assert (directory / path.relative_to(_LIBRARY)).read_bytes() == path.read_bytes()
    return len(sources)


@workload("ls-lR", "files/s", needs="untar")
def _list(directory: Path, scale: float, watch: Stopwatch) -> float:
    with watch.running():
        listed = _output("ls", "-lR", directory)
    count = listed.count(b".py\n")
    assert count == len(_sources(scale))
    return count


@workload("find", "files/s", needs="untar")
def _find(directory: Path, scale: float, watch: Stopwatch) -> float:
    with watch.running():
        # A condition that needs a stat of each.
        found = _output(
            "find", directory, "-type", "f", "-newermt", "1980-01-01", "-size", "-9999M"
        )
    count = found.count(b"\n")
    assert count == len(_sources(scale))
    return count


@workload("grep-r", "files/s", needs="untar")
def _grep(directory: Path, scale: float, watch: Stopwatch) -> float:
    sources = _sources(scale)
    with watch.running():
        found = _output("grep", "-rlF", _WORD, directory)
    assert found.count(b"\n") == sum(_WORD.encode() in path.read_bytes() for path in sources)
    return len(sources)


@workload("rm-r", "files/s", needs="untar")
def _remove(directory: Path, scale: float, watch: Stopwatch) -> float:
    with watch.running():
        _output("rm", "-r", *directory.iterdir())
        make_durable(directory)
    assert list(directory.iterdir()) == []
    return len(_sources(scale))


@workload("git-clone", "files/s")
def _clone(directory: Path, scale: float, watch: Stopwatch) -> float:
    source = _repository(scale).name
    with watch.running():
        _output("git", "clone", "--quiet", "--no-hardlinks", source, directory / "clone")
        make_durable(directory)
    return len(_sources(scale))


@workload("git-status", "files/s", needs="git-clone")
def _status(directory: Path, scale: float, watch: Stopwatch) -> float:
    with watch.running():
        changed = _git("status", "--porcelain", at=directory / "clone")
    assert changed == b""
    return len(_sources(scale))
