import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from mictlanfs import paths
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.processes import current_process
from mictlanfs_server import cluster
from mictlanfs_server.child import ChildSpec
from mictlanfs_server.cluster import (
    MountRequest,
    end_leftovers,
    idle,
    serve_space,
)
from mictlanfs_server.plan import ServerOptions
from mictlanfs_server.probe import Probe
from mictlanfs_server.space import Claim, MountRecord, SpaceDirectory, SpaceRecord, claimed
from mictlanfs_server.supervisor import Supervisor
from tests.support.fakeservers import ROUTER, Servers
from tests.support.mounts import MountTable
from tests.support.programs import FOR_EVER, known, program

RECORD = SpaceRecord(uri="mictlanx://r:1", host="127.0.0.1", port=60666, peer_ports=(24000, 24001))
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('runs', flush=True); time.sleep(60)"
)


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    with program(request.param) as process:
        yield process


# --- leftovers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("child", "status"),
    [(FOR_EVER, -signal.SIGTERM), (DEAF, -signal.SIGKILL)],
    indirect=["child"],
)
def test_a_process_of_the_last_run_is_asked_to_end_and_then_killed(
    child: subprocess.Popen[bytes], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LEFTOVER_GRACE_S", 0.05)
    monkeypatch.setattr(cluster, "LEFTOVER_TERM_GRACE_S", 0.5)
    end_leftovers(replace(RECORD, children={"mount": known(child)}))
    assert child.wait(10) == status


def test_a_mount_that_lost_its_process_is_unmounted_and_its_directory_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmounted: list[Path] = []
    monkeypatch.setattr(cluster, "unmount_if_dead", unmounted.append)
    for is_made in (False, True):
        path = tmp_path / str(is_made)
        path.mkdir()
        end_leftovers(replace(RECORD, mount=MountRecord(str(path), is_made)))
        assert path.exists() is not is_made
    assert unmounted == [tmp_path / "False", tmp_path / "True"]


def test_a_mount_that_is_alive_is_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: Path, **__: object) -> None:
        raise AssertionError("nothing may be unmounted")

    (tmp_path / "vss").mkdir()
    MountTable(tmp_path / "mountinfo", monkeypatch).add(tmp_path / "vss")
    monkeypatch.setattr("mictlanfs.mounts.unmounting.unmount", forbidden)
    end_leftovers(replace(RECORD, mount=MountRecord(str(tmp_path / "vss"), is_made=True)))
    assert (tmp_path / "vss").exists()


def test_a_dead_mount_that_cannot_be_unmounted_is_told_and_its_directory_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Path) -> bool:
        raise MictlanError(Kind.NOT_PERMITTED, "unmount", "vss")

    (tmp_path / "vss").mkdir()
    MountTable(tmp_path / "mountinfo", monkeypatch).add(tmp_path / "vss")
    monkeypatch.setattr(cluster, "unmount_if_dead", refuse)
    end_leftovers(replace(RECORD, mount=MountRecord(str(tmp_path / "vss"), is_made=True)))
    assert (tmp_path / "vss").exists()
    assert "unmount vss" in caplog.text


def test_an_idle_space_has_no_process_and_keeps_all_else() -> None:
    busy = replace(
        RECORD,
        capacity=5,
        supervisor=current_process(),
        children={"router": current_process()},
        mount=MountRecord("/mnt", is_made=True),
    )
    assert idle(busy) == replace(RECORD, capacity=5)


# --- refusals -----------------------------------------------------------------------------------


def refused(options: ServerOptions, mount: MountRequest | None = None) -> str:
    with pytest.raises(MictlanError) as caught:
        serve_space(options, mount, lambda _: None)
    return str(caught.value)


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when any process would be started."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be started")

    monkeypatch.setattr(Supervisor, "run", forbidden)
    monkeypatch.setattr(cluster, "check_ability", lambda *, allow_other: None)


