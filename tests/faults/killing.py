"""Cycles of work in which processes are killed or stopped at random, and what must hold afterwards.

Everything about a cycle follows from its seed: what is done by which process, who is hit, how and
when. How the processes are scheduled does not, so a seed that failed may have to be played again.
"""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mictlanfs.processes import send_signal
from tests.faults.model import Promise
from tests.faults.stage import Stage, Worker, kill_mount
from tests.faults.verifier import fingerprint
from tests.faults.workload import STATUS_FAILED

STEPS_BEFORE = 15
BLOW_AFTER_S_MAX = 1.0
STOPPED_S_MAX = 2.5
# Work goes on for so long when the space is usable again.
AFTER_S = 0.3
# Folders of earlier cycles that stay, and are looked at in each.
KEPT_MAX = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to a space in the middle of its work.

    Attributes:
        promised: for people; docs/reliability.md shows it.
        strike: does it; returns when it is over, so that from then on the space should recover.
        kills_mount: whether the mount of the workloads has to be mounted anew.
        kills_workload: whether one of the workloads is killed, too.
    """

    name: str
    promised: str
    strike: Callable[[Stage, random.Random], None]
    kills_mount: bool = False
    kills_workload: bool = False

    def hits(self, stage: Stage, worker: Worker) -> bool:
        """Whether it takes the mount of a workload away: that of the first mount."""
        return self.kills_mount and worker.mount is stage.mounts[0]

    def promise(self, stage: Stage, worker: Worker) -> Promise:
        """What must be there of a workload afterwards."""
        return Promise.COMMITTED if self.hits(stage, worker) else Promise.ALL


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle has shown."""

    seed: str
    fault: str
    recovery_s: float
    steps: int
    problems: tuple[str, ...]


