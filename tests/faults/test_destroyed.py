"""Peers that are destroyed for good during work, with spares: no error, all copies come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import scenarios

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    "play",
    [scenarios.one_of_four_peers_is_destroyed, scenarios.two_of_seven_peers_are_destroyed],
)
def test_peers_destroyed_for_good_cost_no_error_and_their_copies_are_made_anew(
    tmp_path: Path, play: Callable[[Path], float]
) -> None:
    assert play(tmp_path) > scenarios.HEAL_DELAY_S
