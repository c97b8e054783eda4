"""EMLINK: a file has at most 65,000 names."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.model import LINK_COUNT_MAX, InodeNumber
from tests.integration.posix.calls import OK, attempt, make, touching_nothing
from tests.support.batches import apply_all
from tests.support.spaces import Space


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_file_has_at_most_65_000_names(bucket: Path, posix_space: Space) -> None:
    os.mkdir("names")
    make("file")
    ino, parent = InodeNumber(os.stat("node").st_ino), InodeNumber(os.stat("names").st_ino)
    # The numbers come from the mount, so the router is not asked to find what they stand for.
    directory = os.open("names", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    count = LINK_COUNT_MAX - 2
    now_ns = time.time_ns()
    apply_all(
        posix_space.uri, [wire.Link(ino, parent, b"%05d" % index, now_ns) for index in range(count)]
    )
    # What the mount was told before the batch is not asked for again at once.
    assert attempt(os.link, "names/00000", "last") == OK
    assert os.stat("last").st_nlink == LINK_COUNT_MAX
    with touching_nothing(".", "node"):
        assert attempt(os.link, "node", "one too many") == "EMLINK"
    assert attempt(os.rename, "node", "renamed") == OK
    os.unlink("last")
    assert os.stat("renamed").st_nlink == LINK_COUNT_MAX - 1
    assert attempt(os.link, "renamed", "again") == OK
