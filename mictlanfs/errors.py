"""The error tree shared by every part, and the tables that translate it.

::

    MictlanError            an operation failed; `kind` says how
    +-- UsageError          the user's command or configuration is wrong (command line only)

One class carries a `Kind`. Kinds travel on the wire by name and are append-only: a name is never
reused or given another meaning. Every table below has an entry for every kind; a test enumerates
them. Translation happens at boundaries only (transport, metadata store, web framework, pyfuse3).
"""

from __future__ import annotations

import errno
import logging
from enum import Enum


class Kind(Enum):
    """What went wrong, independent of the protocol that carries it."""

    NOT_FOUND = "not-found"
    EXISTS = "exists"
    NOT_DIRECTORY = "not-directory"
    IS_DIRECTORY = "is-directory"
    NOT_EMPTY = "not-empty"
    INVALID = "invalid"
    NAME_TOO_LONG = "name-too-long"
    NOT_PERMITTED = "not-permitted"
    ACCESS_DENIED = "access-denied"
    READ_ONLY = "read-only"
    CROSS_DEVICE = "cross-device"
    TOO_MANY_LINKS = "too-many-links"
    TOO_LARGE = "too-large"
    NO_SPACE = "no-space"
    NO_DATA = "no-data"
    RANGE = "range"
    BUSY = "busy"
    STALE = "stale"
    FENCED = "fenced"
    CONFLICT = "conflict"
    CORRUPT = "corrupt"
    UNAVAILABLE = "unavailable"
    TIMED_OUT = "timed-out"
    UNSUPPORTED = "unsupported"
    PROTOCOL = "protocol"
    INTERNAL = "internal"
    QUOTA_EXCEEDED = "quota-exceeded"


ERRNO: dict[Kind, int] = {
    Kind.NOT_FOUND: errno.ENOENT,
    Kind.EXISTS: errno.EEXIST,
    Kind.NOT_DIRECTORY: errno.ENOTDIR,
    Kind.IS_DIRECTORY: errno.EISDIR,
    Kind.NOT_EMPTY: errno.ENOTEMPTY,
    Kind.INVALID: errno.EINVAL,
    Kind.NAME_TOO_LONG: errno.ENAMETOOLONG,
    Kind.NOT_PERMITTED: errno.EPERM,
    Kind.ACCESS_DENIED: errno.EACCES,
    Kind.READ_ONLY: errno.EROFS,
    Kind.CROSS_DEVICE: errno.EXDEV,
    Kind.TOO_MANY_LINKS: errno.EMLINK,
    Kind.TOO_LARGE: errno.EFBIG,
    Kind.NO_SPACE: errno.ENOSPC,
    Kind.NO_DATA: errno.ENODATA,
    Kind.RANGE: errno.ERANGE,
    Kind.BUSY: errno.EBUSY,
    Kind.STALE: errno.ESTALE,
    # A fenced session lost the right to write: to the application its handles are stale.
    Kind.FENCED: errno.ESTALE,
    # Numbering of a session's batches went wrong. No application can cause or mend it.
    Kind.CONFLICT: errno.EIO,
    Kind.CORRUPT: errno.EIO,
    Kind.UNAVAILABLE: errno.EIO,
    Kind.TIMED_OUT: errno.ETIMEDOUT,
    # Not ENOSYS: the kernel would stop asking for ever.
    Kind.UNSUPPORTED: errno.ENOTSUP,
    Kind.PROTOCOL: errno.EPROTO,
    Kind.INTERNAL: errno.EIO,
    Kind.QUOTA_EXCEEDED: errno.EDQUOT,
}

HTTP_STATUS: dict[Kind, int] = {
    Kind.NOT_FOUND: 404,
    Kind.EXISTS: 409,
    Kind.NOT_DIRECTORY: 409,
    Kind.IS_DIRECTORY: 409,
    Kind.NOT_EMPTY: 409,
    Kind.INVALID: 400,
    Kind.NAME_TOO_LONG: 400,
    Kind.NOT_PERMITTED: 403,
    Kind.ACCESS_DENIED: 403,
    Kind.READ_ONLY: 403,
    Kind.CROSS_DEVICE: 409,
    Kind.TOO_MANY_LINKS: 409,
    Kind.TOO_LARGE: 413,
    Kind.NO_SPACE: 507,
    Kind.NO_DATA: 404,
    Kind.RANGE: 416,
    Kind.BUSY: 409,
    Kind.STALE: 410,
    Kind.FENCED: 409,
    Kind.CONFLICT: 409,
    Kind.CORRUPT: 500,
    Kind.UNAVAILABLE: 503,
    Kind.TIMED_OUT: 504,
    Kind.UNSUPPORTED: 501,
    Kind.PROTOCOL: 426,
    Kind.INTERNAL: 500,
    Kind.QUOTA_EXCEEDED: 507,
}

RETRYABLE: dict[Kind, bool] = {kind: kind in {Kind.UNAVAILABLE, Kind.TIMED_OUT} for kind in Kind}

LOG_LEVEL: dict[Kind, int] = {
    kind: {
        Kind.CORRUPT: logging.ERROR,
        Kind.INTERNAL: logging.ERROR,
        Kind.CONFLICT: logging.ERROR,
        Kind.FENCED: logging.WARNING,
        Kind.UNAVAILABLE: logging.WARNING,
        Kind.TIMED_OUT: logging.WARNING,
        Kind.PROTOCOL: logging.WARNING,
        Kind.NO_SPACE: logging.WARNING,
        # Refused by a rule of ours that the errno alone does not explain.
        Kind.NOT_PERMITTED: logging.INFO,
    }.get(kind, logging.DEBUG)
    for kind in Kind
}


class MictlanError(Exception):
    """An operation on the space failed.

    Attributes:
        kind: what went wrong; decides errno, HTTP status and whether a retry can help.
        operation: the verb that failed, e.g. "lookup" or "put chunk"; may be empty.
        target: what it was applied to, e.g. a name, an inode number or an address; may be empty.
        detail: one sentence for a person, naming the remedy where there is one; may be empty.
    """

    def __init__(self, kind: Kind, operation: str = "", target: str = "", detail: str = "") -> None:
        super().__init__(kind, operation, target, detail)
        self.kind = kind
        self.operation = operation
        self.target = target
        self.detail = detail

    @property
    def errno(self) -> int:
        """The errno an application sees."""
        return ERRNO[self.kind]

    @property
    def is_retryable(self) -> bool:
        """Whether the same idempotent request may succeed later."""
        return RETRYABLE[self.kind]

    def __str__(self) -> str:
        what = " ".join(part for part in (self.operation, self.target) if part)
        why = self.detail or self.kind.value.replace("-", " ")
        return f"{what}: {why}" if what else why


class UsageError(MictlanError):
    """The user asked for something that cannot be: shown as one line, without a traceback."""

    def __init__(self, detail: str) -> None:
        super().__init__(Kind.INVALID, detail=detail)

    def __reduce__(self) -> tuple[type[UsageError], tuple[str]]:
        return (UsageError, (self.detail,))
