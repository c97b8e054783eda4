"""Finding the device of a mount; what is sent by it is tested on a real mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs_mount.notify import DEVICE, find_device


def test_a_process_that_serves_no_mount_has_no_device() -> None:
    with pytest.raises(MictlanError, match="open 0 times") as caught:
        find_device()
    assert caught.value.kind is Kind.UNSUPPORTED


@pytest.mark.skipif(not Path(DEVICE).exists(), reason="there is no /dev/fuse")
def test_which_of_two_devices_is_ours_is_not_guessed() -> None:
    first, second = (os.open(DEVICE, os.O_RDWR) for _ in range(2))
    try:
        with pytest.raises(MictlanError, match="open 2 times"):
            find_device()
        os.close(second)
        second = -1
        assert find_device() == first
    finally:
        for descriptor in {first, second} - {-1}:
            os.close(descriptor)
