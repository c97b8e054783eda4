from dataclasses import dataclass

from mictlanfs.model import InodeNumber
from mictlanfs_mount.contentpages import (
    COUNT_FIRST,
    COUNT_FIRST_READING,
    COUNT_MAX,
    COUNT_SECOND,
    ContentPages,
    Page,
)


@dataclass(frozen=True)
class File:
    ino: InodeNumber


COUNT = 5000
NAMES = [b"f%04d" % index for index in range(COUNT)]
FILES = [(name, File(InodeNumber(100 + index))) for index, name in enumerate(NAMES)]


def ino(index: int) -> InodeNumber:
    return FILES[index][1].ino


def test_the_first_file_comes_alone_and_the_next_ones_in_growing_pages() -> None:
    pages = ContentPages(FILES)
    assert pages.on_missing(ino(0)) == Page(b"", COUNT_FIRST)
    assert pages.on_missing(ino(7)) == Page(NAMES[6], COUNT_SECOND)
    counts = [pages.on_missing(ino(100)).entries_max for _ in range(6)]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] == COUNT_MAX


def test_who_just_read_another_directory_begins_with_more() -> None:
    pages = ContentPages(FILES, COUNT_FIRST_READING)
    assert pages.on_missing(ino(0)) == Page(b"", COUNT_FIRST_READING)


def test_the_next_page_is_asked_for_before_it_is_wanted() -> None:
    pages = ContentPages(FILES, COUNT_FIRST_READING)
    pages.on_missing(ino(0))
    half = COUNT_FIRST_READING // 2
    assert [pages.on_found(ino(index)) for index in range(half)] == [None] * half
    following = pages.on_found(ino(half))
    assert following is not None
    assert following.after == NAMES[COUNT_FIRST_READING - 1]
    assert pages.on_found(ino(half + 1)) is None, "it is asked for already"


def test_one_reader_in_order_is_told_of_every_file_once() -> None:
    pages = ContentPages(FILES)
    told: list[int] = []
    for index in range(COUNT):
        page = pages.on_found(ino(index)) if index < len(told) else pages.on_missing(ino(index))
        if page is not None:
            start = NAMES.index(page.after) + 1 if page.after else 0
            told += range(start, min(start + page.entries_max, COUNT))
    assert told == list(range(COUNT))


def test_there_is_nothing_behind_the_last_file() -> None:
    pages = ContentPages(FILES[:3], COUNT_FIRST_READING)
    pages.on_missing(ino(0))
    assert [pages.on_found(ino(index)) for index in range(3)] == [None] * 3
    assert pages.knows(ino(2))
    assert not pages.knows(ino(3))
    assert pages.on_found(ino(3)) is None
