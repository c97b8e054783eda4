"""One space, several doors: what came in by one is there by the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.spaces import Mount, Space, mounted

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def mount(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests here; `work` is a bucket of each test's own."""
    with mounted(space.uri, tmp_path_factory.mktemp("shared")) as started:
        yield started


def test_file_written_on_the_mount_is_listed_and_fetched_by_command(
    space: Space, work: Path, tmp_path: Path
) -> None:
    body = os.urandom(5_000_000)
    (work / "a").mkdir()
    (work / "a" / "data.bin").write_bytes(body)

    listed = space.command("ls", f"{work.name}/a", "--json").stdout
    assert "data.bin" in listed
    space.command("get", f"{work.name}/a/data.bin", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == body


def test_object_put_by_command_is_read_by_cat(space: Space, work: Path, tmp_path: Path) -> None:
    body = os.urandom(5_000_000)
    (tmp_path / "source").write_bytes(body)
    space.command("put", tmp_path / "source", f"{work.name}/x/y/object")
    assert (work / "x" / "y" / "object").read_bytes() == body


def test_directory_in_the_root_is_a_bucket(space: Space, mount: Mount, tmp_path: Path) -> None:
    name = f"made-{tmp_path.name}"
    (mount.path / name).mkdir()
    assert name in space.command("bucket", "ls").stdout
    (mount.path / name / "file").write_text("x", encoding="ascii")
    with pytest.raises(OSError, match="not empty"):
        (mount.path / name).rmdir()
    (mount.path / name / "file").unlink()
    (mount.path / name).rmdir()
    assert name not in space.command("bucket", "ls").stdout

    space.command("bucket", "create", name)
    assert (mount.path / name).is_dir()
    space.command("bucket", "rm", name)


def test_plain_file_cannot_be_made_in_the_root(mount: Mount) -> None:
    with pytest.raises(PermissionError):
        (mount.path / "file").write_text("x", encoding="ascii")


def test_second_mount_sees_what_the_first_closed(
    space: Space, mount: Mount, work: Path, tmp_path: Path
) -> None:
    with mounted(space.uri, tmp_path / "second") as second:
        other = second.path / work.name
        for round_number in range(20):
            text = f"round {round_number} " * (round_number + 1)
            (work / "shared").write_text(text, encoding="ascii")
            assert (other / "shared").read_text(encoding="ascii") == text
            (other / "shared").write_text(text + "back", encoding="ascii")
            assert (work / "shared").read_text(encoding="ascii") == text + "back"


def test_appends_of_two_mounts_that_take_turns_are_all_kept(
    space: Space, work: Path, tmp_path: Path
) -> None:
    with mounted(space.uri, tmp_path / "second") as second:
        paths = [work / "log", second.path / work.name / "log"]
        for index in range(20):
            # As `>>` of a shell: without a look at the file before.
            with paths[index % 2].open("ab") as log:
                log.write(b"%d\n" % index)
        assert paths[0].read_bytes() == b"".join(b"%d\n" % index for index in range(20))
        paths[0].write_bytes(b"short")
        with paths[1].open("ab") as log:
            log.write(b"er")
        assert paths[0].read_bytes() == b"shorter"


def test_status_tells_in_ten_lines_that_the_space_is_healthy(space: Space) -> None:
    done = space.command("status")
    lines = done.stdout.splitlines()
    assert 0 < len(lines) <= 10
    assert "healthy" in lines[0]
    assert json.loads(space.command("status", "--json").stdout)["is_healthy"] is True
