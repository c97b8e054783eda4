"""The short form of `mounted_model`, and that it would see what it looks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stateful.mounted_model import MountedModel, play, playing
from tests.stateful.own_mount import make_bucket, tmpfs
from tests.stateful.sides import Side
from tests.support.spaces import mounted, running_space

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(300)]

SEED = 2026
PLAYS = 25


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[MountedModel]]:
    base = tmp_path_factory.mktemp("model")
    options = ("memory=8M", "allow_other")
    with running_space(base / "data") as space, mounted(space.uri, base, *options) as mount:
        make_bucket(space, "bucket", "64K")
        with playing(mount, base / "play", "bucket") as made:
            yield made


def test_mount_does_what_a_local_file_system_does(machine: type[MountedModel]) -> None:
    play(machine, SEED, PLAYS, shrinks=False)


@pytest.mark.parametrize(
    ("verb", "spoilt"),
    [
        ("pwrite", lambda self, index, data, offset: len(data)),
        ("chmod", staticmethod(lambda path, mode: os.chmod(path, mode ^ 0o100))),
        ("unlink", staticmethod(lambda path: os.stat("missing"))),
        ("utime", staticmethod(lambda *words: None)),
    ],
)
def test_difference_is_reported_with_the_steps_to_it(
    machine: type[MountedModel], monkeypatch: pytest.MonkeyPatch, verb: str, spoilt: object
) -> None:
    stage = machine.stage
    original = Side.attempt
    spoilt_type = type("Spoilt", (Side,), {verb: spoilt})

    def attempt(self: Side, name: str, words: list[object], uid: int = 0) -> object:
        if self.root.is_relative_to(stage.local):
            self.__class__ = spoilt_type
        return original(self, name, words, uid)

    monkeypatch.setattr(Side, "attempt", attempt)
    with pytest.raises(AssertionError, match="the mount: ") as raised:
        play(machine, SEED, PLAYS, shrinks=False)
    assert "mkdir('./a', 511)  # ('ok', None)" in str(raised.value)


def test_sides_that_differ_have_different_trees(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "local") as local:
        check_that_trees_tell_differences(local / "one", local / "two")


def check_that_trees_tell_differences(*roots: Path) -> None:
    sides = []
    for root in roots:
        side = Side(root)
        root.mkdir()
        side.attempt("open", [0, "a", os.O_CREAT | os.O_RDWR, 0o644])
        side.attempt("pwrite", [0, b"x", 0])
        side.close_all()
        sides.append(side)
    one, two = sides
    assert one.tree() == two.tree()
    changes: list[tuple[str, list[object]]] = [
        ("truncate", ["a", 0]),
        ("chmod", ["a", 0o600]),
        ("link", ["a", "b"]),
        ("setxattr", ["a", "user.a", b"1", True]),
        ("symlink", ["a", "c"]),
        ("utime", ["a", 1, 1, True]),
        ("mkdir", ["d"]),
        ("mkfifo", ["e"]),
    ]
    for verb, words in changes:
        assert one.attempt(verb, words) == ("ok", None)
        assert one.tree() != two.tree()
        assert two.attempt(verb, words) == ("ok", None)
        assert one.tree() == two.tree()
