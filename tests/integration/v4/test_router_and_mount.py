"""One world: what clients of the v4 interface put are files, and files are balls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, mounted
from tests.support.v4 import Server, sha256

pytestmark = pytest.mark.fuse

CHUNK_SIZE_BYTES = 4 * 1024 * 1024


@pytest.fixture(scope="module")
def mount(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount of the space, shared by the tests of this module."""
    with mounted(space.uri, tmp_path_factory.mktemp("mount")) as started:
        yield started


@pytest.fixture
def folder(mount: Mount, bucket: str) -> Path:
    """The bucket of a test on the mount; not made yet."""
    return mount.path / bucket


def test_record_put_by_api_is_a_file(router: Server, bucket: str, folder: Path) -> None:
    body = os.urandom(9_000_000)
    router.put(bucket, "k", body)
    assert (folder / "k").read_bytes() == body
    assert os.listdir(folder) == ["k"]


def test_chunks_are_files_until_all_are_there_and_then_one(
    router: Server, bucket: str, folder: Path
) -> None:
    chunks = [os.urandom(size) for size in (300_000, 100, 5_000_000)]
    router.put_ball(bucket, "ball", chunks, [2, 0])
    assert sorted(os.listdir(folder)) == ["ball_0", "ball_2"]
    assert (folder / "ball_2").read_bytes() == chunks[2]
    router.put_ball(bucket, "ball", chunks, [1])
    assert os.listdir(folder) == ["ball"]
    assert (folder / "ball").read_bytes() == b"".join(chunks)


