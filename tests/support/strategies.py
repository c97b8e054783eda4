"""Hypothesis strategies for the values of the space, in one place."""

from __future__ import annotations

from types import UnionType
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    CHUNK_ID_SIZE_BYTES,
    NAME_SIZE_BYTES_MAX,
    ChunkId,
    Extent,
    PeerInfo,
    PeerNumber,
    PeerState,
    Struct,
)
from mictlanfs.uri import ServerAddress

names = (
    st.binary(min_size=1, max_size=NAME_SIZE_BYTES_MAX)
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda name: name not in {b".", b".."})
)

chunk_ids = st.binary(min_size=CHUNK_ID_SIZE_BYTES, max_size=CHUNK_ID_SIZE_BYTES).map(ChunkId)

# Bounded so that sets of integers can stand for them.
ranges = st.tuples(st.integers(0, 40), st.integers(0, 40))

_labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
_hosts = st.one_of(_labels, st.ip_addresses().map(str))
servers = st.lists(
    st.tuples(st.none() | _labels, _hosts, st.integers(1, 65535)), min_size=1, max_size=5
)


@st.composite
def addresses(draw: st.DrawFn) -> tuple[ServerAddress, ...]:
    """The servers of one URI: protocol, version and HTTP/2 are the same for all."""
    protocol = draw(st.sampled_from(["http", "https"]))
    version, http2 = draw(st.integers(0, 99)), draw(st.booleans())
    return tuple(
        ServerAddress(name, host, port, protocol, version, http2)
        for name, host, port in draw(servers)
    )


def peer(number: int, *, capacity: int = 1000, zone: str = "", **values: Any) -> PeerInfo:
    """A peer of a peer map, in a zone of its own unless told otherwise."""
    return PeerInfo(
        PeerNumber(number),
        f"peer-{number}",
        f"http://127.0.0.1:{24000 + number}",
        zone or f"zone-{number}",
        capacity,
        0,
        values.pop("state", PeerState.UP),
        **values,
    )


peer_lists = st.lists(
    st.tuples(st.integers(1, 2**50), st.integers(0, 3), st.sampled_from(PeerState), st.booleans()),
    max_size=8,
).map(
    lambda rows: [
        peer(number, capacity=capacity, zone=f"z{zone}", state=state, is_full=is_full)
        for number, (capacity, zone, state, is_full) in enumerate(rows)
    ]
)


@st.composite
def extent_lists(draw: st.DrawFn) -> list[Extent]:
    """Extents of one file: in order, not overlapping."""
    extents, offset = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=8)):
        offset += gap
        extents.append(Extent(offset, length, draw(chunk_ids), draw(st.integers(0, 9))))
        offset += length
    return extents


errors = st.builds(
    MictlanError, st.sampled_from(Kind), st.text(max_size=20), st.text(max_size=20), st.text()
)

operation_types: tuple[type[Struct], ...] = get_args(wire.Operation)


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a type that travels; whole numbers are such as msgpack and SQLite can hold."""
    if isinstance(annotation, NewType):
        return values_of(annotation.__supertype__)
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        hints = get_type_hints(annotation)
        fields = {name: values_of(hints[name]) for name in annotation.__struct_fields__}
        return st.builds(annotation, **fields)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (tuple, list):
        return st.lists(values_of(arguments[0]), max_size=4).map(origin)
    if origin is dict:
        return st.dictionaries(*map(values_of, arguments), max_size=4)
    if origin in (Union, UnionType):
        return st.one_of(*map(values_of, arguments))
    if annotation is int:
        return st.integers(-(2**63), 2**63 - 1)
    if annotation is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    return st.from_type(annotation)


def message_types() -> list[type[Struct]]:
    """Every structure that travels as a message."""
    return [
        value
        for value in vars(wire).values()
        if isinstance(value, type)
        and issubclass(value, Struct)
        and value is not Struct
        and value.__module__ == wire.__name__
    ]
