import errno
import logging
import pickle

import pytest

from mictlanfs.cli.exits import EXIT, Exit, exit_code_of
from mictlanfs.errors import (
    ERRNO,
    HTTP_STATUS,
    LOG_LEVEL,
    RETRYABLE,
    Kind,
    MictlanError,
    UsageError,
)


@pytest.mark.parametrize("table", [ERRNO, HTTP_STATUS, RETRYABLE, LOG_LEVEL, EXIT])
def test_every_table_says_something_of_every_kind(table: dict[Kind, object]) -> None:
    assert set(table) == set(Kind)


def test_names_of_kinds_are_those_of_the_protocol() -> None:
    # Append-only: adding a line is fine, changing one breaks older clients and servers.
    assert [kind.value for kind in Kind] == [
        "not-found",
        "exists",
        "not-directory",
        "is-directory",
        "not-empty",
        "invalid",
        "name-too-long",
        "not-permitted",
        "access-denied",
        "read-only",
        "cross-device",
        "too-many-links",
        "too-large",
        "no-space",
        "no-data",
        "range",
        "busy",
        "stale",
        "fenced",
        "conflict",
        "corrupt",
        "unavailable",
        "timed-out",
        "unsupported",
        "protocol",
        "internal",
        "quota-exceeded",
    ]


def test_every_errno_is_one_that_linux_knows() -> None:
    assert all(number in errno.errorcode for number in ERRNO.values())


def test_no_kind_makes_the_kernel_stop_asking() -> None:
    assert errno.ENOSYS not in ERRNO.values()


def test_every_status_is_an_error_status() -> None:
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())


def test_only_what_may_pass_by_itself_is_retried() -> None:
    assert {kind for kind, yes in RETRYABLE.items() if yes} == {Kind.UNAVAILABLE, Kind.TIMED_OUT}


def test_damage_and_defects_need_a_person() -> None:
    loud = {kind for kind, level in LOG_LEVEL.items() if level >= logging.ERROR}
    assert loud == {Kind.CORRUPT, Kind.INTERNAL, Kind.CONFLICT}


@pytest.mark.parametrize("kind", Kind)
def test_an_error_of_every_kind_ends_a_command_with_a_failure(kind: Kind) -> None:
    assert exit_code_of(MictlanError(kind)) is EXIT[kind]
    assert EXIT[kind] not in {Exit.OK, Exit.USAGE}


def test_a_usage_error_has_a_code_of_its_own() -> None:
    assert exit_code_of(UsageError("no")) is Exit.USAGE


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MictlanError(Kind.NOT_FOUND), "not found"),
        (MictlanError(Kind.NOT_FOUND, "lookup"), "lookup: not found"),
        (MictlanError(Kind.NOT_FOUND, "", "b/f"), "b/f: not found"),
        (MictlanError(Kind.NOT_FOUND, "lookup", "b/f", "gone"), "lookup b/f: gone"),
        (UsageError("which space?"), "which space?"),
    ],
)
def test_the_message_says_what_failed_and_why(error: MictlanError, text: str) -> None:
    assert str(error) == text


def test_an_error_knows_its_errno_and_whether_to_retry() -> None:
    error = MictlanError(Kind.TIMED_OUT)
    assert (error.errno, error.is_retryable) == (errno.ETIMEDOUT, True)
    assert not MictlanError(Kind.NO_SPACE).is_retryable


@pytest.mark.parametrize("error", [MictlanError(Kind.BUSY, "a", "b", "c"), UsageError("d")])
def test_errors_survive_pickling(error: MictlanError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.kind, copy.operation, copy.target, copy.detail) == (
        error.kind,
        error.operation,
        error.target,
        error.detail,
    )