@dataclass
class Report:
    """What all cycles have shown."""

    cycles: list[Cycle] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people: a line for each fault, and one for each failure."""
        of_fault: dict[str, list[Cycle]] = defaultdict(list)
        for cycle in self.cycles:
            of_fault[cycle.fault].append(cycle)
        lines = [f"{'fault':30} cycles  failed   steps  recovered in   median  longest"]
        for name, cycles in sorted(of_fault.items()):
            times_s = sorted(cycle.recovery_s for cycle in cycles)
            failed = sum(bool(cycle.problems) for cycle in cycles)
            steps = sum(cycle.steps for cycle in cycles)
            lines.append(
                f"{name:30} {len(cycles):6} {failed:7} {steps:7}"
                f" {times_s[0]:10.1f} s {statistics.median(times_s):6.1f} s {times_s[-1]:6.1f} s"
            )
        for cycle in self.cycles:
            lines += [f"seed {cycle.seed} ({cycle.fault}): {p}" for p in cycle.problems]
        return lines


# --- faults --------------------------------------------------------------------------------------


def _kill_router(stage: Stage, chance: random.Random) -> None:
    _kill(stage, ["router"], chance)


def _kill_peer(stage: Stage, chance: random.Random) -> None:
    _kill(stage, [chance.choice(stage.server_names()[1:])], chance)


def _kill_servers(stage: Stage, chance: random.Random) -> None:
    names = stage.server_names()
    _kill(stage, chance.sample(names, chance.randint(2, len(names))), chance)


def _kill(stage: Stage, names: list[str], chance: random.Random) -> None:
    for name in names:
        stage.signal_server(name, signal.SIGKILL)
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0, 0.2))


def _kill_mount(stage: Stage, _: random.Random) -> None:
    kill_mount(stage.mounts[0])


def _kill_mount_and_servers(stage: Stage, chance: random.Random) -> None:
    victims: list[Callable[[Stage, random.Random], None]] = [_kill_mount, _kill_servers]
    chance.shuffle(victims)
    for kill in victims:
        kill(stage, chance)


def _kill_everything(stage: Stage, chance: random.Random) -> None:
    """As when the machine stops: with the supervisor, and started again as after a boot."""
    stage.signal_server("supervisor", signal.SIGKILL)
    _kill(stage, stage.server_names(), chance)
    kill_mount(stage.mounts[0])
    stage.start()


def _stop(stage: Stage, name: str, chance: random.Random) -> None:
    if stage.signal_server(name, signal.SIGSTOP):
        time.sleep(chance.uniform(0.2, STOPPED_S_MAX))
        stage.signal_server(name, signal.SIGCONT)


def _stop_router(stage: Stage, chance: random.Random) -> None:
    _stop(stage, "router", chance)


def _stop_peer(stage: Stage, chance: random.Random) -> None:
    _stop(stage, chance.choice(stage.server_names()[1:]), chance)


def _stop_mount(stage: Stage, chance: random.Random) -> None:
    process = stage.mount_process(stage.mounts[0])
    send_signal(process, signal.SIGSTOP)
    time.sleep(chance.uniform(0.2, STOPPED_S_MAX))
    send_signal(process, signal.SIGCONT)


def _nothing(_: Stage, __: random.Random) -> None:
    """The workload is killed by the cycle itself."""


NOTHING = "nothing is lost, no call fails"
COMMITTED = "what was fsynced is there, and what the router was asked for"

# Drawn as often as their weight says.
FAULTS = (
    (Fault("router killed", NOTHING, _kill_router), 4),
    (Fault("peer killed", NOTHING, _kill_peer), 3),
    (Fault("router and peers killed", NOTHING, _kill_servers), 4),
    (Fault("mount killed", COMMITTED, _kill_mount, kills_mount=True), 5),
    (
        Fault("mount and servers killed", COMMITTED, _kill_mount_and_servers, kills_mount=True),
        4,
    ),
    (Fault("everything killed", COMMITTED, _kill_everything, kills_mount=True), 2),
    (
        Fault(
            "workload killed",
            "all that a program's calls did is there",
            _nothing,
            kills_workload=True,
        ),
        2,
    ),
    (Fault("router stands still", NOTHING, _stop_router), 2),
    (Fault("peer stands still", NOTHING, _stop_peer), 1),
    (Fault("mount stands still", NOTHING, _stop_mount), 1),
)


# --- cycles --------------------------------------------------------------------------------------


class Torture:
    """Plays cycles on a stage.

    Args:
        at_work: numbers of the mounts on which workloads work, one for each.
    """

    def __init__(self, stage: Stage, at_work: Sequence[int] = (0, 0)) -> None:
        self._stage = stage
        self._at_work = at_work
        self._kept: list[tuple[Worker, str]] = []
        self._count = 0

    def play(
        self, seed: str, fault: Fault | None = None, lead_s: float = 0.0, after_s: float = AFTER_S
    ) -> Cycle:
        """One cycle; of a fault that is drawn, or this one.

        Args:
            lead_s, after_s: how long there is work at least before the fault, and after it.
        """
        chance = random.Random(seed)
        if fault is None:
            faults, weights = zip(*FAULTS, strict=True)
            fault = chance.choices(faults, weights)[0]
        self._count += 1
        stage = self._stage
        workers = [
            stage.start_worker(
                f"cycle-{self._count}-{number}", chance.getrandbits(32), stage.mounts[mount]
            )
            for number, mount in enumerate(self._at_work)
        ]
        for worker in workers:
            stage.wait_for_steps(worker, STEPS_BEFORE)
        time.sleep(lead_s + chance.uniform(0, BLOW_AFTER_S_MAX))
        problems: list[str] = []
        fault.strike(stage, chance)
        if fault.kills_workload:
            workers[0].kill()
        recovery_s = self._recover(fault, problems)
        time.sleep(after_s)
        problems += self._end(fault, workers)
        problems += stage.problems([(one, fault.promise(stage, one)) for one in workers])
        problems += self._look_at_kept()
        steps = sum(len(worker.steps()) for worker in workers)
        if not problems:
            # What failed stays as it is, to be looked at.
            self._keep(workers)
        return Cycle(seed, fault.name, recovery_s, steps, tuple(problems))

    def _recover(self, fault: Fault, problems: list[str]) -> float:
        begun_s = time.monotonic()
        if fault.kills_mount:
            self._stage.remount(self._stage.mounts[0])
        try:
            self._stage.wait_until_usable()
        except AssertionError as error:
            problems.append(str(error))
        return time.monotonic() - begun_s

    def _end(self, fault: Fault, workers: list[Worker]) -> list[str]:
        """Let the workloads end; which ended otherwise than they should."""
        found = []
        for index, worker in enumerate(workers):
            if fault.kills_workload and index == 0:
                continue
            status = worker.stop()
            # What had no step under way when its mount died may end well; memory that is mapped
            # from a file of a dead mount gives a signal.
            expected = {STATUS_FAILED, -signal.SIGBUS} if fault.hits(self._stage, worker) else set()
            if status and status not in expected:
                said = worker.errors.read_text(encoding="utf-8").strip()
                found.append(f"{worker.folder}: a call failed ({status}): {said}")
        return found

    def _look_at_kept(self) -> list[str]:
        stage = self._stage
        return [
            f"{worker.folder}: something changed since its cycle ended"
            for worker, known in self._kept
            if fingerprint(stage.folder_of(worker)) != known
        ]

    def _keep(self, workers: list[Worker]) -> None:
        for worker in workers:
            self._kept.append((worker, fingerprint(self._stage.folder_of(worker))))
        while len(self._kept) > KEPT_MAX:
            self._stage.remove(self._kept.pop(0)[0])
