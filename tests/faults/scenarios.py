"""Faults that are told step by step: full disks, bad links, damaged and lost data, partitions.

Each is a function that plays one on a space of its own and returns how long the space took to be
usable again, or raises. What it shows stands in docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults import namespaces
from tests.faults.badlink import Link, bad_link
from tests.faults.journal import body
from tests.faults.loose import LooseStage, fill, make_bucket, open_loose, small_disk
from tests.faults.model import Promise
from tests.faults.stage import BUCKET, USABLE_WITHIN_S, Worker
from tests.support.spaces import MICTLANFS, Mount, free_ports, is_mounted, run, wait_until

# A peer keeps 256 MiB of its disk free for its index; a router keeps nothing.
PEER_DISK, ROUTER_DISK = "300M", "24M"
STEPS_BEFORE = 25
BAD_S = 4.0
SEED = 7
# Enough for some chunks on each peer.
MANY_SIZE_BYTES = 3_000_000
# Of peers that were destroyed, beside the 10 s after which a silent one is down.
HEAL_DELAY_S = 2.0
WHOLE_S = 120.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault.

    Attributes:
        promised: for people; docs/reliability.md shows it.
        play: in a folder of its own; returns the seconds of recovery.
    """

    name: str
    promised: str
    play: Callable[[Path], float]


def _worked(stage: LooseStage, name: str = "work", mount: Mount | None = None) -> Worker:
    """A workload that has begun."""
    worker = stage.start_worker(name, SEED, mount)
    stage.wait_for_steps(worker, STEPS_BEFORE)
    return worker


def _assert_all_kept(stage: LooseStage, worker: Worker) -> None:
    """End a workload that must not have met an error, and look at everything it did."""
    assert worker.stop() == 0, worker.errors.read_text(encoding="utf-8")
    problems = stage.problems([(worker, Promise.ALL)])
    assert not problems, problems


# --- full disks ----------------------------------------------------------------------------------


def a_peer_is_full(base: Path) -> float:
    """Others take what is written; nobody meets an error."""
    with small_disk(base / "data" / "peer-0", PEER_DISK) as disk, open_loose(base) as stage:
        worker = _worked(stage)
        filler = fill(disk)
        stage.wait_for_steps(worker, len(worker.steps()) + 60)
        filler.unlink()
        recovery_s = stage.wait_until_usable()
        _assert_all_kept(stage, worker)
    return recovery_s


def all_peers_are_full(base: Path) -> float:
    """A program that stores hears ENOSPC. What it had written is stored when there is room."""
    with contextlib.ExitStack() as stack:
        disks = [
            stack.enter_context(small_disk(base / "data" / f"peer-{n}", PEER_DISK))
            for n in range(3)
        ]
        stage = stack.enter_context(open_loose(base))
        worker = _worked(stage)
        _assert_all_kept(stage, worker)
        _assert_refused_then_kept(stage, disks, 300_000)
        problems = stage.problems([(worker, Promise.ALL)])
        assert not problems, problems
        return stage.wait_until_usable()


def the_router_is_full(base: Path) -> float:
    """The same, of the disk with the metadata."""
    with small_disk(base / "data" / "router", ROUTER_DISK) as disk, open_loose(base) as stage:
        worker = _worked(stage)
        _assert_all_kept(stage, worker)
        _assert_refused_then_kept(stage, [disk], 5_000)
        problems = stage.problems([(worker, Promise.ALL)])
        assert not problems, problems
        return stage.wait_until_usable()


def the_router_is_killed_while_full(base: Path) -> float:
    """It starts again when there is room, with all that was promised."""
    with small_disk(base / "data" / "router", ROUTER_DISK) as disk, open_loose(base) as stage:
        worker = _worked(stage)
        filler = fill(disk)
        time.sleep(1)
        stage.kill("router")
        filler.unlink()
        stage.start_router()
        recovery_s = stage.wait_until_usable()
        # It may have been refused something.
        is_whole = worker.stop() == 0
        problems = stage.problems([(worker, Promise.ALL if is_whole else Promise.COMMITTED)])
        assert not problems, problems
    return recovery_s


