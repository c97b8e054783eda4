"""Random histories of leases; see `lease_model` for what is checked at every step."""

import random

import pytest

from tests.stateful.lease_model import World, random_step

STEPS = 300


@pytest.mark.parametrize("seed", range(60))
def test_random_histories_keep_the_promises_of_leases(seed: int) -> None:
    chance = random.Random(seed)
    world = World()
    for _ in range(STEPS):
        random_step(world, chance)
    world.finish()
