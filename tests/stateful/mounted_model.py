"""A state machine that does the same to a directory on a mount and to one on a tmpfs.

Results and errnos are compared after each step, the whole trees now and then and at the end.
`python -m tests.stateful.mounted_model --minutes 10 --seed 7` runs it for longer than the tests do;
a difference is reported with the steps that lead to it, which Hypothesis has made as few as it can.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.stateful.own_mount import add_mount_arguments, own_mount, tmpfs
from tests.stateful.sides import RENAME_EXCHANGE, RENAME_NOREPLACE, Side
from tests.support.spaces import Mount, mounted, run

HANDLES_MAX = 6
STEPS_MAX = 60
USER = 12_345
EXAMPLES_PER_ROUND = 100

NAMES = ["a", "b", "c", "\udcff\udcfe"]
ODD_PATHS = [
    "a", "a/b", "missing/x", ".", "a/", "a/.", "a/..", "b/", "a/" + "n" * 255, "n" * 256,
]  # fmt: skip


@dataclass(frozen=True)
class Existing:
    """The path of something that is there: of all paths the one with this number."""

    number: int


@dataclass(frozen=True)
class Inside:
    """A name, there or not, in the existing directory with this number."""

    number: int
    name: str


Where = str | Existing | Inside
existing = st.integers(0, 30).map(Existing)
inside = st.builds(Inside, st.integers(0, 10), st.sampled_from(NAMES))
odd_paths = st.sampled_from(ODD_PATHS)
# Each as likely as it is often named.
paths = st.one_of(existing, existing, existing, existing, inside, odd_paths)
new_paths = st.one_of(inside, inside, inside, inside, existing, odd_paths)
uids = st.sampled_from([0, 0, 0, USER])
modes = st.sampled_from([0o755, 0o777, 0o644, 0o600, 0o000, 0o666, 0o1777, 0o2775, 0o4755, 0o6777])
# Of which a drawn number chooses one, so that the handle need not be known before.
picks = st.integers(0, HANDLES_MAX - 1)
accesses = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
OPTIONAL_FLAGS = [
    os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY,
]  # fmt: skip
flag_sets = st.one_of(
    st.just(os.O_CREAT),
    st.sampled_from([0, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_APPEND]),
    st.lists(st.sampled_from(OPTIONAL_FLAGS), max_size=3).map(sum),
)
EDGES = [0, 1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 131_072, 200_000]
FAR = [1 << 20, (4 << 20) - 3, (4 << 20) + 5, 1 << 40]
offsets = st.one_of(
    st.sampled_from(EDGES), st.integers(0, 300_000), st.sampled_from(EDGES), st.sampled_from(FAR)
)
lengths = st.one_of(st.integers(0, 100), st.sampled_from([4096, 5000, 65_536, 70_000, 140_000]))
bytes_written = st.integers(1, 255)
times_ns = st.sampled_from(
    [0, -1, -(10**18), 123_456_789, 10**18 + 1, (1 << 31) * 10**9, (1 << 33) * 10**9 + 999_999_999]
)
xattr_names = st.sampled_from(["user.a", "user.b", "user.c", "user." + "n" * 250, "user.\udcff"])
xattr_values = st.one_of(st.binary(max_size=8), st.sampled_from([b"x" * 4096, b"y" * 65_536]))
targets = st.sampled_from([*NAMES, "a/b", ".", "missing", "b/", "t" * 4095, "t" * 4096, ""])


@dataclass
class Stage:
    """Where the machine plays: a bucket of a mount, the same through a second one, a local folder.

    Attributes:
        bucket: name of the bucket.
        other: shows what the first mount has closed, without anything remembered.
    """

    mount: Mount
    other: Mount
    local: Path
    bucket: str
    play_numbers: Iterator[int] = field(default_factory=count)


class MountedModel(RuleBasedStateMachine):
    """The machine. A subclass gives it a stage."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = False
        self.steps: list[str] = []
        self.handle_numbers = count()
        name = f"play-{next(self.stage.play_numbers)}"
        self.place = Path(self.stage.bucket, name)
        self.sides = tuple(
            Side(base / self.place, is_tmpfs=base == self.stage.local)
            for base in (self.stage.mount.path, self.stage.local)
        )
        for side in self.sides:
            side.root.mkdir(parents=True)
            side.root.chmod(0o777)

    def teardown(self) -> None:
        try:
            if not self.is_broken:
                self.compare_trees()
        finally:
            for side in self.sides:
                side.close_all()
                shutil.rmtree(side.root)

    def require_equal(self, ours: object, local: object) -> None:
        if ours == local:
            return
        self.is_broken = True
        steps = "\n".join(self.steps)
        raise AssertionError(f"{steps}\nthe mount: {ours}\n   local: {local}")

    def both(self, verb: str, *words: object, uid: int = 0) -> None:
        """Do the same on both sides; the verbs are those of `Side`."""
        found = [self.found(word) for word in words]
        shown = ", ".join(map(_shown, found))
        self.steps.append(f"{verb}({shown})" + (f"  # as user {uid}" if uid else ""))
        ours, local = (side.attempt(verb, found, uid) for side in self.sides)
        self.steps[-1] += f"  # {_shown(local)}"
        self.require_equal(ours, local)

    def found(self, word: object) -> object:
        """The path that is meant by what Hypothesis has drawn; anything else as it is."""
        if isinstance(word, Existing):
            known = self.sides[1].paths()
            return known[word.number % len(known)]
        if isinstance(word, Inside):
            known = self.sides[1].directories()
            return f"{known[word.number % len(known)]}/{word.name}"
        return word

    def picked(self, pick: int) -> int:
        open_now = tuple(self.sides[0].fds)
        return open_now[pick % len(open_now)]

    @property
    def has_handles(self) -> bool:
        return bool(self.sides[0].fds)

    # --- handles ---------------------------------------------------------------------------------

    @initialize(lot=st.integers(0, 15))
    def draw_lots(self, lot: int) -> None:
        # A mount takes longer than all the rest, so it is left out most of the time.
        self.remounts_left = int(lot == 15)

    @initialize()
    def make_something(self) -> None:
        """So that most operations find something to work on."""
        for path in ("./a", "./a/b", "./c"):
            self.both("mkdir", path, 0o777)
        for path in ("./b", "./a/a", "./a/b/c"):
            self.both("open", -1, path, os.O_CREAT | os.O_RDWR, 0o666)
            self.both("pwrite", -1, b"something", 5)
            self.both("close", -1)
        self.both("link", "./b", "./c/b")
        self.both("symlink", "a/a", "./c/c")

    @rule(path=st.one_of(paths, new_paths), access=accesses, flags=flag_sets, mode=modes, uid=uids)
    def open(self, path: Where, access: int, flags: int, mode: int, uid: int) -> None:
        if len(self.sides[0].fds) == HANDLES_MAX:
            self.close(0)
        index = next(self.handle_numbers)
        self.both("open", index, path, access | flags, mode, uid=uid)

    @rule(path=new_paths)
    def create(self, path: Where) -> None:
        self.open(path, os.O_RDWR, os.O_CREAT, 0o666, 0)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        index = self.picked(pick)
        self.both("close", index)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks, length=lengths, offset=offsets)
    def pread(self, pick: int, length: int, offset: int) -> None:
        index = self.picked(pick)
        self.both("pread", index, length, offset)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks, length=lengths, offset=offsets, byte=bytes_written, uid=uids)
    def pwrite(self, pick: int, length: int, offset: int, byte: int, uid: int) -> None:
        index, data = self.picked(pick), bytes([byte]) * length
        self.both("pwrite", index, data, offset, uid=uid)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks, length=lengths, byte=bytes_written, uid=uids)
    def write(self, pick: int, length: int, byte: int, uid: int) -> None:
        index, data = self.picked(pick), bytes([byte]) * length
        self.both("write", index, data, uid=uid)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks, size=offsets, uid=uids)
    def ftruncate(self, pick: int, size: int, uid: int) -> None:
        index = self.picked(pick)
        self.both("ftruncate", index, size, uid=uid)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks)
    def fsync(self, pick: int) -> None:
        index = self.picked(pick)
        self.both("fsync", index)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks)
    def fstat(self, pick: int) -> None:
        index = self.picked(pick)
        self.both("fstat", index)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks, mode=modes, uid=uids)
    def fchmod(self, pick: int, mode: int, uid: int) -> None:
        index = self.picked(pick)
        self.both("fchmod", index, mode, uid=uid)

    @precondition(lambda self: self.has_handles)
    @rule(pick=picks, atime_ns=times_ns, mtime_ns=times_ns)
    def futime(self, pick: int, atime_ns: int, mtime_ns: int) -> None:
        index = self.picked(pick)
        self.both("futime", index, atime_ns, mtime_ns)

    # --- names -----------------------------------------------------------------------------------

    @rule(path=new_paths, mode=modes, uid=uids)
    def mkdir(self, path: Where, mode: int, uid: int) -> None:
        self.both("mkdir", path, mode, uid=uid)

    @rule(path=paths, uid=uids)
    def rmdir(self, path: Where, uid: int) -> None:
        self.both("rmdir", path, uid=uid)

    @rule(path=paths, uid=uids)
    def unlink(self, path: Where, uid: int) -> None:
        self.both("unlink", path, uid=uid)

    @rule(
        old=paths,
        new=new_paths,
        flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, 3]),
        uid=uids,
    )
    def rename(self, old: Where, new: Where, flags: int, uid: int) -> None:
        self.both("rename", old, new, flags, uid=uid)

    @rule(old=paths, new=new_paths, uid=uids)
    def link(self, old: Where, new: Where, uid: int) -> None:
        self.both("link", old, new, uid=uid)

    @rule(points_to=targets, path=new_paths, uid=uids)
    def symlink(self, points_to: str, path: Where, uid: int) -> None:
        self.both("symlink", points_to, path, uid=uid)

    @rule(path=paths, uid=uids)
    def readlink(self, path: Where, uid: int) -> None:
        self.both("readlink", path, uid=uid)

    @rule(path=new_paths, mode=modes, uid=uids)
    def mkfifo(self, path: Where, mode: int, uid: int) -> None:
        self.both("mkfifo", path, mode, uid=uid)

    @rule(path=paths, uid=uids)
    def scandir(self, path: Where, uid: int) -> None:
        self.both("scandir", path, uid=uid)

    # --- attributes ------------------------------------------------------------------------------

    @rule(path=paths, follow=st.booleans(), uid=uids)
    def stat(self, path: Where, follow: bool, uid: int) -> None:
        self.both("stat", path, follow, uid=uid)

    @rule(path=paths, mode=modes, uid=uids)
    def chmod(self, path: Where, mode: int, uid: int) -> None:
        self.both("chmod", path, mode, uid=uid)

    @rule(
        path=paths,
        owner=st.sampled_from([-1, 0, USER]),
        group=st.sampled_from([-1, 0, USER]),
        follow=st.booleans(),
        uid=uids,
    )
    def chown(self, path: Where, owner: int, group: int, follow: bool, uid: int) -> None:
        self.both("chown", path, owner, group, follow, uid=uid)

    @rule(path=paths, atime_ns=times_ns, mtime_ns=times_ns, follow=st.booleans(), uid=uids)
    def utime(self, path: Where, atime_ns: int, mtime_ns: int, follow: bool, uid: int) -> None:
        self.both("utime", path, atime_ns, mtime_ns, follow, uid=uid)

    @rule(path=paths, follow=st.booleans(), uid=uids)
    def utime_now(self, path: Where, follow: bool, uid: int) -> None:
        self.both("utime_now", path, follow, uid=uid)

    @rule(path=paths, size=st.one_of(offsets, st.just(-1)), uid=uids)
    def truncate(self, path: Where, size: int, uid: int) -> None:
        self.both("truncate", path, size, uid=uid)

    @rule(path=paths, name=xattr_names, value=xattr_values, follow=st.booleans(), uid=uids)
    def setxattr(self, path: Where, name: str, value: bytes, follow: bool, uid: int) -> None:
        self.both("setxattr", path, name, value, follow, uid=uid)

    @rule(path=paths, name=xattr_names, follow=st.booleans(), uid=uids)
    def getxattr(self, path: Where, name: str, follow: bool, uid: int) -> None:
        self.both("getxattr", path, name, follow, uid=uid)

    @rule(path=paths, follow=st.booleans(), uid=uids)
    def listxattr(self, path: Where, follow: bool, uid: int) -> None:
        self.both("listxattr", path, follow, uid=uid)

    @rule(path=paths, name=xattr_names, follow=st.booleans(), uid=uids)
    def removexattr(self, path: Where, name: str, follow: bool, uid: int) -> None:
        self.both("removexattr", path, name, follow, uid=uid)

    # --- the whole -------------------------------------------------------------------------------

    @rule()
    def compare_trees(self) -> None:
        ours, local = (side.tree() for side in self.sides)
        self.require_trees_equal(ours, local)

    @rule()
    def compare_trees_elsewhere(self) -> None:
        """What was closed here is seen by another mount."""
        self.close_handles()
        elsewhere = Side(self.stage.other.path / self.place)
        self.require_trees_equal(elsewhere.tree(), self.sides[1].tree())

    @precondition(lambda self: self.remounts_left > 0)
    @rule()
    def remount(self) -> None:
        """What is there does not hang on anything that this machine remembers."""
        self.remounts_left -= 1
        self.close_handles()
        mount = self.stage.mount
        mount.umount()
        shutil.rmtree(mount.cache)
        mount.mount()
        self.compare_trees()

    def close_handles(self) -> None:
        while self.has_handles:
            self.close(0)

    def require_trees_equal(self, ours: dict[str, object], local: dict[str, object]) -> None:
        different = [path for path in sorted({*ours, *local}) if ours.get(path) != local.get(path)]
        self.require_equal(
            {path: ours.get(path) for path in different},
            {path: local.get(path) for path in different},
        )


