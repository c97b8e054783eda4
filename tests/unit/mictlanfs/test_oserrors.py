import errno
import os

import pytest

from mictlanfs.errors import ERRNO, Kind, MictlanError
from mictlanfs.oserrors import from_os_error, kind_of, translated_os_errors


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, Kind.NOT_FOUND),
        (errno.EACCES, Kind.ACCESS_DENIED),
        (errno.EPERM, Kind.NOT_PERMITTED),
        (errno.ENOSPC, Kind.NO_SPACE),
        (errno.EDQUOT, Kind.QUOTA_EXCEEDED),
        (errno.EROFS, Kind.READ_ONLY),
        (errno.EISDIR, Kind.IS_DIRECTORY),
        (errno.ENOTDIR, Kind.NOT_DIRECTORY),
        (errno.EEXIST, Kind.EXISTS),
        (errno.ESTALE, Kind.STALE),
        (errno.ECONNREFUSED, Kind.UNAVAILABLE),
        (errno.ELOOP, Kind.INVALID),
        (errno.EIO, Kind.INTERNAL),
        (errno.EXFULL, Kind.INTERNAL),
        (None, Kind.INTERNAL),
    ],
)
def test_an_errno_becomes_the_kind_that_means_the_same(number: int | None, kind: Kind) -> None:
    assert kind_of(OSError(number, "text")) is kind


def test_a_kind_with_an_errno_of_its_own_comes_back_as_itself() -> None:
    numbers = list(ERRNO.values())
    for kind, number in ERRNO.items():
        if numbers.count(number) == 1:
            assert kind_of(OSError(number, os.strerror(number))) is kind


def test_the_message_names_the_file_and_what_the_system_says() -> None:
    with pytest.raises(MictlanError) as caught, translated_os_errors("open"):
        os.stat("/no/such/file")
    assert str(caught.value) == "open /no/such/file: No such file or directory"
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_target_that_is_given_replaces_the_file_name() -> None:
    error = from_os_error(FileNotFoundError(errno.ENOENT, "gone", "/tmp/x.tmp"), "put", "b/f")
    assert str(error) == "put b/f: gone"


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), translated_os_errors("divide"):
        raise ZeroDivisionError
