"""The settings of one peer process: plain values, complete, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from mictlanfs import uri
from mictlanfs.errors import UsageError
from mictlanfs.logsetup import DEFAULT_LOGS, LogSettings
from mictlanfs.model import MIB

if TYPE_CHECKING:
    from pathlib import Path

HOST_DEFAULT: Final = "127.0.0.1"
# Defaults of MictlanX, kept so that one set of variables configures either.
PORT_DEFAULT: Final = 24000
ID_DEFAULT: Final = "mictlanx-peer-0"
RESERVE_BYTES_DEFAULT: Final = 256 * MIB
NAME_LENGTH_MAX: Final = 128
SCRUB_RATE_BYTES_DEFAULT: Final = 32 * MIB
SCRUB_PERIOD_DAYS_DEFAULT: Final = 14


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How a peer runs.

    Attributes:
        data: its folder, made when missing; one peer at a time.
        router: `mictlanx://` URI of the routers of the space.
        host, port: where it listens; port 0 lets the kernel choose.
        peer_id: its name, unique in the space, 1 to 128 printable characters.
        zone: failure zone; replicas prefer different zones.
        capacity: bytes it may hold; None: what the disk offers less `reserve`.
        sharers: peers whose data lies on the same disk, this one included; see `Capacity`.
        sharers_file: a file that tells their number from time to time; None: it does not change.
        reserve: bytes that always stay free on the disk, for the index and for others.
        insecure: listen beyond the loopback interface without TLS and tokens.
        lifeline_fd: read end of a pipe; the peer stops when its other end is closed.
        fsync: "never" answers before anything is durable: unsafe, for benchmarks only.
        advertise: URL that others reach it by; None: made from where it listens.
        logs: how to log.
        verifies_checksums: whether the MictlanX v4 interface refuses bodies whose SHA-256 is not
            the one announced; one that is empty is never compared.
        scrub_rate: bytes per second that the scrub reads at most.
        scrub_period_s: seconds for one pass of the scrub over all chunks; 0: only when asked.

    Raises:
        UsageError: a value that cannot be.
    """

    data: Path
    router: str
    host: str = HOST_DEFAULT
    port: int = PORT_DEFAULT
    peer_id: str = ID_DEFAULT
    zone: str = ""
    capacity: int | None = None
    reserve: int = RESERVE_BYTES_DEFAULT
    insecure: bool = False
    lifeline_fd: int | None = None
    fsync: Literal["always", "never"] = "always"
    advertise: str | None = None
    sharers: int = 1
    logs: LogSettings = DEFAULT_LOGS
    sharers_file: Path | None = None
    verifies_checksums: bool = True
    scrub_rate: int = SCRUB_RATE_BYTES_DEFAULT
    scrub_period_s: float = SCRUB_PERIOD_DAYS_DEFAULT * 86_400.0

    def __post_init__(self) -> None:
        uri.parse_routers(self.router)
        if not 1 <= len(self.peer_id) <= NAME_LENGTH_MAX or not self.peer_id.isprintable():
            raise UsageError(f"{self.peer_id!r} is no peer id: use 1 to 128 printable characters")
        if len(self.zone) > NAME_LENGTH_MAX or not self.zone.isprintable():
            raise UsageError(f"{self.zone!r} is no zone: use up to 128 printable characters")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port} is not a number from 0 to 65535")
        if self.capacity is not None and self.capacity < 0:
            raise UsageError(f"a capacity of {self.capacity} bytes cannot be")
        if self.sharers < 1:
            raise UsageError(f"{self.sharers} peers cannot share a disk")
        if self.reserve < 0:
            raise UsageError(f"a reserve of {self.reserve} bytes cannot be")
        if self.scrub_rate < 1 or self.scrub_period_s < 0:
            raise UsageError("a scrub reads at least a byte a second, in no negative time")

    @property
    def is_fsynced(self) -> bool:
        """Whether an answer waits until its effect is durable."""
        return self.fsync == "always"

    @property
    def router_urls(self) -> tuple[str, ...]:
        """Addresses of the routers, in the order of the URI."""
        return tuple(address.base_url for address in uri.parse_routers(self.router))
