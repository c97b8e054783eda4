"""A space in memory behind the command line, and command lines run in this process."""

import io
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from mictlanfs.cli.main import run
from mictlanfs.client import space as space_module
from mictlanfs.client.space import SpaceClient, open_space
from mictlanfs.model import BucketPolicy, FileKind
from tests.support.fakespace import URI, FakeSpace
from tests.unit.mictlanfs.client.making import CHUNK


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


class Run(Protocol):
    """Runs `mictlanfs ARGS…` on the fake space."""

    def __call__(self, *args: str | Path, stdin: bytes = b"") -> Done: ...


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user who runs the tests."""
    for name in ("MICTLANX_CLIENT_URI", "MICTLANFS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> FakeSpace:
    """A space with an empty bucket `b`; the command line reaches it at its URI."""
    space = FakeSpace()
    space.router.make(FileKind.DIRECTORY, b"b")
    space.router.find(b"b").policy = BucketPolicy(chunk_size=CHUNK)

    def open_fake(uri: str, **options: object) -> AbstractAsyncContextManager[SpaceClient]:
        assert uri == URI
        opener: Callable[..., AbstractAsyncContextManager[SpaceClient]] = open_space
        return opener(uri, transport=space.net, **options)

    monkeypatch.setattr(space_module, "open_space", open_fake)
    monkeypatch.setenv("MICTLANX_CLIENT_URI", URI)
    return space


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run_here(*args: str | Path, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run([str(arg) for arg in args])
        out, err = capsysbinary.readouterr()
        return Done(code, out, err.decode())

    return run_here
