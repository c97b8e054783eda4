"""Random calls of several processes on several mounts, and whether their history makes sense.

Each call is logged with the moments before and after it. A history makes sense (is *linearizable*)
when the calls can be put into one order in which each gives what it gave, and no call comes before
one that had ended when it began. One history is 10,000 calls and more on the same few names.

To find an order of so many, it is cut where no call is under way. What the space may look like
there (there is often one way only, a few when nobody looked) is where the next part begins. Now and
then all processes wait for each other, so that there are such places.

`python -m tests.stateful.history --minutes 10 --seed 7` plays as many histories as fit.

Calls are chosen so that each looks at one name or one descriptor, or sends both names to the mount;
Linux itself finds several names one after the other. What is allowed besides:

- What is done with a descriptor of a file that has no name any more may end in any way: another
  mount may have removed it.
- Opening says ESTALE when the name came to stand for another file twice meanwhile.
- What names a directory says ESTALE when another mount moved that meanwhile, and something is being
  renamed on this one: Linux, which has a lock for that, cannot take note of it (`__d_unalias`).
- A read gives what a process on the same mount is writing just then, also when others see the bytes
  of before a moment later: Linux puts what is written into its page cache and asks the mount then.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from tests.support.spaces import Mount, running_space, several_mounted

MOUNTS = 3
PROCESSES_PER_MOUNT = 2
# So often all processes wait for each other, in calls of each.
CALLS_PER_STRETCH = 12
# Which makes a history of more than 10,000 calls.
STRETCHES = 140
RUN_TIMEOUT_S = 3600.0
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


def play(
    number: int, root: Path, stretches: int, seed: int, barrier: Barrier, results: Queue[object]
) -> None:
    """One process: its calls, all of one history."""
    chance = random.Random(f"{seed} {number}")
    caller = Caller(root)
    calls: list[Call] = []
    try:
        for _ in range(stretches):
            barrier.wait(RUN_TIMEOUT_S)
            for _ in range(CALLS_PER_STRETCH):
                unique = f"{number:02d}{len(calls):06d}"
                calls.append(caller.do(*drawn(chance, caller, unique)))
        if caller.fd is not None:
            calls.append(caller.do("close", ()))
        results.put((number, calls))
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
        content: node and bytes, of those that have a name.
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
    # Of what has no name any more nobody can tell the content, see above.
    used = frozenset(names.values())
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


Histories = Sequence[Sequence[Call]]


def start_of(histories: Histories) -> State:
    """An empty tree, and nothing open."""
    return State(frozenset(), frozenset(), (-1,) * len(histories))


def possible_ends(
    histories: Histories, starts: Iterable[State], firsts: Sequence[int] | None = None
) -> Iterator[State]:
    """The states that the calls of several processes, each in its order, can end in; none twice.

    The search of Wing and Gong, with the states that were tried remembered.

    Args:
        starts: the states that they can begin in.
        firsts: a number for the first call of each process; following ones must be free too.
    """
    if firsts is None:
        firsts = [sum(map(len, histories[:number])) for number in range(len(histories))]
    ends: set[State] = set()
    tried: set[tuple[tuple[int, ...], State]] = set()
    waiting = [((0,) * len(histories), start) for start in starts]
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
            if state not in ends:
                ends.add(state)
                yield state
            continue
        for process, call in pending:
            if call.begun_ns > first_end_ns:
                continue
            # Zero is a directory.
            following = after(state, process, call, 1 + firsts[process] + done[process])
            if following is not None:
                moved = (*done[:process], done[process] + 1, *done[process + 1 :])
                waiting.append((moved, following))


def is_linearizable(histories: Histories, starts: Iterable[State] | None = None) -> bool:
    """Whether the calls of several processes, each in its order, make sense together."""
    begun = [start_of(histories)] if starts is None else starts
    return any(True for _ in possible_ends(histories, begun))


def without_early_reads(histories: Histories, mounts: int = MOUNTS) -> list[list[Call]]:
    """The history without the results of reads that only Linux can answer for, see above.

    Process `n` works on mount `n % mounts`.
    """
    writes = {
        call.words[0]: (process, call)
        for process, calls in enumerate(histories)
        for call in calls
        if call.verb == "write"
    }

    def is_early(process: int, call: Call) -> bool:
        if call.verb != "read" or call.result not in writes:
            return False
        writer, write = writes[call.result]
        is_beside = writer != process and writer % mounts == process % mounts
        return is_beside and write.begun_ns < call.ended_ns and call.begun_ns < write.ended_ns

    return [
        [replace(call, result=None) if is_early(process, call) else call for call in calls]
        for process, calls in enumerate(histories)
    ]


def parts_of(histories: Histories) -> Iterator[list[list[Call]]]:
    """The parts of a history, cut wherever no call is under way."""
    calls = sorted(
        (call.begun_ns, call.ended_ns, process)
        for process, calls in enumerate(histories)
        for call in calls
    )
    done = [0] * len(histories)
    taken = list(done)
    last_end_ns = -1
    for begun_ns, ended_ns, process in calls:
        if begun_ns > last_end_ns and taken != done:
            yield [list(calls[a:b]) for calls, a, b in zip(histories, done, taken, strict=True)]
            done = list(taken)
        taken[process] += 1
        last_end_ns = max(last_end_ns, ended_ns)
    yield [list(calls[a:b]) for calls, a, b in zip(histories, done, taken, strict=True)]


@dataclass(frozen=True)
class Verdict:
    """What was found of one history.

    Attributes:
        parts: how many it was cut into, up to the one that makes no sense.
        states_max: the largest number of states that are possible at a cut.
        wrong: the beginning of the part that makes no sense; None: everything does.
    """

    parts: int
    states_max: int
    wrong: list[list[Call]] | None = None


def judge(histories: Histories) -> Verdict:
    """See whether a long history makes sense from its beginning to its end."""
    histories = without_early_reads(histories)
    states = [start_of(histories)]
    total = sum(map(len, histories))
    # Numbers of calls, and of the files that they make: other ones for each process.
    firsts = [process * total for process in range(len(histories))]
    parts, states_max = 0, 1
    for parts, part in enumerate(parts_of(histories), 1):
        ends = list(possible_ends(part, states, firsts))
        if not ends:
            return Verdict(parts, states_max, shortened(part, states))
        states, states_max = ends, max(states_max, len(ends))
        firsts = [first + len(calls) for first, calls in zip(firsts, part, strict=True)]
    return Verdict(parts, states_max)


def shortened(histories: Histories, starts: Sequence[State] | None = None) -> list[list[Call]]:
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
        if not is_linearizable(beginning, starts):
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
    """What one history was like.

    Attributes:
        stale: how many calls on names said ESTALE. A descriptor may: its file may have no name.
        slowest_ms: of the calls.
        wrong: the part that makes no sense, for the eye; empty: there is none.
    """

    calls: int
    stale: int
    slowest_ms: float
    verdict: Verdict
    wrong: str = ""


def run_history(mounts: Sequence[Mount], bucket: str, stretches: int, seed: int) -> Run:
    """Play one history with all mounts and judge it."""
    for folder in FOLDERS:
        (mounts[0].path / bucket / folder).mkdir(parents=True)
    count = len(mounts) * PROCESSES_PER_MOUNT
    barrier, results = _processes.Barrier(count), _processes.Queue()
    processes = []
    for number in range(count):
        root = mounts[number % len(mounts)].path / bucket
        arguments = (number, root, stretches, seed, barrier, results)
        process = _processes.Process(target=play, args=arguments, daemon=True)
        process.start()
        processes.append(process)
    found = dict(results.get(timeout=RUN_TIMEOUT_S) for _ in processes)
    for process in processes:
        process.join()
    failures = [said for said in found.values() if isinstance(said, str)]
    assert not failures, failures
    histories: list[list[Call]] = [found[number] for number in range(count)]
    calls = [call for calls in histories for call in calls]
    verdict = judge(histories)
    return Run(
        len(calls),
        sum(call.result == "ESTALE" and call.verb not in VERBS_ON_DESCRIPTORS for call in calls),
        max(call.ended_ns - call.begun_ns for call in calls) / 1e6,
        verdict,
        f"seed {seed}:\n{shown(verdict.wrong)}" if verdict.wrong is not None else "",
    )


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
    parser.add_argument("--stretches", type=int, default=STRETCHES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    until_s = time.monotonic() + 60 * arguments.minutes
    calls = 0
    with _own_mounts() as mounts:
        for seed in range(arguments.seed, 2**63):
            found = run_history(mounts, f"run-{seed}", arguments.stretches, seed)
            calls += found.calls
            print(
                f"seed {seed}: {found.calls} calls in {found.verdict.parts} parts, at most"
                f" {found.slowest_ms:.0f} ms and {found.verdict.states_max} states",
                flush=True,
            )
            if found.wrong:
                sys.exit(found.wrong)
            if time.monotonic() > until_s:
                break
    print(f"{calls} calls, all in some order")


if __name__ == "__main__":
    main(sys.argv[1:])
