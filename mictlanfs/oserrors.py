"""Errors of the local operating system as errors of this project.

For code that works on local files on behalf of a user: the one translation of `OSError`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mictlanfs.errors import ERRNO, Kind, MictlanError

# Where several kinds have the same errno, the first in the order of `Kind` is meant, but for EIO:
# a local disk that fails is none of the kinds that a space reports as EIO.
_KINDS: dict[int, Kind] = {ERRNO[kind]: kind for kind in reversed(Kind)}
_KINDS.update(
    {
        errno.EIO: Kind.INTERNAL,
        errno.ENOSYS: Kind.UNSUPPORTED,
        # Too many levels of symbolic links: the path cannot be used as it is.
        errno.ELOOP: Kind.INVALID,
        errno.ECONNREFUSED: Kind.UNAVAILABLE,
        errno.ECONNRESET: Kind.UNAVAILABLE,
        errno.EHOSTUNREACH: Kind.UNAVAILABLE,
        errno.ENETUNREACH: Kind.UNAVAILABLE,
    }
)


def kind_of(error: OSError) -> Kind:
    """The kind that says what `error` says; INTERNAL for one that no kind describes."""
    return _KINDS.get(error.errno or 0, Kind.INTERNAL)


def from_os_error(error: OSError, operation: str = "", target: str = "") -> MictlanError:
    """`error` as a `MictlanError`; `target` is by default the file that it names."""
    named = error.filename if isinstance(error.filename, str) else ""
    return MictlanError(kind_of(error), operation, target or named, error.strerror or str(error))


@contextmanager
def translated_os_errors(operation: str = "", target: str = "") -> Iterator[None]:
    """Turn every `OSError` that leaves the block into a `MictlanError`."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, operation, target) from error