@pytest.mark.parametrize(("mount_name", "data_name"), [("a", "a"), ("a/vss", "a"), ("a", "a/data")])
@pytest.mark.usefixtures("no_start")
def test_data_and_mountpoint_must_not_lie_in_each_other(
    tmp_path: Path, mount_name: str, data_name: str
) -> None:
    options = ServerOptions(tmp_path / data_name, port=0, peer_port=0)
    assert "lie in each other" in refused(options, MountRequest(tmp_path / mount_name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_start")
def test_a_machine_that_cannot_mount_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*, allow_other: bool) -> None:
        if allow_other:
            raise UsageError("leave it out")
        raise MictlanError(Kind.UNSUPPORTED, detail="no fuse here")

    monkeypatch.setattr(cluster, "check_ability", unable)
    options = ServerOptions(tmp_path / "data", port=0, peer_port=0)
    said = refused(options, MountRequest(tmp_path / "vss"))
    assert said == "no fuse here; `mictlanfs server start` needs no mount"
    assert refused(options, MountRequest(tmp_path / "vss", "ro,allow_other")) == "leave it out"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_start")
def test_a_bad_mountpoint_leaves_nothing_half_made(tmp_path: Path) -> None:
    (tmp_path / "vss").write_text("x")
    options = ServerOptions(tmp_path / "data", port=0, peer_port=0)
    assert "is not a directory" in refused(options, MountRequest(tmp_path / "vss"))
    assert [path.name for path in tmp_path.iterdir()] == ["vss"]


@pytest.mark.usefixtures("no_start")
def test_a_mountpoint_that_cannot_be_made_leaves_nothing_half_made(tmp_path: Path) -> None:
    options = ServerOptions(tmp_path / "data", port=0, peer_port=0)
    assert "to mount at" in refused(options, MountRequest(Path("/proc/vss")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_start")
def test_a_stale_record_is_cleaned_even_when_the_start_is_refused(tmp_path: Path) -> None:
    directory = SpaceDirectory(tmp_path)
    me = current_process()
    ended = replace(me, started_ticks=me.started_ticks - 1)
    with claimed(directory) as claim:
        claim.keep = True
        claim.write_record(replace(RECORD, supervisor=ended, children={"router": ended}))
    assert "data would be missing" in refused(ServerOptions(tmp_path, peers=1))
    assert directory.read_record() == RECORD


def test_a_record_that_cannot_be_written_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Claim, "write_record", fail)
    options = ServerOptions(tmp_path / "data", port=0, peer_port=0)
    assert "space.json: No space left on device" in refused(options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_start")
def test_a_new_space_is_not_begun_on_a_disk_that_is_as_good_as_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_count = cluster.NEW_SPACE_SIZE_BYTES_MIN // 4096 - 1
    room = os.statvfs_result((4096, 4096, 1 << 20, 1 << 20, free_count, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    options = ServerOptions(tmp_path / "data", port=0, peer_port=0)
    with pytest.raises(MictlanError, match="16380 KiB are free") as caught:
        serve_space(options, None, lambda _: None)
    assert caught.value.kind is Kind.NO_SPACE
    assert list(tmp_path.iterdir()) == []
    # One that exists goes on to the next check: it can be emptied only when it runs.
    with claimed(SpaceDirectory(tmp_path / "data")) as claim:
        claim.keep = True
        claim.write_record(RECORD)
    assert "data would be missing" in refused(ServerOptions(tmp_path / "data", peers=1))


def test_a_record_that_is_behind_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    claim = Claim(SpaceDirectory(tmp_path), is_fresh=True)
    space = cluster._Space(claim, RECORD, None, lifeline_fd=7)
    for told_count in (1, 2):
        with monkeypatch.context() as patched:
            patched.setattr(Claim, "write_record", fail)
            for _ in range(3):
                space._record_children({"router": current_process()})
        assert caplog.text.count("No space left on device") == told_count
        space._record_children({})


# --- the mount ----------------------------------------------------------------------------------


def test_only_a_space_is_taken_out_of_the_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = MountTable(tmp_path / "mountinfo", monkeypatch)
    unmounted: list[tuple[Path, bool]] = []
    monkeypatch.setattr(cluster, "unmount", lambda path, *, lazy: unmounted.append((path, lazy)))
    cluster._unmount_lazily(tmp_path)
    table.add(tmp_path, "ext4")
    cluster._unmount_lazily(tmp_path)
    assert unmounted == []
    table.add(tmp_path)
    cluster._unmount_lazily(tmp_path)
    assert unmounted == [(tmp_path, True)]


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_mount_that_stays_is_told_and_one_that_went_by_itself_is_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    is_gone: bool,
) -> None:
    table = MountTable(tmp_path / "mountinfo", monkeypatch)
    table.add(tmp_path)

    def fail(path: Path, *, lazy: bool) -> None:
        if is_gone:
            table.add(path, "ext4")
        raise MictlanError(Kind.INVALID, "unmount", str(path))

    monkeypatch.setattr(cluster, "unmount", fail)
    cluster._unmount_lazily(tmp_path)
    assert ("unmount" in caplog.text) is not is_gone


# --- children -----------------------------------------------------------------------------------


def specs_of(record: SpaceRecord, mount: MountRequest | None = None) -> dict[str, ChildSpec]:
    claim = Claim(SpaceDirectory(Path("/data")), is_fresh=True)
    space = cluster._Space(claim, record, mount, lifeline_fd=7)
    stages = space._stages(Probe(Servers(), ROUTER))
    return {spec.name: spec for stage in stages for spec in stage.children}


def option(spec: ChildSpec, name: str) -> str:
    return spec.command[spec.command.index(name) + 1]


def test_time_to_live_of_leases_is_passed_to_the_router() -> None:
    claim = Claim(SpaceDirectory(Path("/data")), is_fresh=True)
    for ttl_s, words in ((None, []), (0.5, ["--lease-ttl", "0.5"])):
        space = cluster._Space(claim, RECORD, None, 7, ttl_s)
        command = space._router_spec().command
        assert [word for word in words if word not in command] == []
        assert ("--lease-ttl" in command) is bool(words)


def test_the_router_starts_first_and_the_mount_last() -> None:
    specs = specs_of(RECORD, MountRequest(Path("/mnt/vss"), "ro,uid=5"))
    assert list(specs) == ["router", "peer-0", "peer-1", "mount"]
    mount = specs["mount"]
    assert mount.may_end
    assert mount.lifeline_fd == 7
    expected = ("7", "mount", RECORD.uri, "/mnt/vss", "-f", "-o", "ro,uid=5")
    assert mount.command[-len(expected) :] == expected


def test_each_server_has_its_own_data_port_name_and_log() -> None:
    specs = specs_of(RECORD)
    peer = specs["peer-1"]
    assert option(peer, "--data") == "/data/peer-1"
    assert option(peer, "--port") == "24001"
    assert option(peer, "--id") == "mictlanx-peer-1"
    assert option(peer, "--router") == RECORD.uri
    assert peer.log_path == Path("/data/log/peer-1.log")
    assert option(specs["router"], "--data") == "/data/router"
    assert option(specs["router"], "--port") == "60666"


def test_servers_hang_on_the_lifeline() -> None:
    for spec in specs_of(RECORD).values():
        assert option(spec, "--lifeline-fd") == "7"
        assert spec.lifeline_fd == 7


def test_what_was_not_asked_for_is_not_passed_on() -> None:
    for spec in specs_of(RECORD).values():
        assert not {"--capacity", "--insecure", "--advertise"} & set(spec.command)


def test_peers_that_listen_everywhere_say_where_they_are_reached() -> None:
    record = replace(RECORD, host="0.0.0.0", insecure=True, capacity=9)
    peer = specs_of(record)["peer-0"]
    assert "--insecure" in peer.command
    assert option(peer, "--capacity") == "9"
    assert option(peer, "--advertise").endswith(":24000")
    assert "0.0.0.0" not in option(peer, "--advertise")


def test_a_user_without_a_home_can_have_a_space_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise UsageError("no home directory")

    monkeypatch.setattr(paths, "record_last_space", fail)
    claim = Claim(SpaceDirectory(Path("/data")), is_fresh=True)
    space = cluster._Space(claim, RECORD, None, lifeline_fd=7)
    with caplog.at_level(logging.WARNING):
        space._remember()
    assert "commands will need --uri" in caplog.text
