"""setxattr(2), getxattr(2), listxattr(2), removexattr(2)."""

from __future__ import annotations

import os

import pytest

from tests.integration.posix.calls import (
    ALICE,
    BOB,
    OK,
    ROOT,
    BadPath,
    User,
    attempt,
    every_bad_path,
    every_kind,
    getxattr_into,
    listxattr_into,
    make,
    touching,
    touching_nothing,
)

pytestmark = pytest.mark.usefixtures("bucket")

VALUE_SIZE_MAX = 64 * 1024
CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("size", [0, 1, 255, 4096, VALUE_SIZE_MAX])
def test_a_value_is_kept_to_the_byte(kind: str, size: int) -> None:
    make(kind)
    value = os.urandom(size)
    with touching(ctime=["node"]), touching_nothing("."):
        os.setxattr("node", "user.a", value)
    assert os.getxattr("node", "user.a") == value
    assert os.listxattr("node") == ["user.a"]
    with touching(ctime=["node"]):
        os.setxattr("node", "user.a", b"another")
    assert os.getxattr("node", "user.a") == b"another"
    with touching(ctime=["node"]):
        os.removexattr("node", "user.a")
    assert os.listxattr("node") == []


@pytest.mark.parametrize(
    "name", [b"user.\xff\xfe", b"user. \n", b"user." + b"n" * 250, b"user.a.b"]
)
def test_odd_names(name: bytes) -> None:
    make("file")
    os.setxattr("node", name, b"value")
    assert os.getxattr("node", name) == b"value"
    assert [os.fsencode(found) for found in os.listxattr("node")] == [name]


@pytest.mark.parametrize(
    ("exists", "flags", "expected"),
    [
        (False, 0, OK),
        (True, 0, OK),
        (False, CREATE, OK),
        (True, CREATE, "EEXIST"),
        (False, REPLACE, "ENODATA"),
        (True, REPLACE, OK),
        (True, CREATE | REPLACE, "EEXIST"),
        (True, 4, "EINVAL"),
    ],
)
def test_flags(exists: bool, flags: int, expected: str) -> None:
    make("file")
    if exists:
        os.setxattr("node", "user.a", b"old")
    with touching(ctime=["node"]) if expected == OK else touching_nothing("node"):
        assert attempt(os.setxattr, "node", "user.a", b"new", flags) == expected
    if exists:
        assert os.getxattr("node", "user.a") == (b"new" if expected == OK else b"old")


def test_what_is_missing() -> None:
    make("file")
    with touching_nothing("node"):
        assert attempt(os.getxattr, "node", "user.a") == "ENODATA"
        assert attempt(os.removexattr, "node", "user.a") == "ENODATA"
    os.setxattr("node", "user.a", b"")
    assert attempt(os.getxattr, "node", "user.b") == "ENODATA"
    assert attempt(os.getxattr, "missing", "user.a") == "ENOENT"


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("user.a", VALUE_SIZE_MAX + 1, "E2BIG"),
        ("user." + "n" * 251, 1, "ERANGE"),
        ("", 1, "ERANGE"),
    ],
    ids=["value", "name", "empty name"],
)
def test_sizes_beyond_the_limits(name: str, size: int, expected: str) -> None:
    make("file")
    with touching_nothing("node"):
        assert attempt(os.setxattr, "node", name, bytes(size)) == expected


def test_a_buffer_too_small_and_the_size_asked_for() -> None:
    make("file")
    os.setxattr("node", "user.a", bytes(100))
    os.setxattr("node", "user.bc", b"")
    assert getxattr_into("node", "user.a", 0) == 100
    assert getxattr_into("node", "user.a", 100) == 100
    assert attempt(getxattr_into, "node", "user.a", 99) == "ERANGE"
    assert getxattr_into("node", "user.bc", 10) == 0
    assert listxattr_into("node", 0) == len("user.a") + len("user.bc") + 2
    assert attempt(listxattr_into, "node", 14) == "ERANGE"


def test_names_together_have_a_limit() -> None:
    make("file")
    name_size = 250
    count = VALUE_SIZE_MAX // (name_size + 1)
    for number in range(count):
        os.setxattr("node", f"user.{number:0{name_size - 5}}", b"")
    assert len(os.listxattr("node")) == count
    one_more = f"user.{count:0{name_size - 5}}"
    assert attempt(os.setxattr, "node", one_more, b"") == "ENOSPC"
    assert len(os.listxattr("node")) == count


def test_all_links_and_descriptors_share_them() -> None:
    make("file")
    os.link("node", "second")
    fd = os.open("node", os.O_RDONLY)
    os.setxattr(fd, "user.a", b"shared")
    assert os.getxattr("second", "user.a") == b"shared"
    os.rename("second", "third")
    assert os.getxattr("third", "user.a") == b"shared"
    os.unlink("node")
    os.unlink("third")
    assert os.getxattr(fd, "user.a") == b"shared"
    os.close(fd)


