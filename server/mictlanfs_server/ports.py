"""TCP ports of this machine: whether a server could listen on one, and which ones are free.

Answers hold for the moment only: somebody else may take a port before its server does, and the
server itself says so then. Keeps nothing.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Collection, Sequence

from mictlanfs.errors import UsageError

# Chosen ports stay below those the kernel gives to outgoing connections (32768 by default), so
# that none of these can be in the way when a server is started again.
CHOICE_FIRST, CHOICE_LAST = 10_000, 32_767
PORT_MAX = 65_535
# Between two looks at a port that a process of the last run is about to leave.
_RETRY_S = 0.1


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on `host` and `port` now.

    Raises:
        UsageError: nobody can ever listen there: the host is not this machine, or the port is
            reserved.
    """
    where = f"{host} port {port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(f"cannot listen on {where}: {error}") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the servers do it: connections that linger after a restart are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            reason = "only root may use it" if error.errno == errno.EACCES else str(error)
            raise UsageError(f"cannot listen on {where}: {reason}") from error
    return True


def wait_free(host: str, ports: Sequence[int], patience_s: float) -> list[int]:
    """Block until a server could listen on each of `ports`; those in use after `patience_s`.

    Raises:
        UsageError: as `is_free`.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        taken = [port for port in ports if not is_free(host, port)]
        if not taken or time.monotonic() >= deadline_s:
            return taken
        time.sleep(_RETRY_S)


def choose_free(host: str, count: int, avoid: Collection[int] = ()) -> list[int]:
    """`count` different free ports, none of `avoid`, at random.

    Raises:
        UsageError: there are not that many; or as `is_free`.
    """
    chosen: list[int] = []
    candidates = range(CHOICE_FIRST, CHOICE_LAST + 1)
    for port in random.sample(candidates, len(candidates)):
        if len(chosen) == count:
            break
        if port not in avoid and is_free(host, port):
            chosen.append(port)
    if len(chosen) < count:
        raise UsageError(f"{host} has no {count} free ports from {CHOICE_FIRST} to {CHOICE_LAST}")
    return chosen
