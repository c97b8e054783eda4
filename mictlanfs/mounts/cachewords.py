"""What commands and a mount say to each other about its cache: the words for both ends.

A command asks by reading an extended attribute that does not exist: the name is the request, the
value the answer. So the kernel checks before the mount is asked at all that who asks may read the
file, wherever the mount is seen, and no other way into the mount is needed. The answers are short:
a program that guesses a small buffer first, as Python does, makes a request of a longer one twice.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeVar

PREFIX: Final = b"user.mictlanx.cache"
# Of a file: what of it is where; see `Held`.
HELD: Final = PREFIX
# Of a file, with an offset behind it: put a part of it into the disk cache; see `Warmed`.
WARM: Final = PREFIX + b".warm."
# Of a file: forget it. Of the root of a mount, for its owner: forget everything. See `Cleared`.
CLEAR: Final = PREFIX + b".clear"

# Of a file that one request warms.
PART_SIZE_BYTES: Final = 32 << 20


class Held(NamedTuple):
    """How many bytes of a file are at hand, and where. A byte may be in several places.

    Attributes:
        size: of the file.
        disk: in the disk cache.
        memory: in the memory cache, as part of whole chunks.
        near: with a peer on this machine, whose files are read themselves.
        inline: in the metadata, which a reader gets with the names.
        holes: nowhere, since they are zeros.
    """

    size: int
    disk: int = 0
    memory: int = 0
    near: int = 0
    inline: int = 0
    holes: int = 0


class Warmed(NamedTuple):
    """What became of the bytes of a part of a file.

    Attributes:
        end: where the part ends and the next one begins.
        stored: in the disk cache since now.
        kept: in it before, and found right.
        near: not put there, since a peer on this machine has them as files.
        inline: not put there, since they are in the metadata; holes count here.
        small: not put there: their chunks are smaller than what a file is worth.
        refused: not put there: the disk is full, slow, or off.
    """

    end: int
    stored: int = 0
    kept: int = 0
    near: int = 0
    inline: int = 0
    small: int = 0
    refused: int = 0


class Cleared(NamedTuple):
    """What was forgotten.

    Attributes:
        size: bytes of chunks that the disk cache had.
    """

    size: int


Answer = TypeVar("Answer", bound="Held | Warmed | Cleared")


def warm_from(offset: int) -> bytes:
    """The request to warm the part of a file that begins at `offset`."""
    return WARM + b"%d" % offset


def is_request(name: bytes) -> bool:
    """Whether the name of an extended attribute is a request of this kind."""
    return name == HELD or name.startswith(PREFIX + b".")


def offset_of(name: bytes) -> int | None:
    """The offset in a request to warm; None when `name` is no such request."""
    digits = name.removeprefix(WARM)
    is_number = name.startswith(WARM) and digits.isdigit() and len(digits) < 20
    return int(digits) if is_number else None


def encode(answer: Held | Warmed | Cleared) -> bytes:
    """An answer as the value of an attribute."""
    return b" ".join(b"%d" % number for number in answer)


def decode(value: bytes, kind: type[Answer]) -> Answer:
    """The answer that was encoded; a later mount may say more behind it.

    Raises:
        ValueError: it is something else.
    """
    numbers = [int(word) for word in value.split()]
    count = len(kind._fields)
    if len(numbers) < count:
        raise ValueError(f"{value!r} is too short")
    return kind(*numbers[:count])
