"""For whom a client acts: owner and umask of what it makes."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A user as the kernel knows one.

    Attributes:
        umask: permission bits that new files and directories do not get.
    """

    uid: int
    gid: int
    umask: int

    @classmethod
    def of_process(cls) -> Caller:
        """Who runs this process.

        The umask can only be read by setting it, so call this while no other thread makes files.
        """
        umask = os.umask(0o077)
        os.umask(umask)
        return cls(os.geteuid(), os.getegid(), umask)
