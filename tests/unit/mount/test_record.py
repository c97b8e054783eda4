from pathlib import Path

import msgspec
import pytest

from mictlanfs.config import parse_mount_options
from mictlanfs_mount.record import (
    option_texts,
    read_record,
    record_of_this_process,
    remove_record,
    write_record,
)

URI = "mictlanx://r@127.0.0.1:60666/?protocol=http"

pytestmark = pytest.mark.usefixtures("user_directories")


def test_a_record_reads_back(tmp_path: Path) -> None:
    record = record_of_this_process(tmp_path, URI, tmp_path / "log")
    write_record(record)
    assert read_record(tmp_path) == record
    assert record.log_path == str(tmp_path / "log")


def test_the_options_of_a_mount_are_recorded_as_texts(tmp_path: Path) -> None:
    options = parse_mount_options("uid=5,cache_dir=/c,ro")
    record = record_of_this_process(tmp_path, URI, None, options)
    write_record(record)
    assert read_record(tmp_path) == record
    texts = {"uid": "5", "cache_dir": "/c", "read_only": "True", "gid": "None"}
    assert texts.items() <= record.options.items()
    assert option_texts({"uid": 5}).items() <= record.options.items()


def test_each_mountpoint_has_its_own(tmp_path: Path) -> None:
    write_record(record_of_this_process(tmp_path / "a", URI, None))
    assert read_record(tmp_path / "b") is None


def test_the_last_record_of_a_mountpoint_counts(tmp_path: Path) -> None:
    record = record_of_this_process(tmp_path, URI, None)
    other = msgspec.structs.replace(record.process, pid=1)
    write_record(msgspec.structs.replace(record, process=other))
    write_record(record)
    assert read_record(tmp_path) == record


def test_a_removed_record_is_gone(tmp_path: Path) -> None:
    record = record_of_this_process(tmp_path, URI, None)
    write_record(record)
    remove_record(record)
    assert read_record(tmp_path) is None
    remove_record(record)


def test_the_record_of_another_process_is_not_removed(tmp_path: Path) -> None:
    record = record_of_this_process(tmp_path, URI, None)
    write_record(record)
    other = msgspec.structs.replace(record.process, started_ticks=1)
    remove_record(msgspec.structs.replace(record, process=other))
    assert read_record(tmp_path) == record


def test_a_record_of_another_boot_means_nothing(tmp_path: Path) -> None:
    record = record_of_this_process(tmp_path, URI, None)
    earlier = msgspec.structs.replace(record.process, boot_id="another")
    write_record(msgspec.structs.replace(record, process=earlier))
    assert read_record(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"process": 1}', b"\xff"])
def test_a_damaged_record_is_none(tmp_path: Path, user_directories: Path, content: bytes) -> None:
    write_record(record_of_this_process(tmp_path, URI, None))
    (file,) = user_directories.rglob("*.json")
    file.write_bytes(content)
    assert read_record(tmp_path) is None


def test_only_the_user_can_read_it(tmp_path: Path, user_directories: Path) -> None:
    write_record(record_of_this_process(tmp_path, URI, None))
    (file,) = user_directories.rglob("*.json")
    assert file.parent.stat().st_mode & 0o077 == 0


def test_a_mountpoint_with_any_bytes_in_it_can_be_recorded() -> None:
    mountpoint = Path("/tmp/\udcff\n" + "x" * 300)
    record = record_of_this_process(mountpoint, URI, None)
    write_record(record)
    assert read_record(mountpoint) == record
