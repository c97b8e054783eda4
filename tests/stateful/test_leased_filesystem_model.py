"""The verbs under leases against dictionaries, on one mount and on two that take turns.

In-process with a clock that jumps, over the router's own leases and metadata (`leased_space`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.stateful.leased_model import SIZE, Complaints, Program
from tests.support.leased_space import open_leased_mount, open_leased_space
from tests.support.mount_fakes import Script
from tests.support.thoroughness import examples

Step = tuple[str, int, int, int]
DELAYS_S = (0.0, 0.0, 0.001, 0.3)
VERBS = (
    *("create", "create", "create", "open", "open", "close", "close", "write", "write", "write"),
    *("read", "truncate", "chmod", "chmod", "utimens", "link", "unlink", "unlink", "rename"),
    *("rename", "mkdir", "rmdir", "look", "list", "names", "sync", "fsync", "sleep", "forget"),
    "evict",
)
Steps = st.lists(
    st.tuples(
        st.sampled_from(VERBS), st.integers(0, 1), st.integers(0, SIZE), st.integers(0, SIZE)
    ),
    min_size=10,
    max_size=50,
)


async def run_program(
    steps: Sequence[Step], mount_count: int, seed: int, names_max: int, *, writes_through: bool
) -> None:
    chance = random.Random(seed)
    async with open_leased_space() as space, AsyncExitStack() as stack:
        mounts = []
        for _ in range(mount_count):
            script = Script()
            script.delay_s = lambda _: chance.choice(DELAYS_S)
            mount = open_leased_mount(
                space,
                script=script,
                names_max=names_max,
                dirty_size_bytes_max=200,
                seals_aged=True,
                writes_through=writes_through,
            )
            mounts.append(await stack.enter_async_context(mount))
        program = Program(space, mounts)
        for step in steps:
            await program.do(step)
        with trio.fail_after(1000):
            await program.finish()


def play(
    steps: Sequence[Step], mount_count: int, seed: int, names_max: int, *, writes_through: bool
) -> None:
    complaints = Complaints()
    log = logging.getLogger("mictlanfs_mount.leased")
    log.addHandler(complaints)
    try:
        clock = MockClock(autojump_threshold=0)
        arguments = (steps, mount_count, seed, names_max)
        trio.run(lambda: run_program(*arguments, writes_through=writes_through), clock=clock)
    finally:
        log.removeHandler(complaints)
    assert complaints.found == [], complaints.found


Seeds = st.integers(0, 2**32)
NamesMax = st.sampled_from([4, 10_000])


@settings(max_examples=examples(40, 1000), deadline=None)
@given(Steps, Seeds, NamesMax, st.booleans())
def test_one_mount_is_what_its_program_made_of_it(
    steps: list[Step], seed: int, names_max: int, is_through: bool
) -> None:
    play(steps, 1, seed, names_max, writes_through=is_through)


@settings(max_examples=examples(40, 1000), deadline=None)
@given(Steps, Seeds, NamesMax)
def test_two_mounts_that_take_turns_agree_at_once(
    steps: list[Step], seed: int, names_max: int
) -> None:
    play(steps, 2, seed, names_max, writes_through=False)
