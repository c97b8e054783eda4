"""What this machine must offer before a process can mount: the FUSE device, pyfuse3, the helper.

Only looks whether they are there; never mounts anything.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from mictlanfs.errors import Kind, MictlanError, UsageError

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONFIGURATION = Path("/etc/fuse.conf")
# The helper that mounts and unmounts for users who are not root.
FUSERMOUNT = "fusermount3"


def check_ability(*, allow_other: bool) -> None:
    """Whether this process can mount at all.

    Raises:
        MictlanError: it cannot; the detail names the remedy.
        UsageError: root has to allow `allow_other` first.
    """
    if importlib.util.find_spec("pyfuse3") is None:
        detail = "pyfuse3 is not installed: pip install 'mictlanfs[mount]'"
        raise MictlanError(Kind.UNSUPPORTED, detail=detail)
    if not FUSE_DEVICE.exists():
        detail = (
            f"{FUSE_DEVICE} is missing: load the module (modprobe fuse), or start the container "
            f"with --device {FUSE_DEVICE} --cap-add SYS_ADMIN"
        )
        raise MictlanError(Kind.UNSUPPORTED, detail=detail)
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        detail = f"this user may not open {FUSE_DEVICE}: run as root, or have root chmod 666 it"
        raise MictlanError(Kind.ACCESS_DENIED, detail=detail)
    if os.geteuid() == 0:
        return
    if shutil.which(FUSERMOUNT) is None:
        detail = f"{FUSERMOUNT} is missing, and only root mounts without it: install fuse3"
        raise MictlanError(Kind.UNSUPPORTED, detail=detail)
    if allow_other and not _is_allow_other_allowed():
        raise UsageError(
            f"-o allow_other needs a line user_allow_other in {FUSE_CONFIGURATION}: "
            "root has to add it, or leave the option out"
        )


def _is_allow_other_allowed() -> bool:
    try:
        lines = FUSE_CONFIGURATION.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