def _assert_refused_then_kept(stage: LooseStage, disks: list[Path], size: int) -> None:
    """Fill disks, write to a file that is there, and make room again."""
    wanted = os.urandom(size)
    path = stage.mounts[0].path / BUCKET / "refused"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        # A name that is refused is lost, as is said: so it is made before.
        os.fsync(descriptor)
        fillers = [fill(disk) for disk in disks]
        os.pwrite(descriptor, wanted, 0)
        _expect(errno.ENOSPC, lambda: os.fsync(descriptor))
        for filler in fillers:
            filler.unlink()
        wait_until(lambda: _is_synced(descriptor), "what was refused is stored")
    finally:
        os.close(descriptor)
    for mount in stage.mounts:
        assert (mount.path / BUCKET / "refused").read_bytes() == wanted


def _expect(code: int, call: Callable[[], object]) -> None:
    try:
        call()
    except OSError as error:
        found = error.errno
    else:
        found = 0
    assert found == code, f"{found}, not {errno.errorcode[code]}"


def _is_synced(descriptor: int) -> bool:
    try:
        os.fsync(descriptor)
    except OSError:
        return False
    return True


# --- links ---------------------------------------------------------------------------------------


def _with_bad_link(base: Path, of_router: bool, link: Link) -> float:
    ports = free_ports(4)
    with bad_link(ports[0] if of_router else ports[1]) as bad:
        advertised = {} if of_router else {0: bad.port}
        seen_at = bad.port if of_router else 0
        with open_loose(
            base,
            ports=ports,
            advertised=advertised,
            router_seen_at=seen_at,
            mount_options=("noshort_circuit",),
        ) as stage:
            worker = _worked(stage)
            bad.link = link
            time.sleep(BAD_S)
            if not of_router:
                # Others have what the peer has: work goes on meanwhile.
                stage.wait_until_usable()
            if link is Link.CUT_IN_BODIES:
                assert worker.stop() == 0, worker.errors.read_text(encoding="utf-8")
                stage.mounts[1].remount_cold()
                problems = worker.problems(stage.mounts[1], Promise.ALL)
                assert not problems, problems
                assert bad.cut_count > 0
            bad.link = Link.GOOD
            recovery_s = stage.wait_until_usable()
            _assert_all_kept(stage, worker)
    return recovery_s


# --- damaged and lost data -----------------------------------------------------------------------


def chunk_files(peer: Path) -> list[Path]:
    """The chunk files of a peer."""
    return sorted(path for path in (peer / "chunks").glob("??/*") if path.is_file())


def flip_bit(path: Path, chance: random.Random) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        offset = chance.randrange(path.stat().st_size)
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << chance.randrange(8))]))


def _with_damage(base: Path, damage: Callable[[Path], None]) -> float:
    """Damage every chunk file of a peer: readers get the right bytes from another one."""
    with open_loose(base) as stage:
        worker = _worked(stage)
        _assert_all_kept(stage, worker)
        many = stage.mounts[0].path / BUCKET / "many"
        many.write_bytes(body(SEED, MANY_SIZE_BYTES))
        for mount in stage.mounts:
            mount.umount()
            shutil.rmtree(mount.cache)
        files = chunk_files(stage.data / "peer-0")
        assert len(files) > 3
        for path in files:
            damage(path)
        for mount in stage.mounts:
            mount.mount()
        begun_s = time.monotonic()
        for mount in stage.mounts:
            found = (mount.path / BUCKET / "many").read_bytes()
            assert found == body(SEED, MANY_SIZE_BYTES)
        problems = stage.problems([(worker, Promise.ALL)])
        assert not problems, problems
        return time.monotonic() - begun_s


def every_chunk_file_of_a_peer_has_a_flipped_bit(base: Path) -> float:
    """Readers get the right bytes from another copy."""
    chance = random.Random(SEED)
    return _with_damage(base, lambda path: flip_bit(path, chance))


def every_chunk_file_of_a_peer_is_deleted(base: Path) -> float:
    """The same."""
    return _with_damage(base, Path.unlink)