@every_kind
def test_users_attributes_belong_to_files_and_directories(kind: str) -> None:
    make(kind)
    expected = OK if kind in {"file", "directory"} else "EPERM"

    def set_one() -> None:
        os.setxattr("node", "user.a", b"value", follow_symlinks=False)

    assert attempt(set_one) == expected
    os.setxattr("node", "trusted.a", b"value", follow_symlinks=False)
    assert os.getxattr("node", "trusted.a", follow_symlinks=False) == b"value"


@pytest.mark.parametrize("user", [ROOT, ALICE, BOB])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o602, 0o606, 0o400, 0o000])
def test_reading_and_writing_take_the_rights_of_the_file(user: User, mode: int) -> None:
    make("file", "node", mode, ALICE)
    os.setxattr("node", "user.a", b"old")
    bits = {ROOT: 6, ALICE: mode >> 6, BOB: mode & 7}[user]
    expected = OK if bits & 4 else "EACCES"
    assert attempt(os.getxattr, "node", "user.a", user=user) == expected
    for call in (
        lambda: os.setxattr("node", "user.a", b""),
        lambda: os.removexattr("node", "user.a"),
    ):
        assert attempt(call, user=user) == (OK if bits & 2 else "EACCES")


def test_only_the_owner_marks_a_sticky_directory() -> None:
    make("directory", "d", 0o1777, ALICE)
    assert attempt(os.setxattr, "d", "user.a", b"", user=BOB) == "EPERM"
    assert attempt(os.setxattr, "d", "user.a", b"", user=ALICE) == OK


def test_trusted_attributes_are_for_root() -> None:
    make("file", "node", 0o666, ALICE)
    os.setxattr("node", "trusted.a", b"value")
    assert attempt(os.setxattr, "node", "trusted.b", b"", user=ALICE) == "EPERM"
    assert attempt(os.getxattr, "node", "trusted.a", user=ALICE) == "ENODATA"


def test_security_attributes_are_set_by_root_only() -> None:
    make("file", "node", 0o666, ALICE)
    assert attempt(os.setxattr, "node", "security.a", b"", user=ALICE) == "EPERM"
    os.setxattr("node", "security.a", b"value")
    assert os.getxattr("node", "security.a") == b"value"


def test_capabilities_go_with_a_write() -> None:
    make("file", "node", 0o777)
    # cap_net_raw, permitted and effective: capabilities(7).
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr("node", "security.capability", capability)
    assert attempt(lambda: os.truncate("node", 1), user=BOB) == OK
    assert attempt(os.getxattr, "node", "security.capability") == "ENODATA"


@pytest.mark.parametrize("name", ["system.other", "system.", "system.nfs4_acl"])
def test_other_names_of_the_system_are_not_supported(name: str) -> None:
    make("file")
    assert attempt(os.setxattr, "node", name, b"") in {"ENOTSUP", "EINVAL"}
    assert attempt(os.getxattr, "node", name) in {"ENOTSUP", "ENODATA", "EINVAL"}
    assert os.listxattr("node") == []


@pytest.mark.parametrize("name", ["colour", "other.colour", ".user", "User.a"])
def test_a_name_of_no_namespace_is_not_supported(name: str) -> None:
    make("file")
    with touching_nothing("node"):
        assert attempt(os.setxattr, "node", name, b"") == "ENOTSUP"
        assert attempt(os.getxattr, "node", name) == "ENOTSUP"
        assert attempt(os.removexattr, "node", name) == "ENOTSUP"


@pytest.mark.parametrize("name", ["user.", "trusted.", "security."])
def test_a_namespace_alone_is_no_name(name: str) -> None:
    make("file")
    with touching_nothing("node"):
        assert attempt(os.setxattr, "node", name, b"") == "EINVAL"
        assert attempt(os.getxattr, "node", name) == "EINVAL"
        assert attempt(os.removexattr, "node", name) == "EINVAL"


@every_bad_path
def test_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(lambda path: os.setxattr(path, "user.a", b""))


@every_bad_path
def test_reading_by_a_path_that_leads_nowhere_is_refused(bad: BadPath) -> None:
    bad.check(lambda path: os.getxattr(path, "user.a"))


def test_a_read_only_mount_refuses_changes(read_only: object) -> None:
    assert attempt(os.setxattr, "file", "user.a", b"") == "EROFS"
    assert attempt(os.removexattr, "file", "user.colour") == "EROFS"
    assert os.getxattr("file", "user.colour") == b"blue"
