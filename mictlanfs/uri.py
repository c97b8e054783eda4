"""`mictlanx://` URIs: which routers, or peers, make up a space.

Grammar and edge cases are those of the MictlanX v4 client, so that one value of
`MICTLANX_CLIENT_URI` means the same to its programs and to ours::

    uri   = "mictlanx://" spec *("," spec) ["/"] ["?" query]
    spec  = [id "@"] host ":" port
    query = name "=" value *("&" name "=" value)      ; protocol, api_version, http2

Where the original goes on with a value that cannot work (an unknown protocol, a version that is
not a number) this module refuses it and says which part is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from mictlanfs.errors import UsageError

SCHEME = "mictlanx://"
API_VERSION_DEFAULT = 4
_TRUE = frozenset({"1", "true", "yes", "on"})
_PROTOCOLS = ("http", "https")
EXAMPLE = "mictlanx://mictlanx-router-0@127.0.0.1:60666/?protocol=http&api_version=4&http2=0"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One router or peer of a URI.

    Attributes:
        id: its name, None when the URI gives none.
        host: a name or address; an IPv6 address without brackets.
        port: 1 to 65535.
        protocol: "http" or "https".
    """

    id: str | None
    host: str
    port: int
    protocol: str = "http"
    api_version: int = API_VERSION_DEFAULT
    http2: bool = False

    @property
    def base_url(self) -> str:
        """The address requests go to, without a slash at the end."""
        return f"{self.protocol}://{_bracketed(self.host)}:{self.port}"


def parse_routers(text: str) -> tuple[ServerAddress, ...]:
    """The routers of a URI; `https` unless it says otherwise, as in the reference.

    Raises:
        UsageError: naming the part that is wrong.
    """
    return _parse(text, default_protocol="https")


def parse_peers(text: str) -> tuple[ServerAddress, ...]:
    """The peers of a URI; `http` unless it says otherwise, as in the reference.

    Raises:
        UsageError: naming the part that is wrong.
    """
    return _parse(text, default_protocol="http")


def build(servers: tuple[ServerAddress, ...]) -> str:
    """The URI of `servers`; protocol, version and HTTP/2 are those of the first."""
    if not servers:
        return SCHEME
    specs = ",".join(
        f"{s.id}@{_bracketed(s.host)}:{s.port}" if s.id else f"{_bracketed(s.host)}:{s.port}"
        for s in servers
    )
    first = servers[0]
    return (
        f"{SCHEME}{specs}/?protocol={first.protocol}"
        f"&api_version={first.api_version}&http2={int(first.http2)}"
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _parse(text: str, default_protocol: str) -> tuple[ServerAddress, ...]:
    if not text.startswith(SCHEME):
        raise UsageError(f"{text!r} is not a space: a URI looks like {EXAMPLE}")
    # Only "?" ends the list of servers; a "/" before it is trimmed with the spec it follows.
    servers_part, _, query = text[len(SCHEME) :].partition("?")
    protocol, api_version, http2 = _parse_query(text, query, default_protocol)
    specs = [spec for part in servers_part.split(",") if (spec := part.strip(" /"))]
    if not specs:
        raise UsageError(f"{text!r} names no server: a URI looks like {EXAMPLE}")
    return tuple(
        ServerAddress(server_id, host, port, protocol, api_version, http2)
        for server_id, host, port in (_parse_spec(text, spec) for spec in specs)
    )


def _parse_query(text: str, query: str, default_protocol: str) -> tuple[str, int, bool]:
    values = {}
    for item in query.split("&"):
        name, _, value = item.partition("=")
        values[name.strip()] = value.strip(" /")
    protocol = values.get("protocol") or default_protocol
    if protocol not in _PROTOCOLS:
        raise UsageError(f"protocol {protocol!r} in {text!r} is neither http nor https")
    version_text = values.get("api_version") or str(API_VERSION_DEFAULT)
    if not version_text.isascii() or not version_text.isdecimal():
        raise UsageError(f"api_version {version_text!r} in {text!r} is not a number")
    return protocol, int(version_text), values.get("http2", "").lower() in _TRUE


def _parse_spec(text: str, spec: str) -> tuple[str | None, str, int]:
    before_at, at, after_at = spec.partition("@")
    server_id, address = (before_at or None, after_at) if at else (None, spec)
    host, colon, port_text = address.rpartition(":")
    if not colon or not host or address.endswith("]"):
        raise UsageError(f"{spec!r} in {text!r} needs a host and a port, as in 127.0.0.1:60666")
    if not port_text.isascii() or not port_text.isdecimal() or not 1 <= int(port_text) <= 65535:
        raise UsageError(f"port {port_text!r} in {text!r} is not a number from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return server_id, host, int(port_text)