def _shown(value: object) -> str:
    """The value for the eye: long ones cut."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}… ({len(text)})"


@contextlib.contextmanager
def playing(mount: Mount, base: Path, bucket: str) -> Iterator[type[MountedModel]]:
    """A machine for a bucket of a mount; what it needs besides is made below `base`."""
    with (
        tmpfs(base / "local") as local,
        mounted(mount.uri, base / "other", "attr_timeout=0", "allow_other") as other,
    ):
        stage = Stage(mount, other, local, bucket)
        yield type("Machine", (MountedModel,), {"stage": stage})


def play(machine: type[MountedModel], number: int, examples: int, *, shrinks: bool) -> None:
    """Run so many random plays. Raises what the first difference found raises."""
    phases = [Phase.generate, Phase.shrink] if shrinks else [Phase.generate]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=STEPS_MAX,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(machine), settings=chosen)


def main(words: list[str]) -> None:
    """Play until the time is over."""
    parser = argparse.ArgumentParser(prog="mounted_model", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    add_mount_arguments(parser)
    arguments = parser.parse_args(words)
    arguments.mount_option.append("allow_other")
    until_s = time.monotonic() + 60 * arguments.minutes
    rounds = 0
    with (
        own_mount(arguments) as own,
        playing(own.mount, own.base / "play", own.bucket.name) as machine,
    ):
        run("chmod", "755", own.base)
        while time.monotonic() < until_s:
            print(f"seed {arguments.seed + rounds}", flush=True)
            play(machine, arguments.seed + rounds, EXAMPLES_PER_ROUND, shrinks=True)
            rounds += 1
    print(f"{rounds * EXAMPLES_PER_ROUND} plays, no difference")


if __name__ == "__main__":
    main(sys.argv[1:])
