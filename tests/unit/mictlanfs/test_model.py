import stat

import pytest

from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import Attributes, Extent, FileKind, InodeNumber


@pytest.mark.parametrize("kind", FileKind)
def test_the_mode_of_struct_stat_has_type_and_permissions(kind: FileKind) -> None:
    attributes = Attributes(InodeNumber(2), kind, 0o4751, 0, 0, 0, 0, 0, 0, 1)
    assert stat.S_IFMT(attributes.st_mode) >> 12 == kind
    assert stat.S_IMODE(attributes.st_mode) == 0o4751


def test_every_file_type_of_linux_is_a_kind() -> None:
    types = [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFBLK, stat.S_IFREG, stat.S_IFLNK]
    assert {FileKind(number >> 12) for number in (*types, stat.S_IFSOCK)} == set(FileKind)


def test_an_extent_ends_behind_its_last_byte() -> None:
    assert Extent(10, 5, new_chunk_id(), 0).end == 15
