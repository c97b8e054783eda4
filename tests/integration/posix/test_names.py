"""Any byte but `/` and NUL in names, wherever names stand: links, targets, attributes, listings."""

from __future__ import annotations

import os

import pytest

from tests.integration.posix.calls import ALICE, OK, attempt

pytestmark = pytest.mark.usefixtures("bucket")

SINGLE = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
ODD = [
    b"\xff\xfe",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"line\nbreak",
    b"back\\slash",
    b" leading and trailing ",
    b"\xff" * 255,
    "\N{SNOWMAN}".encode() * 85,
]
NAMES = [*SINGLE, *ODD]


def test_files_links_and_targets_have_names_of_any_bytes() -> None:
    os.mkdir("d")
    for name in NAMES:
        os.close(os.open(b"d/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    assert set(os.listdir(b"d")) == set(NAMES)
    os.mkdir("e")
    for name in NAMES:
        os.link(b"d/" + name, b"e/" + name)
        os.rename(b"d/" + name, b"d/moved")
        os.symlink(name, b"d/" + name)
        assert os.readlink(b"d/" + name) == name
        os.unlink(b"d/moved")
    for name in NAMES:
        assert os.lstat(b"e/" + name).st_nlink == 1
        os.unlink(b"e/" + name)
    os.rmdir("e")


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_directories_of_any_name_are_walked_through(name: bytes) -> None:
    os.mkdir(name)
    os.mkdir(name + b"/" + name)
    os.close(os.open(name + b"/" + name + b"/file", os.O_CREAT | os.O_WRONLY))
    assert attempt(os.stat, name + b"/../" + name + b"/" + name + b"/file", user=ALICE) == OK
    os.unlink(name + b"/" + name + b"/file")
    os.removedirs(name + b"/" + name)


def test_attributes_have_names_of_any_bytes() -> None:
    os.mkdir("d")
    names = [b"user." + byte for byte in SINGLE]
    for name in names:
        os.setxattr("d", name, name)
    assert {os.fsencode(name) for name in os.listxattr("d")} == set(names)
    for name in names:
        assert os.getxattr("d", name) == name
        os.removexattr("d", name)
    assert os.listxattr("d") == []