def every_chunk_file_of_a_peer_is_cut_short(base: Path) -> float:
    """The same."""
    return _with_damage(base, lambda path: os.truncate(path, path.stat().st_size // 2))


def a_peer_loses_its_directory(base: Path) -> float:
    """While it is used; the peer comes back empty. No error reaches the workload."""
    with open_loose(base) as stage:
        worker = _worked(stage)
        stage.kill("peer-0")
        shutil.rmtree(stage.data / "peer-0")
        stage.wait_for_steps(worker, len(worker.steps()) + 20)
        stage.start_peer(0)
        recovery_s = stage.wait_until_usable()
        stage.wait_for_peers(3)
        _assert_all_kept(stage, worker)
    return recovery_s


# --- peers that are lost for good -----------------------------------------------------------------


def _with_destroyed(base: Path, policy: Sequence[str], peers: int, lost: Sequence[int]) -> float:
    """Lose peers for good during work; work goes on, and all copies are back on those left.

    Then as many others are lost at once: what the first had is read from the new copies.
    """
    with open_loose(
        base,
        peers=peers,
        policy=policy,
        router_options=("--heal-delay", str(HEAL_DELAY_S)),
        mount_options=("noshort_circuit", "memory=64M", "cache_size=16M"),
    ) as stage:
        worker = _worked(stage)
        many = stage.mounts[0].path / BUCKET / "many"
        many.write_bytes(body(SEED, MANY_SIZE_BYTES))
        with _reading(stage.mounts[1].path / BUCKET / "many") as errors:
            begun_s = time.monotonic()
            for number in lost:
                _destroy(stage, number)
            wait_until(
                lambda: _has_all_copies(stage, peers - len(lost)), "redundancy is back", WHOLE_S
            )
            recovery_s = time.monotonic() - begun_s
            stage.wait_for_steps(worker, len(worker.steps()) + STEPS_BEFORE)
        assert not errors, errors
        assert worker.stop() == 0, worker.errors.read_text(encoding="utf-8")
        wait_until(lambda: _has_all_copies(stage, peers - len(lost)), "the rest is whole", WHOLE_S)
        left = [number for number in range(peers) if number not in lost]
        for number in left[: len(lost)]:
            _destroy(stage, number)
        for mount in stage.mounts:
            mount.remount_cold()
            assert (mount.path / BUCKET / "many").read_bytes() == body(SEED, MANY_SIZE_BYTES)
        problems = stage.problems([(worker, Promise.ALL)])
        assert not problems, problems
    return recovery_s


def _destroy(stage: LooseStage, number: int) -> None:
    stage.kill(f"peer-{number}")
    shutil.rmtree(stage.data / f"peer-{number}")


def _has_all_copies(stage: LooseStage, up_count: int) -> bool:
    """Whether the loss was noticed, and no chunk is short of copies on peers that are up."""
    told = stage.told()
    states = [peer["state"] for peer in told.get("peers", [])]
    if states.count("up") != up_count or states.count("down") != len(states) - up_count:
        return False
    short = told["upkeep"]["short_count"] + told["under_replicated_count"]
    return not short and not told["lost_count"]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[list[str]]:
    """Read a file again and again, past the caches of the kernel; what went wrong."""
    errors: list[str] = []
    is_over = threading.Event()

    def read_on() -> None:
        while not is_over.is_set():
            try:
                with path.open("rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    if file.read() != body(SEED, MANY_SIZE_BYTES):
                        errors.append("read something else")
            except OSError as error:
                errors.append(str(error))
            time.sleep(0.1)

    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        yield errors
    finally:
        is_over.set()
        thread.join()


def one_of_four_peers_is_destroyed(base: Path) -> float:
    """Two copies: no error reaches a program, and the copies are back without being asked for."""
    return _with_destroyed(base, ("--replicas", "2"), 4, (1,))


def two_of_seven_peers_are_destroyed(base: Path) -> float:
    """A code of 3+2: the same."""
    return _with_destroyed(base, ("--code", "3+2"), 7, (1, 4))


# --- partitions ----------------------------------------------------------------------------------

HOSTS = ("router", "peer-0", "peer-1", "peer-2", "host-0", "host-1")


@contextlib.contextmanager
def on_machines(base: Path) -> Iterator[LooseStage]:
    """A space whose servers and mounts each have a network namespace."""
    with namespaces.machines(*HOSTS) as machines:
        mounts = []
        for number in range(2):
            own = base / f"mount-{number}"
            host = MachineMount("", own / "mnt", own / "cache", ("noshort_circuit",))
            host.words = machines.words(f"host-{number}")
            mounts.append(host)
        data = base / "data"
        data.mkdir()
        ports = (12_000, 12_001, 12_002, 12_003)
        stage = LooseStage(base, data, [*mounts], ports=ports, machines=machines)
        try:
            stage.start_router()
            for number in range(3):
                stage.start_peer(number)
            stage.wait_for_peers(3)
            for mount in mounts:
                mount.uri = stage.uri(ports[0])
                mount.mount()
            make_bucket(stage)
            yield stage
        finally:
            for name in HOSTS:
                machines.join(name)
            stage.end()


class MachineMount(Mount):
    """A mount whose process runs on another machine."""

    words: list[str]

    def mount(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        options = ",".join([f"cache_dir={self.cache}", *self.options])
        run(*self.words, MICTLANFS, "mount", self.uri, self.path, "-o", options)
        assert is_mounted(self.path)


def _with_cut_off(base: Path, name: str) -> float:
    with on_machines(base) as stage:
        assert stage.machines is not None
        worker = _worked(stage)
        stage.machines.cut_off(name)
        time.sleep(BAD_S)
        stage.machines.join(name)
        recovery_s = stage.wait_until_usable()
        _assert_all_kept(stage, worker)
    return recovery_s


def a_mount_is_cut_off_while_another_wants_its_files(base: Path) -> float:
    """It loses its session: what was fsynced is there, the other goes on in time, both do later."""
    with on_machines(base) as stage:
        assert stage.machines is not None
        worker = _worked(stage)
        stage.machines.cut_off("host-0")
        time.sleep(1.0)
        begun_s = time.monotonic()
        problems = worker.problems(stage.mounts[1], Promise.SYNCED)
        waited_s = time.monotonic() - begun_s
        assert not problems, problems
        assert waited_s < USABLE_WITHIN_S
        # What it did since then may be lost, of which it would not know.
        worker.kill()
        stage.machines.join("host-0")
        recovery_s = stage.wait_until_usable()
        problems = stage.problems([(worker, Promise.SYNCED)])
        assert not problems, problems
    return max(waited_s, recovery_s)


NO_CALL_FAILS = "nothing is lost, no call fails"
FROM_ANOTHER = "right bytes from another copy, never wrong ones"
WHOLE_AGAIN = "no call fails; all copies are back on other peers without being asked for"

SCENARIOS = (
    Scenario("a peer's disk is full", "others take the data, no call fails", a_peer_is_full),
    Scenario(
        "all peers' disks are full",
        "`fsync` says ENOSPC; what was refused is stored when there is room",
        all_peers_are_full,
    ),
    Scenario(
        "the router's disk is full",
        "the same; a *name* that is refused is lost, and the next `fsync` says so",
        the_router_is_full,
    ),
    Scenario(
        "the router is killed while its disk is full",
        "what was promised is there when there is room",
        the_router_is_killed_while_full,
    ),
    *(
        Scenario(
            f"the link to {'the router' if of_router else 'a peer'} {link.name}",
            "no call fails within the deadline of the mount" if of_router else NO_CALL_FAILS,
            partial(_with_bad_link, of_router=of_router, link=link),
        )
        for of_router in (False, True)
        for link in (Link.SLOW, Link.SILENT, Link.CUT, Link.CUT_IN_BODIES)
    ),
    Scenario("flipped bits on a peer", FROM_ANOTHER, every_chunk_file_of_a_peer_has_a_flipped_bit),
    Scenario("deleted chunk files of a peer", FROM_ANOTHER, every_chunk_file_of_a_peer_is_deleted),
    Scenario(
        "chunk files of a peer cut short", FROM_ANOTHER, every_chunk_file_of_a_peer_is_cut_short
    ),
    Scenario(
        "a peer loses its directory",
        "no call fails, nothing with two copies is lost; the peer comes back empty",
        a_peer_loses_its_directory,
    ),
    Scenario("a peer of four is destroyed, 2 copies", WHOLE_AGAIN, one_of_four_peers_is_destroyed),
    Scenario(
        "two peers of seven are destroyed, code 3+2", WHOLE_AGAIN, two_of_seven_peers_are_destroyed
    ),
)
PARTITIONS = (
    *(
        Scenario(f"{name} is cut off", NO_CALL_FAILS, partial(_with_cut_off, name=name))
        for name in ("router", "peer-0", "host-0")
    ),
    Scenario(
        "a mount is cut off, another wants its files",
        "the other goes on with what was fsynced; the first gets a new session",
        a_mount_is_cut_off_while_another_wants_its_files,
    ),
)
