"""What a space on one machine will look like: number of peers, addresses, URI.

Decides from what the user asked for and what is recorded of an earlier start; starts nothing and
writes nothing. Invariants: a space never loses a peer, since a peer holds the only copies of what
was written while others were down, so one that is stopped stays one of its peers; what was once
chosen stays until the user says otherwise.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from mictlanfs import uri
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.uri import ServerAddress
from mictlanfs_server import ports
from mictlanfs_server.space import SpaceRecord

HOST_DEFAULT = "127.0.0.1"
# Defaults of MictlanX.
ROUTER_PORT_DEFAULT = 60666
PEER_PORT_DEFAULT = 24000
PEERS_DEFAULT = 3
PEERS_MAX = 64
# Ports behind the last one, looked at for a new peer before any other.
PORTS_TRIED_MAX = 100
ROUTER_ID = "mictlanx-router-0"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the user asked for; None: as it was, or the default for a new space.

    Attributes:
        data: absolute.
        port, peer_port: 0: any free one; peers listen on `peer_port` and the ports behind it.
        capacity: bytes, of each peer.
        lease_ttl_s: of the router, for this run only.
    """

    data: Path
    peers: int | None = None
    host: str | None = None
    port: int | None = None
    peer_port: int | None = None
    capacity: int | None = None
    insecure: bool = False
    lease_ttl_s: float | None = None


def peer_id(index: int) -> str:
    """The name of a peer in its space."""
    return f"mictlanx-peer-{index}"


def peer_name(index: int) -> str:
    """What the process of a peer, its folder and its log are called on this machine."""
    return f"peer-{index}"


def peer_address(record: SpaceRecord, index: int) -> ServerAddress:
    """Where a peer is reached, whether it runs or not."""
    return ServerAddress(peer_id(index), reachable(record.host), record.peer_ports[index])


def peer_index(record: SpaceRecord, name: str) -> int:
    """The peer that a person calls `mictlanx-peer-2`, `peer-2` or `2`.

    Raises:
        MictlanError: NOT_FOUND: there is none.
    """
    for index in range(len(record.peer_ports)):
        if name in {peer_id(index), peer_name(index), str(index)}:
            return index
    there = ", ".join(peer_name(index) for index in range(len(record.peer_ports)))
    raise MictlanError(Kind.NOT_FOUND, "find peer", name, f"there are {there}")


def grown(record: SpaceRecord, count: int) -> Sequence[int]:
    """The ports of all peers when there are `count` more: those behind the last that are free now.

    Raises:
        UsageError: so many peers, or their ports, cannot be.
    """
    known = record.peer_ports
    if len(known) + count > PEERS_MAX:
        raise UsageError(f"there are {len(known)} peers: {PEERS_MAX} at most run on one machine")
    taken = {record.port, *known}
    free = [
        port
        for port in range(known[-1] + 1, min(known[-1] + PORTS_TRIED_MAX, ports.PORT_MAX) + 1)
        if port not in taken and ports.is_free(record.host, port)
    ][:count]
    return [*known, *free, *ports.choose_free(record.host, count - len(free), {*taken, *free})]


def with_free_port(record: SpaceRecord, index: int) -> SpaceRecord:
    """`record` with another port for a peer when somebody else has its own meanwhile.

    Raises:
        UsageError: there is no free port.
    """
    if ports.is_free(record.host, record.peer_ports[index]):
        return record
    changed = list(record.peer_ports)
    changed[index] = ports.choose_free(record.host, 1, {record.port, *changed})[0]
    return replace(record, peer_ports=tuple(changed))


