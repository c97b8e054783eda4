import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import KIB, MIB, Chunk
from mictlanfs_mount.chunkcache.files import ChunkFiles
from tests.unit.mount.chunkcache.making import make_chunk


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Reopening:
    """Opens the directory for one process after another."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: ChunkFiles | None = None

    def __call__(self) -> ChunkFiles:
        self.close()
        self._files = ChunkFiles(self._directory)
        return self._files

    def close(self) -> None:
        if self._files is not None:
            self._files.close()
        self._files = None


@pytest.fixture
def reopen(directory: Path) -> Iterator[Reopening]:
    opening = Reopening(directory)
    yield opening
    opening.close()


@pytest.fixture
def files(reopen: Reopening) -> ChunkFiles:
    files = reopen()
    files.listing()
    return files


def path_of(directory: Path, chunk: Chunk) -> Path:
    name = chunk.id.hex()
    return directory / "chunks" / name[-2:] / name


def only_file(directory: Path) -> Path:
    (file,) = (path for path in (directory / "chunks").rglob("*") if path.is_file())
    return file


def test_a_written_chunk_reads_back(files: ChunkFiles) -> None:
    chunk, body = make_chunk(100 * KIB)
    files.write(chunk.id, body)
    assert files.read(chunk.id, 0, chunk.length) == body
    assert files.read(chunk.id, 5, 17) == body[5:17]
    assert files.is_good(chunk)


def test_chunks_of_one_time_are_spread_over_folders(files: ChunkFiles, directory: Path) -> None:
    for seed in range(50):
        files.write(make_chunk(1, seed)[0].id, b"x")
    assert len(list((directory / "chunks").iterdir())) > 10


def test_nobody_else_can_look_inside(files: ChunkFiles, directory: Path) -> None:
    previous = os.umask(0)
    try:
        files.write(make_chunk(10)[0].id, b"0123456789")
    finally:
        os.umask(previous)
    for path in directory.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) & ~wanted == 0, path
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_second_owner_is_told_whose_the_directory_is(files: ChunkFiles, directory: Path) -> None:
    with pytest.raises(MictlanError, match="-o cache_dir=") as caught:
        ChunkFiles(directory)
    assert caught.value.kind is Kind.BUSY
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_directory_is_free_again_after_close(directory: Path) -> None:
    ChunkFiles(directory).close()
    ChunkFiles(directory).close()


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="-o cache_dir="):
        ChunkFiles(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_path_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(MictlanError, match=str(file)):
        ChunkFiles(file)


def test_listing_gives_what_was_written_oldest_use_first(
    files: ChunkFiles, reopen: Reopening
) -> None:
    chunks = [make_chunk(length, length)[0] for length in (10, 20, 30)]
    for number, chunk in enumerate(chunks):
        files.write(chunk.id, b"x" * chunk.length)
        os.utime(path_of(files.directory, chunk), ns=(0, 10**9 * (number + 1)))
    files.touch([chunks[0].id])
    found = reopen().listing()
    assert [file.chunk_id for file in found] == [chunks[1].id, chunks[2].id, chunks[0].id]
    assert [file.length for file in found] == [20, 30, 10]


def test_half_written_files_are_swept(
    files: ChunkFiles, directory: Path, reopen: Reopening
) -> None:
    chunk, body = make_chunk(10)
    files.write(chunk.id, body)
    part = directory / "chunks" / "ab" / ("ab" * 16 + ".part")
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"half")
    assert [file.chunk_id for file in reopen().listing()] == [chunk.id]
    assert not part.exists()


FOREIGN = [
    "chunks/ab/readme",
    "chunks/ab/" + "AB" * 16,
    "chunks/ab/" + "ab" * 15 + "cd",
    "chunks/ab/" + "ab" * 16 + ".bak",
    "chunks/abc/" + "ab" * 16,
    "chunks/" + "ab" * 16,
]


@pytest.mark.parametrize("version", ["1", "2"])
def test_files_that_are_not_ours_are_never_deleted(
    files: ChunkFiles, directory: Path, reopen: Reopening, version: str
) -> None:
    for name in FOREIGN:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("precious")
    outside = directory.parent / "outside"
    outside.mkdir()
    (outside / ("cd" * 16)).write_text("precious")
    (directory / "chunks" / "cd").symlink_to(outside)
    (directory / "format").write_text(f"mictlanfs chunk cache {version}\n")
    assert reopen().listing() == []
    assert all((directory / name).exists() for name in FOREIGN)
    assert (outside / ("cd" * 16)).exists()


def test_a_cache_of_another_version_is_emptied(
    files: ChunkFiles, directory: Path, reopen: Reopening, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(make_chunk(10)[0].id, b"0123456789")
    (directory / "format").write_text("mictlanfs chunk cache 0\n")
    with caplog.at_level("INFO"):
        assert reopen().listing() == []
    assert not [path for path in (directory / "chunks").rglob("*") if path.is_file()]
    assert (directory / "format").read_text() == "mictlanfs chunk cache 1\n"
    assert len(caplog.records) == 1
    assert "another format" in caplog.text


def test_an_empty_format_file_is_what_a_crash_leaves_and_no_obstacle(
    files: ChunkFiles, directory: Path, reopen: Reopening
) -> None:
    (directory / "format").write_text("")
    assert reopen().listing() == []


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen"])
def test_a_damaged_file_is_not_good(files: ChunkFiles, directory: Path, damage: str) -> None:
    chunk, body = make_chunk(2 * MIB + 17)
    files.write(chunk.id, body)
    with only_file(directory).open("r+b") as file:
        if damage == "flip":
            file.seek(MIB + 3)
            file.write(bytes([body[MIB + 3] ^ 1]))
        elif damage == "shorten":
            file.truncate(chunk.length - 1)
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"x")
    assert not files.is_good(chunk)


def test_a_missing_file_is_reported_as_such(files: ChunkFiles) -> None:
    chunk, _ = make_chunk(10)
    with pytest.raises(FileNotFoundError):
        files.is_good(chunk)
    with pytest.raises(FileNotFoundError):
        files.read(chunk.id, 0, 1)
    with pytest.raises(FileNotFoundError):
        files.read_ahead(chunk.id)
    files.touch([chunk.id])
    files.delete([chunk.id])


def test_delete_removes_the_files(files: ChunkFiles, directory: Path) -> None:
    chunks = [make_chunk(10, seed) for seed in range(3)]
    for chunk, body in chunks:
        files.write(chunk.id, body)
    files.delete([chunk.id for chunk, _ in chunks[:2]])
    assert only_file(directory).name == chunks[2][0].id.hex()


def test_a_write_that_fails_leaves_nothing(
    files: ChunkFiles, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.write(make_chunk(10)[0].id, b"0123456789")
    monkeypatch.undo()
    assert not [path for path in (directory / "chunks").rglob("*") if path.is_file()]


def test_a_directory_put_in_the_place_of_ours_is_not_written_to(
    files: ChunkFiles, directory: Path
) -> None:
    moved = directory.with_name("moved")
    directory.rename(moved)
    directory.mkdir()
    chunk, body = make_chunk(10)
    files.write(chunk.id, body)
    assert os.listdir(directory) == []
    assert files.read(chunk.id, 0, 10) == body


def test_space_is_that_of_the_file_system(files: ChunkFiles, directory: Path) -> None:
    space = files.space()
    found = os.statvfs(directory)
    assert space.total == found.f_blocks * found.f_frsize
    assert 0 < space.free <= space.total
