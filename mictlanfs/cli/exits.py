"""Exit codes: what a script learns from how a command ended.

==== =====================================================================================
0    success; for `exists`: it does; for `status`: healthy
1    the operation failed for a reason with no code of its own; for `exists`: it does not;
     for `status`: degraded
2    the command line or the configuration is wrong
3    not found
4    it exists already, is not empty, is in use, or changed meanwhile
5    the space cannot be reached or did not answer in time
6    no space left, or larger than allowed
7    not allowed
8    stored data is damaged
130  interrupted (Ctrl-C)
141  the reader of the output went away (as `head` does); silent
143  terminated (SIGTERM)
==== =====================================================================================
"""

from __future__ import annotations

from enum import IntEnum

from mictlanfs.errors import Kind, MictlanError, UsageError


class Exit(IntEnum):
    """The codes of the table above."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNREACHABLE = 5
    NO_SPACE = 6
    NOT_ALLOWED = 7
    CORRUPT = 8
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


EXIT: dict[Kind, Exit] = {
    Kind.NOT_FOUND: Exit.NOT_FOUND,
    Kind.EXISTS: Exit.CONFLICT,
    Kind.NOT_DIRECTORY: Exit.FAILED,
    Kind.IS_DIRECTORY: Exit.FAILED,
    Kind.NOT_EMPTY: Exit.CONFLICT,
    Kind.INVALID: Exit.FAILED,
    Kind.NAME_TOO_LONG: Exit.FAILED,
    Kind.NOT_PERMITTED: Exit.NOT_ALLOWED,
    Kind.ACCESS_DENIED: Exit.NOT_ALLOWED,
    Kind.READ_ONLY: Exit.NOT_ALLOWED,
    Kind.CROSS_DEVICE: Exit.FAILED,
    Kind.TOO_MANY_LINKS: Exit.FAILED,
    Kind.TOO_LARGE: Exit.NO_SPACE,
    Kind.NO_SPACE: Exit.NO_SPACE,
    Kind.NO_DATA: Exit.NOT_FOUND,
    Kind.RANGE: Exit.FAILED,
    Kind.BUSY: Exit.CONFLICT,
    Kind.STALE: Exit.CONFLICT,
    Kind.FENCED: Exit.CONFLICT,
    Kind.CONFLICT: Exit.CONFLICT,
    Kind.CORRUPT: Exit.CORRUPT,
    Kind.UNAVAILABLE: Exit.UNREACHABLE,
    Kind.TIMED_OUT: Exit.UNREACHABLE,
    Kind.UNSUPPORTED: Exit.FAILED,
    Kind.PROTOCOL: Exit.FAILED,
    Kind.INTERNAL: Exit.FAILED,
    Kind.QUOTA_EXCEEDED: Exit.NO_SPACE,
}


def exit_code_of(error: MictlanError) -> Exit:
    """The code a command ends with when `error` ends it."""
    return Exit.USAGE if isinstance(error, UsageError) else EXIT[error.kind]