def planned(
    options: ServerOptions, previous: SpaceRecord | None, peer_folders: int = 0
) -> SpaceRecord:
    """The space that `options` ask for, with no process.

    `previous` is what is recorded; `peer_folders` how many peers have data, recorded or not.

    Raises:
        UsageError: fewer peers than there are, or ports that cannot be.
    """
    host = options.host or (previous.host if previous else HOST_DEFAULT)
    count = _peer_count(options, previous, peer_folders)
    port = _router_port(options, previous, host)
    peer_ports = _peer_ports(options, previous, host, count, port)
    if port in peer_ports:
        raise UsageError(f"port {port} is meant for the router and for a peer: change --peer-port")
    capacity = options.capacity
    if capacity is None and previous is not None:
        capacity = previous.capacity
    return SpaceRecord(
        uri=uri.build((ServerAddress(ROUTER_ID, reachable(host), port),)),
        host=host,
        port=port,
        peer_ports=tuple(peer_ports),
        stopped_peers=previous.stopped_peers if previous else (),
        capacity=capacity,
        insecure=options.insecure,
    )


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for every address of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def reachable(host: str) -> str:
    """The address by which others reach a server that listens on `host`.

    For a wildcard: the one from which packets to other networks leave, as of now.
    """
    if not is_wildcard(host):
        return host
    family, elsewhere, loopback = (
        (socket.AF_INET6, "2001:db8::1", "::1")
        if ":" in host
        else (socket.AF_INET, "192.0.2.1", "127.0.0.1")
    )
    # Connecting a datagram socket sends nothing; it asks the routing table.
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return loopback


def check_ports(record: SpaceRecord, patience_s: float) -> None:
    """Whether all ports are free, or become so within `patience_s`.

    Raises:
        UsageError: one is not; names it and the remedy.
    """
    wanted = [record.port, *(record.peer_ports[index] for index in record.running_peers)]
    taken = ports.wait_free(record.host, wanted, patience_s)
    if record.port in taken:
        raise _in_use(record.host, record.port, "the router", "--port")
    for index in record.running_peers:
        if (port := record.peer_ports[index]) in taken:
            raise _in_use(record.host, port, f"peer {index}", "--peer-port")


def _in_use(host: str, port: int, who: str, option: str) -> UsageError:
    return UsageError(
        f"port {port} on {host}, meant for {who}, is in use: "
        f"choose another with {option}, or 0 for any free one"
    )


def _peer_count(options: ServerOptions, previous: SpaceRecord | None, folders: int) -> int:
    existing = max(len(previous.peer_ports) if previous else 0, folders)
    if options.peers is None:
        return existing or PEERS_DEFAULT
    if options.peers < existing:
        raise UsageError(
            f"{options.data} has {existing} peers, and with {options.peers} data would be missing: "
            "leave out --peers to keep them all"
        )
    return options.peers


def _router_port(options: ServerOptions, previous: SpaceRecord | None, host: str) -> int:
    if options.port == 0:
        if previous is not None and ports.is_free(host, previous.port):
            return previous.port
        return ports.choose_free(host, 1)[0]
    if options.port is not None:
        return options.port
    return previous.port if previous else ROUTER_PORT_DEFAULT


def _peer_ports(
    options: ServerOptions, previous: SpaceRecord | None, host: str, count: int, router_port: int
) -> Sequence[int]:
    known = previous.peer_ports if previous else ()
    if options.peer_port == 0:
        kept = [port for port in known if port != router_port and ports.is_free(host, port)]
        return [*kept, *ports.choose_free(host, count - len(kept), [router_port, *kept])]
    if options.peer_port is None and known:
        return [*known, *_following(known[-1] + 1, count - len(known), {router_port, *known})]
    first = options.peer_port or PEER_PORT_DEFAULT
    if first + count - 1 > ports.PORT_MAX:
        raise UsageError(f"{count} peers from port {first} on: ports end at {ports.PORT_MAX}")
    return range(first, first + count)


def _following(first: int, count: int, taken: set[int]) -> list[int]:
    """`count` ports from `first` on that are not in `taken`."""
    free = [port for port in range(first, ports.PORT_MAX + 1) if port not in taken]
    if len(free) < count:
        raise UsageError(f"{count} more peers need ports behind {first - 1}: choose --peer-port")
    return free[:count]