@pytest.mark.parametrize("size", [0, 5, 100_000, CHUNK_SIZE_BYTES, 2 * CHUNK_SIZE_BYTES + 7])
def test_file_is_a_ball_of_chunks(router: Server, bucket: str, folder: Path, size: int) -> None:
    body = os.urandom(size)
    folder.mkdir()
    (folder / "file.txt").write_bytes(body)
    assert router.get_ball(bucket, "file.txt") == body
    assert router.get_ball(bucket, "filetxt") == body
    found = router.json(f"/buckets/{bucket}/metadata/file.txt/chunks")
    count = max(1, -(-size // CHUNK_SIZE_BYTES))
    assert [chunk["key"] for chunk in found["chunks"]] == [f"file.txt_{i}" for i in range(count)]
    assert found["checksum"] == sha256(body)
    tags = found["chunks"][0]["tags"]
    assert (tags["fullname"], tags["extension"]) == ("file.txt", "txt")
    assert all(isinstance(value, str) for value in tags.values())
    assert found["chunks"][0]["content_type"] == "text/plain"
    assert router.json(f"/buckets/{bucket}/metadata")["balls"] == found["chunks"]
    assert router.get(f"/buckets/{bucket}/file.txt").content == body


def test_file_that_is_changed_is_another_ball_at_once(
    router: Server, bucket: str, folder: Path
) -> None:
    router.put_ball(bucket, "ball", [b"0" * 50_000, b"1" * 50_000])
    with open(folder / "ball", "r+b") as file:
        file.seek(49_998)
        file.write(b"mount")
    expected = b"0" * 49_998 + b"mount" + b"1" * 49_997
    assert router.get_ball(bucket, "ball") == expected
    assert router.keys(bucket) == ["ball_0"]
    with open(folder / "ball", "ab") as file:
        file.write(b"more")
    assert router.get_ball(bucket, "ball") == expected + b"more"


def test_cached_record_is_not_told_after_the_file_was_changed(
    router: Server, bucket: str, folder: Path
) -> None:
    router.put(bucket, "k", b"old content")
    assert router.get(f"/buckets/{bucket}/k").content == b"old content"
    (folder / "k").write_bytes(b"new content")
    assert router.get(f"/buckets/{bucket}/k").content == b"new content"
    assert router.get_ball(bucket, "k") == b"new content"
    (folder / "k").write_bytes(b"newer")
    assert router.get(f"/buckets/{bucket}/k_0").content == b"newer"


def test_rename_in_the_mount_is_a_renamed_ball(router: Server, bucket: str, folder: Path) -> None:
    chunks = [b"0" * 50_000, b"1" * 50_000]
    router.put_ball(bucket, "ball", chunks)
    router.put(bucket, "record", b"r", ball="other", tags={"a": "b"})
    (folder / "ball").rename(folder / "renamed")
    (folder / "sub").mkdir()
    (folder / "record").rename(folder / "sub" / "moved")
    assert router.get_ball(bucket, "renamed") == b"".join(chunks)
    assert router.get(f"/buckets/{bucket}/metadata/ball_0").status_code == 404
    assert router.get(f"/buckets/{bucket}/metadata/ball/chunks").status_code == 404
    found = router.json(f"/buckets/{bucket}/metadata/renamed_1")["metadata"]
    assert (found["ball_id"], found["tags"]["index"]) == ("renamed", "1")
    moved = router.json(f"/buckets/{bucket}/metadata/sub/moved")["metadata"]
    assert (moved["ball_id"], moved["tags"]) == ("sub/moved", {"a": "b"})
    (folder / "renamed").rename(folder / "ball")
    assert router.get_ball(bucket, "ball") == b"".join(chunks)


def test_deletes_by_either_door_are_deletes_for_both(
    router: Server, bucket: str, folder: Path
) -> None:
    router.put_ball(bucket, "ball", [b"0" * 50_000, b"1" * 50_000])
    router.put(bucket, "k", b"x")
    (folder / "mine").write_bytes(b"y" * 100_000)
    assert sorted(os.listdir(folder)) == ["ball", "k", "mine"]
    (folder / "ball").unlink()
    assert router.get(f"/buckets/{bucket}/metadata/ball_0").status_code == 404
    assert router.get(f"/buckets/{bucket}/ball_1").status_code == 404
    assert router.delete(f"/buckets/{bucket}/k").status_code == 200
    assert router.delete(f"/buckets/{bucket}/bid/mine").json()["n_deletes"] == 2
    assert os.listdir(folder) == []
    assert not (folder / "k").exists()
    router.put(bucket, "k", b"again")
    assert (folder / "k").read_bytes() == b"again"


def test_chunk_of_a_ball_deleted_by_api_takes_the_file_apart_unless_a_name_is_in_the_way(
    router: Server, bucket: str, folder: Path
) -> None:
    chunks = [os.urandom(20_000) for _ in range(3)]
    router.put_ball(bucket, "ball", chunks)
    (folder / "ball_2").write_bytes(b"mine")
    response = router.delete(f"/buckets/{bucket}/ball_0")
    assert response.status_code == 409
    assert sorted(os.listdir(folder)) == ["ball", "ball_2"]
    assert (folder / "ball").read_bytes() == b"".join(chunks)
    (folder / "ball_2").unlink()
    assert router.delete(f"/buckets/{bucket}/ball_0").status_code == 200
    assert sorted(os.listdir(folder)) == ["ball_1", "ball_2"]
    assert (folder / "ball_2").read_bytes() == chunks[2]


def test_file_that_is_not_flushed_yet_is_seen_whole(
    router: Server, bucket: str, folder: Path
) -> None:
    folder.mkdir()
    for number in range(50):
        (folder / f"f{number}").write_bytes(b"%d" % number)
        assert router.get(f"/buckets/{bucket}/f{number}").content == b"%d" % number


def test_holes_read_as_zeros(router: Server, bucket: str, folder: Path) -> None:
    folder.mkdir()
    with open(folder / "sparse", "wb") as file:
        file.write(b"start")
        file.seek(6_000_000)
        file.write(b"end")
        file.truncate(7_000_000)
    expected = b"start".ljust(6_000_000, b"\0") + b"end".ljust(1_000_000, b"\0")
    assert router.get_ball(bucket, "sparse") == expected
    response = router.get(f"/buckets/{bucket}/sparse", headers={"Range": "bytes=3-6000001"})
    assert response.content == expected[3:6_000_002]


def test_file_in_the_way_of_a_ball_stays_and_the_ball_is_refused(
    router: Server, bucket: str, folder: Path
) -> None:
    chunks = [b"0" * 50_000, b"1" * 50_000]
    router.put_ball(bucket, "ball", chunks, [0])
    task = router.task(
        bucket, "ball_1", chunks[1], ball="ball", tags={"index": "1", "num_chunks": "2"}
    )
    (folder / "ball").write_bytes(b"mine")
    response = router.send(task, chunks[1])
    assert (response.status_code, response.json()["detail"]["code"]) == (409, 666)
    assert sorted(os.listdir(folder)) == ["ball", "ball_0"]
    assert (folder / "ball").read_bytes() == b"mine"
    response = router.announce(
        bucket, "ball_1", chunks[1], ball="ball", tags={"index": "1", "num_chunks": "2"}
    )
    assert (response.status_code, response.json()["detail"]["code"]) == (404, 666)


def test_directory_in_the_way_is_a_conflict(router: Server, bucket: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "k").mkdir()
    assert router.send(router.task(bucket, "k", b"x"), b"x").status_code == 409
    (folder / "file").write_bytes(b"x")
    assert router.send(router.task(bucket, "file/k", b"x"), b"x").status_code == 409
    assert router.get(f"/buckets/{bucket}/k").status_code == 404


def test_quota_of_a_bucket_holds_for_clients_too(
    space: Space, router: Server, bucket: str, folder: Path
) -> None:
    folder.mkdir()
    space.command("bucket", "set", bucket, "--quota", "1M")
    router.put(bucket, "fits", b"x" * 900_000)
    response = router.send(router.task(bucket, "more", b"x" * 900_000), b"x" * 900_000)
    assert response.status_code == 507
    assert os.listdir(folder) == ["fits"]
    router.put_ball(bucket, "ball", [b"0" * 1000, b"1" * 1000])
    assert (folder / "ball").read_bytes() == b"0" * 1000 + b"1" * 1000
    router.delete(f"/buckets/{bucket}/fits")
    chunks = [os.urandom(300_000) for _ in range(3)]
    router.put_ball(bucket, "large", chunks)
    assert router.delete(f"/buckets/{bucket}/large_1").status_code == 200
    assert sorted(os.listdir(folder)) == ["ball", "large_0", "large_2"]
    assert (folder / "large_2").read_bytes() == chunks[2]
    router.put_ball(bucket, "large", chunks, [1])
    assert (folder / "large").read_bytes() == b"".join(chunks)
