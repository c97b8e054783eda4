"""The one error behind an exception group.

trio wraps whatever leaves a nursery in exception groups, one for each nursery on the way. Whoever
reports to a person or to the kernel wants the cause: this module owns the choice of it. It never
hides an error: when several are in a group, the one that says most wins and the others stay with
it as notes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mictlanfs.errors import MictlanError


def single_error(error: BaseException) -> BaseException:
    """The real cause of `error`, which may be a group of groups; anything else is itself.

    Of several the first in this order: an interrupt or exit, a defect of the program (any other
    exception), a `MictlanError`, a cancellation. The other errors of that order are added to it as
    notes.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = list(_leaves(error))
    cause = min(leaves, key=_rank)
    for other in leaves:
        if other is not cause and not _is_cancellation(other):
            cause.add_note(f"at the same time: {type(other).__name__}: {other}")
    return cause


@contextmanager
def raising_single_errors() -> Iterator[None]:
    """Raise the one real error in the place of an exception group that leaves the block.

    Put it around a nursery whose callers should see plain errors.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        cause = single_error(group)
        # The cause keeps what it was itself raised from; the group says nothing more.
        raise cause from cause.__cause__


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _is_cancellation(error: BaseException) -> bool:
    # The commands that mount and unmount report errors by this module and run no tasks: importing
    # trio was a third of their start. Who never imported it has no cancellation of it either.
    trio = sys.modules.get("trio")
    return trio is not None and isinstance(error, trio.Cancelled)


def _rank(error: BaseException) -> int:
    if _is_cancellation(error):
        return 3
    if isinstance(error, MictlanError):
        return 2
    return 1 if isinstance(error, Exception) else 0
