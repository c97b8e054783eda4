"""Random calls of several processes on several mounts, and whether their history makes sense.

Each call is logged with the moments before and after it. A history makes sense (is *linearizable*)
when the calls can be put into one order in which each gives what it gave, and no call comes before
one that had ended when it began. Rounds are independent, each in a directory of its own, so that
the search for such an order is short.

`python -m tests.stateful.history --minutes 10 --seed 7` runs for longer than the tests do.

Calls are chosen so that each looks at one name or one descriptor, or sends both names to the mount;
Linux itself finds several names one after the other. What is allowed besides:

- What is done with a descriptor of a file that has no name any more may end in any way: another
  mount may have removed it.
- Opening says ESTALE when the name came to stand for another file twice meanwhile.
- What names a directory says ESTALE when another mount moved that meanwhile, and something is being
  renamed on this one: Linux, which has a lock for that, cannot take note of it (`__d_unalias`).
- A rename is a success without an effect when Linux found the same file under both names, one after
  the other.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import multiprocessing
import os
import random
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from tests.support.spaces import Mount, running_space, several_mounted

MOUNTS = 3
PROCESSES_PER_MOUNT = 2
CALLS_PER_ROUND = 12
ROUNDS_PER_RUN = 100
RUN_TIMEOUT_S = 600.0
# Where names are moved from and to; both stay.
FOLDERS = ("p", "q")
FILES = ("p/a", "p/b", "q/a")
DIRECTORIES = ("p/d", "q/d")
# Drawn as often as they are named.
VERBS_ON_NAMES = (
    "create", "create", "open", "open", "stat", "unlink",
    "rename", "list", "mkdir", "rmdir", "move",
)  # fmt: skip
VERBS_ON_DESCRIPTORS = frozenset({"write", "read", "cut", "size"})
LENGTH = 8
# When a call ends that has not ended.
NEVER_NS = 1 << 63
_processes = multiprocessing.get_context("spawn")

Result = object


@dataclass(frozen=True)
class Call:
    """One system call and what it gave.

    Attributes:
        words: what it was called with.
        result: what it returned, or the name of its errno; None: it has not ended.
        begun_ns, ended_ns: by the monotonic clock, which all processes share.
    """

    verb: str
    words: tuple[str, ...]
    result: Result
    begun_ns: int
    ended_ns: int

    def __str__(self) -> str:
        return f"{self.begun_ns} {self.ended_ns} {self.verb}{self.words} -> {self.result!r}"


# --- doing it ------------------------------------------------------------------------------------


class Caller:
    """The calls, in one directory; one descriptor at most is open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fd: int | None = None

    def do(self, verb: str, words: tuple[str, ...]) -> Call:
        """Call and log."""
        begun_ns = time.monotonic_ns()
        try:
            result = getattr(self, verb)(*words)
        except OSError as error:
            result = errno.errorcode[error.errno or errno.EIO]
        return Call(verb, words, result, begun_ns, time.monotonic_ns())

    def create(self, path: str) -> str:
        self.fd = os.open(self.root / path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        return "ok"

    def open(self, path: str) -> str:
        self.fd = os.open(self.root / path, os.O_RDWR)
        return "ok"

    def close(self) -> str:
        assert self.fd is not None
        fd, self.fd = self.fd, None
        os.close(fd)
        return "ok"

    def write(self, text: str) -> int:
        assert self.fd is not None
        return os.pwrite(self.fd, text.encode("ascii"), 0)

    def read(self) -> str:
        assert self.fd is not None
        return os.pread(self.fd, 2 * LENGTH, 0).decode("ascii")

    def cut(self) -> str:
        assert self.fd is not None
        os.ftruncate(self.fd, 0)
        return "ok"

    def size(self) -> int:
        assert self.fd is not None
        return os.fstat(self.fd).st_size

    def stat(self, path: str) -> str:
        return "directory" if stat.S_ISDIR((self.root / path).stat().st_mode) else "file"

    def unlink(self, path: str) -> str:
        os.unlink(self.root / path)
        return "ok"

    def rename(self, old: str, new: str) -> str:
        os.rename(self.root / old, self.root / new)
        return "ok"

    def mkdir(self, path: str) -> str:
        os.mkdir(self.root / path)
        return "ok"

    def rmdir(self, path: str) -> str:
        os.rmdir(self.root / path)
        return "ok"

    def list(self, path: str) -> tuple[str, ...]:
        return tuple(sorted(os.listdir(self.root / path)))


def drawn(chance: random.Random, caller: Caller, unique: str) -> tuple[str, tuple[str, ...]]:
    """The next call of a caller; what it writes is `unique`."""
    if caller.fd is not None:
        verb = chance.choice(["write", "write", "read", "read", "cut", "size", "close", "close"])
        return verb, (unique,) if verb == "write" else ()
    verb = chance.choice(VERBS_ON_NAMES)
    names: tuple[str, ...] = DIRECTORIES if verb in {"mkdir", "rmdir", "move"} else FILES
    if verb == "stat":
        names = FILES + DIRECTORIES
    if verb == "list":
        names = FOLDERS
    if verb in {"rename", "move"}:
        old, new = chance.sample(names, 2)
        return "rename", (old, new)
    return verb, (chance.choice(names),)


def play_rounds(
    number: int, roots: Sequence[Path], seed: int, barrier: Barrier, results: Queue[object]
) -> None:
    """One process: the same rounds as all others, each begun together."""
    chance = random.Random(f"{seed} {number}")
    rounds = []
    try:
        for index, root in enumerate(roots):
            caller = Caller(root)
            barrier.wait(RUN_TIMEOUT_S)
            calls = []
            for step in range(CALLS_PER_ROUND):
                unique = f"{index % 1000:03d}{number:02d}{step:03d}"
                calls.append(caller.do(*drawn(chance, caller, unique)))
            if caller.fd is not None:
                calls.append(caller.do("close", ()))
            rounds.append(calls)
        results.put((number, rounds))
    except BaseException as error:
        barrier.abort()
        results.put((number, f"{type(error).__name__}: {error}"))
        raise


# --- judging it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What the model knows between two calls. Nodes have numbers; 0 is a directory.

    Attributes:
        names: path and node.
        content: node and bytes, of those that have a name or a descriptor.
        open_nodes: what each process has open; -1: nothing.
    """

    names: frozenset[tuple[str, int]]
    content: frozenset[tuple[int, str]]
    open_nodes: tuple[int, ...]


def after(state: State, process: int, call: Call, fresh: int) -> State | None:
    """The state after a call, `fresh` being the number of the node it makes; None: not possible."""
    names, content = dict(state.names), dict(state.content)
    opened = state.open_nodes[process]
    if call.verb in {"open", "stat"} and call.result == "ESTALE":
        return state
    if call.verb in VERBS_ON_NAMES and call.result == "ESTALE" and call.words[0] in DIRECTORIES:
        return state
    if call.verb in VERBS_ON_DESCRIPTORS:
        if opened not in names.values():
            return state
        expected = _done_with_descriptor(content, opened, call)
    elif call.verb == "close":
        expected, opened = "ok", -1
    else:
        expected, opened = _done_with_names(names, content, opened, call, fresh)
    if call.result is not None and expected != call.result:
        return None
    open_nodes = (*state.open_nodes[:process], opened, *state.open_nodes[process + 1 :])
    used = {*names.values(), *open_nodes}
    kept = frozenset(item for item in content.items() if item[0] in used)
    return State(frozenset(names.items()), kept, open_nodes)


def _done_with_descriptor(content: dict[int, str], node: int, call: Call) -> Result:
    if call.verb == "write":
        (content[node],) = call.words
        return LENGTH
    if call.verb == "cut":
        content[node] = ""
        return "ok"
    return content[node] if call.verb == "read" else len(content[node])


def _done_with_names(
    names: dict[str, int], content: dict[int, str], opened: int, call: Call, fresh: int
) -> tuple[Result, int]:
    """Apply to `names` and `content`; returns the result and what is open afterwards."""
    path = call.words[0]
    is_there = path in names
    if call.verb == "list":
        inside = (name.partition("/")[2] for name in names if name.startswith(f"{path}/"))
        return tuple(sorted(inside)), opened
    if call.verb in {"create", "mkdir"}:
        if is_there:
            return "EEXIST", opened
        names[path] = 0 if call.verb == "mkdir" else fresh
        if call.verb == "mkdir":
            return "ok", opened
        content[fresh] = ""
        return "ok", fresh
    if not is_there:
        is_same = call.verb == "rename" and call.result == "ok" and call.words[1] in names
        return "ok" if is_same else "ENOENT", opened
    if call.verb == "open":
        return "ok", names[path]
    if call.verb == "stat":
        return "file" if names[path] else "directory", opened
    node = names.pop(path)
    if call.verb == "rename":
        names[call.words[1]] = node
    return "ok", opened


def is_linearizable(histories: Sequence[Sequence[Call]]) -> bool:
    """Whether the calls of several processes, each in its order, make sense together.

    The search of Wing and Gong, with the states that were tried remembered.
    """
    start = State(frozenset(), frozenset(), (-1,) * len(histories))
    tried: set[tuple[tuple[int, ...], State]] = set()
    waiting = [((0,) * len(histories), start)]
    firsts = [1 + sum(map(len, histories[:number])) for number in range(len(histories))]
    while waiting:
        done, state = waiting.pop()
        if (done, state) in tried:
            continue
        tried.add((done, state))
        pending = [
            (process, histories[process][count])
            for process, count in enumerate(done)
            if count < len(histories[process])
        ]
        first_end_ns = min((call.ended_ns for _, call in pending), default=NEVER_NS)
        if first_end_ns == NEVER_NS:
            return True
        for process, call in pending:
            if call.begun_ns > first_end_ns:
                continue
            following = after(state, process, call, firsts[process] + done[process])
            if following is not None:
                moved = (*done[:process], done[process] + 1, *done[process + 1 :])
                waiting.append((moved, following))
    return False


def shortened(histories: Sequence[Sequence[Call]]) -> list[list[Call]]:
    """The beginning of a history that makes no sense, up to the end of a call that cannot be."""
    ends_ns = sorted(call.ended_ns for calls in histories for call in calls)
    beginning: list[list[Call]] = []
    for ended_ns in ends_ns:
        beginning = [
            [
                call if call.ended_ns <= ended_ns else replace(call, result=None, ended_ns=NEVER_NS)
                for call in calls
                if call.begun_ns <= ended_ns
            ]
            for calls in histories
        ]
        if not is_linearizable(beginning):
            break
    return beginning


def shown(histories: Sequence[Sequence[Call]]) -> str:
    """All calls in the order in which they began."""
    start_ns = min(call.begun_ns for calls in histories for call in calls)
    lines = [
        (call.begun_ns, f"{process}: {(call.begun_ns - start_ns) / 1e6:9.3f}"
         f" {(call.ended_ns - start_ns) / 1e6:9.3f} ms  {call.verb}{call.words} {call.result!r}")
        for process, calls in enumerate(histories)
        for call in calls
    ]  # fmt: skip
    return "\n".join(line for _, line in sorted(lines))


# --- a run ---------------------------------------------------------------------------------------


@dataclass
class Run:
    """What one run has found.

    Attributes:
        stale: how many calls on names said ESTALE. A descriptor may: its file may have no name.
        slowest_ms: of the calls.
        wrong: rounds that make no sense, for the eye.
    """

    calls: int = 0
    stale: int = 0
    slowest_ms: float = 0.0
    wrong: list[str] = field(default_factory=list)


def run_histories(mounts: Sequence[Mount], bucket: str, rounds: int, seed: int) -> Run:
    """Play so many rounds with all mounts and judge each."""
    for index in range(rounds):
        for folder in FOLDERS:
            (mounts[0].path / bucket / f"{index}" / folder).mkdir(parents=True)
    count = len(mounts) * PROCESSES_PER_MOUNT
    barrier, results = _processes.Barrier(count), _processes.Queue()
    processes = []
    for number in range(count):
        base = mounts[number % len(mounts)].path / bucket
        roots = [base / f"{index}" for index in range(rounds)]
        process = _processes.Process(
            target=play_rounds, args=(number, roots, seed, barrier, results), daemon=True
        )
        process.start()
        processes.append(process)
    found = dict(results.get(timeout=RUN_TIMEOUT_S) for _ in processes)
    for process in processes:
        process.join()
    failures = [said for said in found.values() if isinstance(said, str)]
    assert not failures, failures
    run = Run()
    for index in range(rounds):
        histories = [found[number][index] for number in range(count)]
        run.calls += sum(map(len, histories))
        run.stale += sum(
            call.result == "ESTALE" and call.verb not in VERBS_ON_DESCRIPTORS
            for calls in histories
            for call in calls
        )
        took_ns = (call.ended_ns - call.begun_ns for calls in histories for call in calls)
        run.slowest_ms = max(run.slowest_ms, max(took_ns) / 1e6)
        if not is_linearizable(histories):
            run.wrong.append(f"seed {seed}, round {index}:\n{shown(shortened(histories))}")
    return run


@contextlib.contextmanager
def _own_mounts() -> Iterator[list[Mount]]:
    with (
        tempfile.TemporaryDirectory(prefix="mictlanfs-history-") as folder,
        running_space(Path(folder) / "data") as space,
        several_mounted(space.uri, Path(folder), MOUNTS) as mounts,
    ):
        yield mounts


def main(words: list[str]) -> None:
    """Play until the time is over."""
    parser = argparse.ArgumentParser(prog="history", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = parser.parse_args(words)
    until_s = time.monotonic() + 60 * arguments.minutes
    calls = 0
    with _own_mounts() as mounts:
        for seed in range(arguments.seed, 2**63):
            found = run_histories(mounts, f"run-{seed}", ROUNDS_PER_RUN, seed)
            calls += found.calls
            print(
                f"seed {seed}: {found.calls} calls, at most {found.slowest_ms:.0f} ms", flush=True
            )
            if found.wrong:
                sys.exit("\n\n".join(found.wrong))
            if time.monotonic() > until_s:
                break
    print(f"{calls} calls, all in some order")


if __name__ == "__main__":
    main(sys.argv[1:])
