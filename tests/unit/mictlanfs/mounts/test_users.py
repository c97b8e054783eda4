from pathlib import Path

import pytest

from mictlanfs.mounts.table import find_mount
from mictlanfs.mounts.users import User, names_of, serving_process, users_of
from tests.support.mounts import FakeMount
from tests.support.programs import FOR_EVER, program


def test_a_directory_is_used_by_who_works_in_it_and_who_has_files_open_below_it(
    folder: Path,
) -> None:
    folder.with_name("vss2").mkdir()
    (folder / "file").touch()
    with (
        open(folder / "file") as file,
        program(FOR_EVER, cwd=folder) as by_cwd,
        program(FOR_EVER, stdin=file.fileno()) as by_file,
        program(FOR_EVER, cwd=folder.with_name("vss2")),
    ):
        found = users_of(folder)
        name = Path(f"/proc/{by_cwd.pid}/comm").read_text().strip()
    assert sorted(map(str, found)) == sorted(f"{name} (pid {p.pid})" for p in (by_cwd, by_file))


def test_the_process_that_asks_is_no_user(folder: Path) -> None:
    with (folder / "file").open("w"):
        assert users_of(folder) == []


def test_users_are_named_but_not_all_of_many() -> None:
    users = [User(number, "bash") for number in range(1, 8)]
    assert names_of(users[:2]) == "bash (pid 1), bash (pid 2)"
    assert names_of(users[:5]).endswith("bash (pid 5)")
    assert names_of(users).endswith("bash (pid 5) and 2 more")


@pytest.mark.fuse
def test_the_process_of_a_mount_is_found(fake: FakeMount) -> None:
    mount = find_mount(fake.where)
    assert mount is not None
    process = serving_process(mount)
    assert process is not None
    assert process.pid == fake.process.pid
    fake.kill()
    assert serving_process(mount) is None
