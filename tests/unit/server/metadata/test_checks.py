import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, InodeNumber
from mictlanfs_server.metadata import checks
from mictlanfs_server.metadata.transaction import Transaction
from tests.unit.server.metadata.space import Space


def test_failure_names_an_inode_or_a_name_that_people_can_read() -> None:
    assert str(checks.failure(Kind.NOT_FOUND, "lookup", 5)) == "lookup inode 5: not found"
    assert checks.failure(Kind.EXISTS, "make", "señal".encode()).target == "señal"
    # Whatever the bytes, the error can travel as text.
    assert checks.failure(Kind.EXISTS, "make", b"\xff\xfe").target.encode()


@pytest.mark.parametrize("value", [0, 5, 10])
def test_range_includes_its_ends(value: int) -> None:
    checks.check_range(value, 0, 10, "mode", "make")


@pytest.mark.parametrize("value", [-1, 11])
def test_value_out_of_range_is_named(value: int) -> None:
    with pytest.raises(MictlanError, match=f"make: mode {value} is out of range"):
        checks.check_range(value, 0, 10, "mode", "make")


def test_directory_is_told_from_file_and_from_nothing(space: Space, bucket: InodeNumber) -> None:
    file = space.make(bucket, b"file")
    tx = Transaction(space.rows, space.session, 0)
    assert checks.directory(tx, bucket, "make").ino == bucket
    assert checks.existing(tx, file, "make").ino == file
    kinds = []
    for ino in (file, InodeNumber(9_999)):
        with pytest.raises(MictlanError) as raised:
            checks.directory(tx, ino, "make")
        kinds.append(raised.value.kind)
    assert kinds == [Kind.NOT_DIRECTORY, Kind.NOT_FOUND]


def test_only_the_root_reserves_a_name() -> None:
    checks.check_root_name(ROOT_INODE, b".mictlanfs2", "make")
    checks.check_root_name(InodeNumber(2), checks.RESERVED_ROOT_NAME, "make")
    with pytest.raises(MictlanError, match="reserved"):
        checks.check_root_name(ROOT_INODE, checks.RESERVED_ROOT_NAME, "make")
