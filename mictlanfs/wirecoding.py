"""How messages and errors become bytes, alone and in frames; `mictlanfs.wire` offers all of it.

A *frame* is four bytes big-endian length of a msgpack header, the header, and bodies one behind
the other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer, Struct


class WireError(msgspec.Struct, frozen=True):
    """An error as it travels; see `MictlanError` for the fields."""

    kind: str
    operation: str = ""
    target: str = ""
    detail: str = ""

    @classmethod
    def of(cls, error: MictlanError) -> WireError:
        """The form of `error` that travels."""
        return cls(error.kind.value, error.operation, error.target, error.detail)

    def to_error(self) -> MictlanError:
        """The error as raised at the receiving end; a kind from a newer sender is INTERNAL."""
        try:
            kind, detail = Kind(self.kind), self.detail
        except ValueError:
            kind, detail = Kind.INTERNAL, self.detail or self.kind
        return MictlanError(kind, self.operation, self.target, detail)


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {}
_FRAME_LENGTH = struct.Struct(">I")
FRAME_HEADER_SIZE_BYTES_MAX: Final = 1024 * 1024

T = TypeVar("T")


def encode(message: Struct) -> bytes:
    """The msgpack form of a message."""
    return _encoder.encode(message)


def decode(body: Buffer, kind: type[T]) -> T:
    """The message of type `kind` in `body`.

    Raises:
        MictlanError: PROTOCOL, when `body` is not such a message.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        message: T = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MictlanError(Kind.PROTOCOL, "decode", kind.__name__, str(error)) from error
    return message


def encode_error(error: MictlanError) -> bytes:
    """The JSON body of an error answer."""
    return msgspec.json.encode(WireError.of(error))


def decode_error(status: int, body: Buffer) -> MictlanError:
    """The error in the body of an answer with `status`; a body that is not ours is INTERNAL."""
    try:
        return msgspec.json.decode(body, type=WireError).to_error()
    except (msgspec.DecodeError, UnicodeDecodeError):
        kind = Kind.UNAVAILABLE if status in {502, 503, 504} else Kind.INTERNAL
        return MictlanError(kind, detail=f"HTTP status {status} without a reason")


def frame(header: Struct, bodies: Sequence[Buffer] = ()) -> list[Buffer]:
    """The pieces of a frame, in order; nothing is copied."""
    head = _encoder.encode(header)
    return [_FRAME_LENGTH.pack(len(head)) + head, *bodies]


def unframe(body: Buffer, kind: type[T]) -> tuple[T, memoryview]:
    """The header of a frame and a view of what follows it.

    Raises:
        MictlanError: PROTOCOL, when `body` is not a frame with such a header.
    """
    view = memoryview(body)
    if len(view) < _FRAME_LENGTH.size:
        raise MictlanError(Kind.PROTOCOL, "decode", kind.__name__, "the frame is too short")
    (length,) = _FRAME_LENGTH.unpack_from(view)
    start = _FRAME_LENGTH.size
    if length > FRAME_HEADER_SIZE_BYTES_MAX or len(view) < start + length:
        raise MictlanError(Kind.PROTOCOL, "decode", kind.__name__, "the frame is cut short")
    return decode(view[start : start + length], kind), view[start + length :]


def cut_bodies(view: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Cut what follows a frame's header into bodies of `lengths`.

    Raises:
        MictlanError: PROTOCOL, when the lengths do not add up to the size of `view`.
    """
    if sum(lengths) != len(view) or min(lengths, default=0) < 0:
        raise MictlanError(Kind.PROTOCOL, "decode", "frame", "the lengths do not add up")
    bodies, start = [], 0
    for length in lengths:
        bodies.append(view[start : start + length])
        start += length
    return bodies
