"""Random histories of leases; see `lease_model` for what is checked at every step."""

import random

import pytest

from tests.stateful.lease_model import World, random_step

HISTORIES = 300
GROUP = 10
STEPS = 300


@pytest.mark.parametrize("first", range(0, HISTORIES, GROUP))
def test_random_histories_keep_the_promises_of_leases(first: int) -> None:
    for seed in range(first, first + GROUP):
        chance = random.Random(seed)
        world = World()
        for _ in range(STEPS):
            random_step(world, chance)
        world.finish()
