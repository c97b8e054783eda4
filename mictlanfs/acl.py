"""POSIX access control lists: their coding and their arithmetic, pure.

The rules are those of acl(5) and of Linux (`posix_acl_valid`, `posix_acl_create`,
`posix_acl_chmod`). The coding is that of the extended attributes `system.posix_acl_access` and
`system.posix_acl_default`, version 2: four bytes version, then eight bytes for each entry (tag,
permissions, id), all little-endian. No I/O. Who may change a list is not decided here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from mictlanfs.errors import Kind, MictlanError

ACCESS_NAME: Final = b"system.posix_acl_access"
DEFAULT_NAME: Final = b"system.posix_acl_default"
NAMES: Final = frozenset({ACCESS_NAME, DEFAULT_NAME})

VERSION: Final = 2
# The id of an entry that names nobody.
ID_NONE: Final = 2**32 - 1
# The kernel reads and writes lists of a FUSE mount through one page.
SIZE_BYTES_MAX: Final = 4096

_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_PERMISSIONS: Final = 0o7


class Tag(IntEnum):
    """Whom an entry is for. In the order in which the entries of a list must stand."""

    USER_OWNER = 0x01
    USER = 0x02
    GROUP_OWNER = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


_NAMED: Final = frozenset({Tag.USER, Tag.GROUP})
_ONCE: Final = frozenset(Tag) - _NAMED
_REQUIRED: Final = frozenset({Tag.USER_OWNER, Tag.GROUP_OWNER, Tag.OTHER})
_TAGS: Final = {int(tag): tag for tag in Tag}


@dataclass(frozen=True, slots=True)
class Entry:
    """What one class of users may do.

    Attributes:
        permissions: read 4, write 2, execute 1; 0 to 7.
        id: of the named user or group; `ID_NONE` for every other tag.
    """

    tag: Tag
    permissions: int
    id: int = ID_NONE


@dataclass(frozen=True, slots=True)
class Acl:
    """A valid list: its entries in the order of their tags."""

    entries: tuple[Entry, ...]

    @property
    def mode(self) -> int:
        """The nine permission bits that go with the list: owner, mask or else group, other."""
        found = {e.tag: e.permissions for e in self.entries if e.tag not in _NAMED}
        group = found.get(Tag.MASK, found[Tag.GROUP_OWNER])
        return found[Tag.USER_OWNER] << 6 | group << 3 | found[Tag.OTHER]

    @property
    def is_mode_only(self) -> bool:
        """Whether the list says no more than its `mode`, so that it need not be stored."""
        return all(entry.tag in _REQUIRED for entry in self.entries)

    def after_chmod(self, mode: int) -> Acl:
        """The access list once the permission bits were set to those of `mode`."""
        return self._with(_by_tag(mode))

    def inherited(self, mode: int) -> Acl:
        """The access list of a node made with `mode` where this is the default list.

        What `mode` does not grant to a class of users is taken out of the class's entry.
        """
        limits = _by_tag(mode)
        kept = {e.tag: e.permissions & limits[e.tag] for e in self.entries if e.tag in limits}
        return self._with(kept)

    def _with(self, wanted: dict[Tag, int]) -> Acl:
        """Change the entries that stand for permission bits: of group and mask only one does."""
        has_mask = any(entry.tag is Tag.MASK for entry in self.entries)
        changed = {
            Tag.USER_OWNER,
            Tag.MASK if has_mask else Tag.GROUP_OWNER,
            Tag.OTHER,
        }
        return Acl(
            tuple(
                replace(e, permissions=wanted[e.tag]) if e.tag in changed else e
                for e in self.entries
            )
        )


def _by_tag(mode: int) -> dict[Tag, int]:
    """The permission bits of `mode` for each tag that they can stand in."""
    group = mode >> 3 & _PERMISSIONS
    return {
        Tag.USER_OWNER: mode >> 6 & _PERMISSIONS,
        Tag.GROUP_OWNER: group,
        Tag.MASK: group,
        Tag.OTHER: mode & _PERMISSIONS,
    }


def encode(acl: Acl) -> bytes:
    """The value of the extended attribute."""
    packed = (_ENTRY.pack(e.tag, e.permissions, e.id) for e in acl.entries)
    return _HEADER.pack(VERSION) + b"".join(packed)


def decode(value: bytes) -> Acl | None:
    """The list in the value of an extended attribute; None when it has no entries.

    Raises:
        MictlanError: UNSUPPORTED for another version; TOO_LARGE above `SIZE_BYTES_MAX`; INVALID
            when it is not a list, or one with missing, repeated or misplaced entries.
    """
    if len(value) > SIZE_BYTES_MAX:
        detail = f"an access control list has at most {SIZE_BYTES_MAX} bytes"
        raise MictlanError(Kind.TOO_LARGE, "decode", "ACL", detail)
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise _invalid("the size is wrong")
    (version,) = _HEADER.unpack_from(value)
    if version != VERSION:
        raise MictlanError(Kind.UNSUPPORTED, "decode", "ACL", f"version {version}")
    entries = tuple(_entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :]))
    if not entries:
        return None
    _check_order([entry.tag for entry in entries])
    return Acl(entries)


def _entry(number: int, permissions: int, user_or_group: int) -> Entry:
    tag = _TAGS.get(number)
    if tag is None:
        raise _invalid(f"there is no tag {number:#x}")
    if permissions & ~_PERMISSIONS:
        raise _invalid(f"there are no permissions {permissions:#o}")
    if tag not in _NAMED:
        # Written by some programs as 0; it means nothing.
        return Entry(tag, permissions)
    if user_or_group == ID_NONE:
        raise _invalid("an entry for a named user or group names nobody")
    return Entry(tag, permissions, user_or_group)


def _check_order(tags: list[Tag]) -> None:
    if tags != sorted(tags) or any(tags.count(tag) > 1 for tag in _ONCE):
        raise _invalid("entries are repeated or out of order")
    if missing := _REQUIRED.difference(tags):
        raise _invalid(f"without an entry for {_listed(missing)}")
    if not _NAMED.isdisjoint(tags) and Tag.MASK not in tags:
        raise _invalid("named users or groups need a mask")


def _listed(tags: Iterable[Tag]) -> str:
    return ", ".join(tag.name.lower().replace("_", " ") for tag in sorted(tags))


def _invalid(detail: str) -> MictlanError:
    return MictlanError(Kind.INVALID, "decode", "ACL", detail)
