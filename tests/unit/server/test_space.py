import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from mictlanfs.errors import UsageError
from mictlanfs.processes import current_process
from mictlanfs_server.space import (
    FORMAT,
    MountRecord,
    SpaceDirectory,
    SpaceRecord,
    claimed,
    make_directories,
    remove_directories,
)

HOLDER = """
import sys
from pathlib import Path
from mictlanfs_server.space import SpaceDirectory, claimed
with claimed(SpaceDirectory(Path(sys.argv[1]))) as claim:
    claim.keep = True
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> SpaceDirectory:
    return SpaceDirectory(tmp_path / "data")


def record(**changes: object) -> SpaceRecord:
    plain = SpaceRecord(uri="mictlanx://a:1", host="127.0.0.1", port=1, peer_ports=(2, 3))
    return msgspec.structs.replace(plain, **changes)


def claim_and_record(directory: SpaceDirectory, content: SpaceRecord) -> None:
    with claimed(directory) as claim:
        claim.keep = True
        claim.write_record(content)


# --- record ---------------------------------------------------------------------------------------


def test_what_was_recorded_is_read_again(directory: SpaceDirectory) -> None:
    full = record(
        capacity=5,
        insecure=True,
        supervisor=current_process(),
        children={"router": current_process()},
        mount=MountRecord("/mnt/a b", is_made=True),
    )
    claim_and_record(directory, full)
    assert directory.read_record() == full
    assert full.processes == [current_process(), current_process()]


def test_a_mountpoint_may_have_any_bytes_in_its_name(directory: SpaceDirectory) -> None:
    odd = record(mount=MountRecord("/mnt/\udcff", is_made=False))
    claim_and_record(directory, odd)
    assert directory.read_record() == odd


def test_a_directory_without_a_record_has_none(directory: SpaceDirectory) -> None:
    assert directory.read_record() is None
    assert directory.peer_count() == 0


def test_peers_are_counted_by_their_folders(directory: SpaceDirectory) -> None:
    directory.peer(1).mkdir(parents=True)
    assert directory.peer_count() == 2


def test_a_record_of_a_newer_version_is_refused_by_name(directory: SpaceDirectory) -> None:
    directory.path.mkdir()
    directory.record_path.write_text(f'{{"format": {FORMAT + 1}, "something": "new"}}')
    with pytest.raises(UsageError, match=r"newer MictlanFS.*install that version"):
        directory.read_record()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": "x"}'])
def test_a_damaged_record_is_refused_with_the_remedy(directory: SpaceDirectory, text: str) -> None:
    directory.path.mkdir()
    directory.record_path.write_text(text)
    with pytest.raises(UsageError, match=r"space\.json is damaged .*remove this file"):
        directory.read_record()


def test_a_write_that_was_cut_short_leaves_the_old_record(directory: SpaceDirectory) -> None:
    claim_and_record(directory, record())
    directory.record_path.with_name("space.json.4242").write_text('{"form')
    assert directory.read_record() == record()


# --- claim ----------------------------------------------------------------------------------------


def test_a_fresh_directory_is_gone_again_unless_it_is_kept(tmp_path: Path) -> None:
    directory = SpaceDirectory(tmp_path / "a" / "b")
    with claimed(directory) as claim:
        assert claim.is_fresh
        claim.write_record(record())
        (directory.router / "db").mkdir(parents=True)
        directory.log_of("router").parent.mkdir()
        directory.log_of("router").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_empty_again_unless_it_is_kept(directory: SpaceDirectory) -> None:
    directory.path.mkdir()
    with claimed(directory) as claim:
        claim.write_record(record())
    assert list(directory.path.iterdir()) == []


def test_what_somebody_else_put_there_meanwhile_stays(directory: SpaceDirectory) -> None:
    with claimed(directory):
        (directory.path / "notes").write_text("mine")
    assert [path.name for path in directory.path.iterdir()] == ["notes"]


def test_a_kept_directory_stays_and_is_not_fresh_the_next_time(directory: SpaceDirectory) -> None:
    claim_and_record(directory, record())
    assert directory.owner() is None, "who let go of it lives on, but owns it no more"
    with claimed(directory) as claim:
        assert not claim.is_fresh
    assert directory.read_record() == record()


def test_a_new_data_directory_is_private(directory: SpaceDirectory) -> None:
    claim_and_record(directory, record())
    assert directory.path.stat().st_mode & 0o777 == 0o700


def test_a_directory_of_somebody_else_is_refused_and_left_alone(directory: SpaceDirectory) -> None:
    directory.path.mkdir()
    (directory.path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds other things \(thesis\.tex\)"), claimed(directory):
        pass
    assert [path.name for path in directory.path.iterdir()] == ["thesis.tex"]


def test_a_new_file_system_may_hold_its_lost_and_found(directory: SpaceDirectory) -> None:
    (directory.path / "lost+found").mkdir(parents=True)
    with claimed(directory) as claim:
        assert claim.is_fresh
    assert [path.name for path in directory.path.iterdir()] == ["lost+found"]


def test_a_file_is_refused(directory: SpaceDirectory) -> None:
    directory.path.write_text("x")
    with pytest.raises(UsageError, match="is not a directory"), claimed(directory):
        pass
    assert directory.path.read_text() == "x"


def test_a_directory_below_a_file_is_refused(directory: SpaceDirectory) -> None:
    directory.path.write_text("x")
    below = SpaceDirectory(directory.path / "a" / "b")
    with (
        pytest.raises(UsageError, match=r"cannot keep data in .*: not a directory"),
        claimed(below),
    ):
        pass


def test_a_directory_that_cannot_be_written_to_is_refused() -> None:
    directory = SpaceDirectory(Path("/proc/mictlanfs-data"))
    with pytest.raises(UsageError, match="cannot keep data in /proc/"), claimed(directory):
        pass


def test_a_second_claim_names_the_directory_the_owner_and_the_remedy(
    directory: SpaceDirectory,
) -> None:
    with claimed(directory):
        assert directory.owner() == current_process()
        expected = rf"{directory.path} is served by process {os.getpid()} already: .*server stop"
        with pytest.raises(UsageError, match=expected), claimed(directory):
            pass
        assert directory.path.exists(), "the refused one must not clean up for the owner"
    assert directory.owner() is None


def test_a_directory_that_was_replaced_is_never_written_to_nor_cleaned(
    directory: SpaceDirectory,
) -> None:
    with claimed(directory) as claim:
        assert claim.is_valid()
        directory.path.rename(directory.path.with_name("moved"))
        assert not claim.is_valid()
        with pytest.raises(OSError, match="removed or replaced"):
            claim.write_record(record())
        claim_and_record(directory, record(port=7))
        assert not claim.is_valid()
        with pytest.raises(OSError, match="removed or replaced"):
            claim.write_record(record())
    assert directory.read_record() == record(port=7)


def test_a_space_is_served_while_it_runs_and_until_it_is_cleaned_up(
    directory: SpaceDirectory,
) -> None:
    assert not directory.is_served()
    with claimed(directory):
        assert directory.is_served()
    assert not directory.is_served()
    claim_and_record(directory, record(supervisor=current_process()))
    assert directory.is_served()
    claim_and_record(directory, record())
    assert not directory.is_served()


def test_a_claim_ends_with_its_process_however_that_ends(directory: SpaceDirectory) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, directory.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        owner = directory.owner()
        assert owner is not None
        assert owner.pid == holder.pid
        with pytest.raises(UsageError, match=f"process {holder.pid}"), claimed(directory):
            pass
        holder.kill()
    assert directory.owner() is None
    with claimed(directory):
        pass


def test_an_owner_is_told_from_a_process_that_got_its_number(directory: SpaceDirectory) -> None:
    directory.path.mkdir()
    me = current_process()
    older = msgspec.structs.replace(me, started_ticks=me.started_ticks - 1)
    directory.lock_path.write_bytes(msgspec.json.encode(older))
    assert directory.owner() is None


# --- directories ----------------------------------------------------------------------------------


def test_only_directories_that_were_made_are_removed_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    made = make_directories(tmp_path / "a" / "b" / "c")
    assert made == [tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    remove_directories(made)
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_the_names_of_new_directories_survive_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    make_directories(tmp_path / "a" / "b")
    assert synced == [str(tmp_path), str(tmp_path / "a")]


def test_directories_that_are_in_use_stay(tmp_path: Path) -> None:
    made = make_directories(tmp_path / "a" / "b")
    (tmp_path / "a" / "other").mkdir()
    remove_directories(made)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "other"]
