from pathlib import Path

import pytest

from mictlanfs.mounts.table import (
    MOUNT_TYPE,
    Mount,
    find_mount,
    is_mounted,
    mount_around,
    parse_mount_table,
    resolved,
)
from tests.support.mounts import MountTable

TABLE = f"""\
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw
40 27 0:38 / /mnt/a\\040b\\134c rw,nosuid - {MOUNT_TYPE} mictlanx://r@h:1/?x=\\040y rw,user_id=0
41 27 0:39 / /mnt/t rw - tmpfs none rw
42 27 0:40 / /mnt/t rw - fuse.sshfs host: rw
43 27 0:41 / /mnt/n rw - fuseblk /dev/sdb rw
44 27 0:42 / /sys/fs/fuse/connections rw - fusectl fusectl rw
"""


def test_the_table_is_read_with_its_escapes_and_optional_fields() -> None:
    assert parse_mount_table(TABLE)[:4] == [
        Mount(Path("/"), "ext4", "/dev/vda", (254, 0)),
        Mount(Path("/mnt/a b\\c"), MOUNT_TYPE, "mictlanx://r@h:1/?x= y", (0, 38)),
        Mount(Path("/mnt/t"), "tmpfs", "none", (0, 39)),
        Mount(Path("/mnt/t"), "fuse.sshfs", "host:", (0, 40)),
    ]


def test_only_a_space_is_ours_and_only_what_a_process_serves_is_fuse() -> None:
    mounts = parse_mount_table(TABLE)
    assert [mount.is_ours for mount in mounts] == [False, True, False, False, False, False]
    assert [mount.is_fuse for mount in mounts] == [False, True, False, True, True, False]


def test_a_mount_is_found_by_its_exact_place(table: MountTable) -> None:
    table.add(r"/mnt/my\040vss", source="mictlanx://a:1")
    found = find_mount(Path("/mnt/my vss"))
    assert found is not None
    assert found.options == {"rw", "nosuid", "user_id=0"}
    assert found == Mount(Path("/mnt/my vss"), MOUNT_TYPE, "mictlanx://a:1", (0, 40))
    assert is_mounted(Path("/mnt/my vss"))
    for other in ("/mnt", "/mnt/my vs", "/mnt/my vss/a"):
        assert find_mount(Path(other)) is None
        assert not is_mounted(Path(other))


def test_of_mounts_upon_each_other_the_last_one_counts(table: MountTable) -> None:
    table.add("/mnt")
    table.add("/mnt", kind="tmpfs")
    found = find_mount(Path("/mnt"))
    assert found is not None
    assert found.type == "tmpfs"
    assert not is_mounted(Path("/mnt"))


def test_a_path_inside_a_space_is_told_from_its_mountpoint(table: MountTable) -> None:
    table.add("/mnt/vss")
    table.add("/mnt/vss/t", kind="tmpfs")
    around = mount_around(Path("/mnt/vss/x/y"))
    assert around is not None
    assert around.mountpoint == Path("/mnt/vss")
    assert mount_around(Path("/mnt/vss")) is None
    assert mount_around(Path("/mnt/vss/t/x")) is None, "another mount lies between"


def test_the_table_of_this_machine_is_understood() -> None:
    proc = find_mount(Path("/proc"))
    assert proc is not None
    assert proc.type == "proc"
    assert find_mount(Path("/")) is not None


# --- paths ---------------------------------------------------------------------------------------


def test_a_path_is_resolved_as_the_kernel_will_tell_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = folder.with_name("link")
    link.symlink_to("vss")
    monkeypatch.chdir(folder)
    assert resolved(Path()) == folder
    assert resolved(Path("../link/../vss/.")) == folder
    assert resolved(Path("../link/new")) == folder / "new"
    assert resolved(link) == folder
    assert resolved(Path("not there")) == folder / "not there"


def test_a_mountpoint_itself_is_not_looked_into(table: MountTable, folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    table.add(link)
    # A link that is a mountpoint cannot be; it stands for a mount that must not be asked.
    assert resolved(link) == link


def test_a_mountpoint_behind_a_link_is_not_looked_into(table: MountTable, folder: Path) -> None:
    folder.with_name("link").symlink_to(folder)
    (folder / "vss").symlink_to("/nowhere")
    table.add(folder / "vss")
    assert resolved(folder.with_name("link") / "vss") == folder / "vss"
