from pathlib import Path

import pytest
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.client.recovering import Outcome, Verdict
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, FileKind, InodeNumber
from mictlanfs.recoveries import KnownPath, LostOperation, RecoveryFile, Touched
from tests.support.fakespace import FakeSpace
from tests.support.recoveries import ID, START_NS, lost_file, lost_op, written
from tests.unit.mictlanfs.client.making import CHUNK

BESIDE = f".recovered-{ID}".encode()
BUCKET = KnownPath((b"b",))


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


class Scene:
    """A space with a bucket, as a mount knew it that was fenced."""

    def __init__(self, space: FakeSpace) -> None:
        self.space = space
        self.bucket = space.router.find(b"b").attributes.ino

    def add(self, *names: bytes, kind: FileKind = FileKind.FILE) -> Attributes:
        return self.space.router.make(kind, b"b", *names).attributes

    def new_ino(self) -> InodeNumber:
        return InodeNumber(self.space.router._take(1).first)

    def make(
        self, name: bytes, parent: InodeNumber | None = None, kind: FileKind = FileKind.FILE
    ) -> wire.MakeNode:
        parent = self.bucket if parent is None else parent
        return wire.MakeNode(parent, name, self.new_ino(), kind, 0o644, 7, 8, START_NS)

    async def written_by_another(self, name: str, content: bytes, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(content)
        async with self.space.client() as client:
            await client.put(source, "b", name)

    async def apply(self, file: RecoveryFile) -> list[Outcome]:
        async with self.space.client() as client:
            return list(await client.apply_recovery(file))

    async def content(self, name: str | bytes, tmp_path: Path) -> bytes:
        async with self.space.client() as client:
            await client.get("b", name, tmp_path / "got")
        return (tmp_path / "got").read_bytes()

    @property
    def names(self) -> list[bytes]:
        return sorted(self.space.router.find(b"b").entries)


@pytest.fixture
def scene(space: FakeSpace) -> Scene:
    return Scene(space)


def known(attributes: Attributes) -> Touched:
    return Touched(attributes.ino, attributes.version, attributes.content_version)


def recovery(
    *ops: LostOperation, files: list[tuple[object, bytes]] | None = None, space: FakeSpace
) -> RecoveryFile:
    space_id = "space"
    return written(ops, files or [], space_id=space_id)  # type: ignore[arg-type]


def verdicts(outcomes: list[Outcome]) -> list[Verdict]:
    return [outcome.verdict for outcome in outcomes]


async def test_a_tree_is_made_with_its_files_and_only_once(scene: Scene, tmp_path: Path) -> None:
    folder = scene.make(b"folder", kind=FileKind.DIRECTORY)
    inside = scene.make(b"inside", folder.ino)
    content = bytes(range(256)) * (CHUNK // 100)
    lost = lost_file(
        inside.ino, KnownPath((b"b", b"folder", b"inside")), 0, len(content), (0, len(content))
    )
    file = recovery(lost_op(folder), lost_op(inside), files=[(lost, content)], space=scene.space)
    assert verdicts(await scene.apply(file)) == [Verdict.APPLIED] * 3
    assert await scene.content("folder/inside", tmp_path) == content
    assert file.is_applied
    assert await scene.apply(file) == []


async def test_what_another_mount_made_is_not_overwritten(scene: Scene, tmp_path: Path) -> None:
    op = scene.make(b"new")
    lost = lost_file(op.ino, KnownPath((b"b", b"new")), 0, 4, (0, 4))
    await scene.written_by_another("new", b"theirs", tmp_path)
    file = recovery(lost_op(op), files=[(lost, b"ours")], space=scene.space)
    assert verdicts(await scene.apply(file)) == [Verdict.BESIDE, Verdict.APPLIED]
    assert await scene.content("new", tmp_path) == b"theirs"
    assert await scene.content(b"new" + BESIDE, tmp_path) == b"ours"


async def test_a_directory_that_others_made_too_takes_what_was_in_ours(scene: Scene) -> None:
    folder = scene.make(b"folder", kind=FileKind.DIRECTORY)
    inside = scene.make(b"inside", folder.ino)
    scene.add(b"folder", kind=FileKind.DIRECTORY)
    file = recovery(lost_op(folder), lost_op(inside), space=scene.space)
    assert verdicts(await scene.apply(file)) == [Verdict.THERE, Verdict.APPLIED]
    assert scene.names == [b"folder"]
    assert scene.space.router.find(b"b", b"folder", b"inside").attributes.ino == inside.ino


async def test_bytes_go_into_a_file_whose_content_is_as_it_was(
    scene: Scene, tmp_path: Path
) -> None:
    await scene.written_by_another("f", b"0123456789", tmp_path)
    before = scene.space.router.find(b"b", b"f").attributes
    lost = lost_file(
        before.ino, KnownPath((b"b", b"f")), before.content_version, 10, (2, 2), (6, 1)
    )
    outcomes = await scene.apply(recovery(files=[(lost, b"abc")], space=scene.space))
    assert verdicts(outcomes) == [Verdict.APPLIED]
    assert await scene.content("f", tmp_path) == b"01ab45c789"


async def test_bytes_of_a_file_that_changed_go_beside_it(scene: Scene, tmp_path: Path) -> None:
    await scene.written_by_another("f", b"0123456789", tmp_path)
    before = scene.space.router.find(b"b", b"f").attributes
    lost = lost_file(
        before.ino, KnownPath((b"b", b"f")), before.content_version - 1, 10, (2, 2), (6, 1)
    )
    file = recovery(files=[(lost, b"abc")], space=scene.space)
    assert verdicts(await scene.apply(file)) == [Verdict.BESIDE]
    assert await scene.content("f", tmp_path) == b"0123456789"
    assert await scene.content(b"f" + BESIDE, tmp_path) == b"\0\0ab\0\0c"
    assert await scene.apply(file) == []
    assert scene.names == [b"f", b"f" + BESIDE]


async def test_a_file_that_is_gone_comes_back_when_all_of_it_is_here(
    scene: Scene, tmp_path: Path
) -> None:
    ino = scene.new_ino()
    whole = lost_file(ino, KnownPath((b"b", b"d", b"f")), 3, 4, (0, 4))
    part = lost_file(ino, KnownPath((b"b", b"d", b"p")), 3, 4, (1, 2))
    file = recovery(files=[(whole, b"ours"), (part, b"ur")], space=scene.space)
    assert verdicts(await scene.apply(file)) == [Verdict.APPLIED, Verdict.BESIDE]
    assert await scene.content("d/f", tmp_path) == b"ours"
    assert await scene.content(b"d/p" + BESIDE, tmp_path) == b"\0ur"


async def test_bytes_whose_place_is_not_known_are_left_for_export(scene: Scene) -> None:
    lost = lost_file(scene.new_ino(), None, 3, 4, (0, 4))
    file = recovery(files=[(lost, b"ours")], space=scene.space)
    assert verdicts(await scene.apply(file)) == [Verdict.LEFT]
    # It is tried again.
    assert verdicts(await scene.apply(file)) == [Verdict.LEFT]


async def test_a_removal_is_done_unless_the_file_changed(scene: Scene, tmp_path: Path) -> None:
    await scene.written_by_another("old", b"1", tmp_path)
    await scene.written_by_another("changed", b"1", tmp_path)
    old = scene.space.router.find(b"b", b"old").attributes
    changed = scene.space.router.find(b"b", b"changed").attributes
    replaced = scene.add(b"replaced")
    outcomes = await scene.apply(
        recovery(
            lost_op(wire.Unlink(scene.bucket, b"old", START_NS), known(old)),
            lost_op(
                wire.Unlink(scene.bucket, b"changed", START_NS),
                Touched(changed.ino, 0, changed.content_version - 1),
            ),
            lost_op(
                wire.Unlink(scene.bucket, b"replaced", START_NS),
                Touched(InodeNumber(replaced.ino + 1), 0, 0),
            ),
            lost_op(wire.Unlink(scene.bucket, b"gone", START_NS), known(old)),
            space=scene.space,
        )
    )
    assert verdicts(outcomes) == [Verdict.APPLIED, Verdict.LEFT, Verdict.LEFT, Verdict.THERE]
    assert scene.names == [b"changed", b"replaced"]


async def test_a_rename_replaces_only_what_it_was_meant_to(scene: Scene) -> None:
    meant, source, other = scene.add(b"meant"), scene.add(b"source"), scene.add(b"other")
    theirs = scene.add(b"theirs")
    outcomes = await scene.apply(
        recovery(
            lost_op(
                wire.Rename(scene.bucket, b"source", scene.bucket, b"meant", START_NS),
                known(source),
                known(meant),
                parent=BUCKET,
            ),
            lost_op(
                wire.Rename(scene.bucket, b"other", scene.bucket, b"theirs", START_NS),
                known(other),
                parent=BUCKET,
            ),
            space=scene.space,
        )
    )
    assert verdicts(outcomes) == [Verdict.APPLIED, Verdict.BESIDE]
    assert scene.names == [b"meant", b"theirs", b"theirs" + BESIDE]
    assert scene.space.router.find(b"b", b"meant").attributes.ino == source.ino
    assert scene.space.router.find(b"b", b"theirs").attributes.ino == theirs.ino


async def test_a_file_put_beside_is_followed_by_what_comes_after(scene: Scene) -> None:
    op = scene.make(b"tmp")
    scene.add(b"tmp")
    outcomes = await scene.apply(
        recovery(
            lost_op(op),
            lost_op(
                wire.Rename(scene.bucket, b"tmp", scene.bucket, b"final", START_NS),
                Touched(op.ino, 1, 1),
                parent=BUCKET,
            ),
            space=scene.space,
        )
    )
    assert verdicts(outcomes) == [Verdict.BESIDE, Verdict.APPLIED]
    assert scene.names == [b"final", b"tmp"]
    assert scene.space.router.find(b"b", b"final").attributes.ino == op.ino


async def test_an_apply_that_was_broken_off_goes_on(
    scene: Scene, autojump_clock: MockClock
) -> None:
    op = scene.make(b"tmp")
    scene.add(b"tmp")
    file = recovery(
        lost_op(op),
        lost_op(
            wire.Rename(scene.bucket, b"tmp", scene.bucket, b"final", START_NS),
            Touched(op.ino, 1, 1),
            parent=BUCKET,
        ),
        space=scene.space,
    )

    def break_off(op: wire.Operation) -> None:
        if isinstance(op, wire.Rename):
            scene.space.net.servers.clear()
            raise MictlanError(Kind.UNAVAILABLE)

    servers = dict(scene.space.net.servers)
    scene.space.router.before_apply = break_off
    with pytest.raises(MictlanError) as caught:
        await scene.apply(file)
    assert caught.value.is_retryable
    scene.space.router.before_apply = lambda op: None
    scene.space.net.servers.update(servers)
    assert verdicts(await scene.apply(file)) == [Verdict.THERE, Verdict.APPLIED]
    assert scene.names == [b"final", b"tmp"]


async def test_attributes_are_changed_unless_somebody_else_did(scene: Scene) -> None:
    mine, theirs = scene.add(b"mine"), scene.add(b"theirs")
    outcomes = await scene.apply(
        recovery(
            lost_op(wire.SetAttributes(mine.ino, START_NS, mode=0o600), known(mine)),
            lost_op(wire.SetAttributes(mine.ino, START_NS, uid=5), known(mine)),
            lost_op(
                wire.SetAttributes(theirs.ino, START_NS, mode=0o600),
                Touched(theirs.ino, theirs.version - 1, 0),
            ),
            space=scene.space,
        )
    )
    assert verdicts(outcomes) == [Verdict.APPLIED, Verdict.APPLIED, Verdict.LEFT]
    now = scene.space.router.find(b"b", b"mine").attributes
    assert (now.mode, now.uid) == (0o600, 5)


async def test_a_recovery_of_another_space_is_refused(scene: Scene) -> None:
    with pytest.raises(MictlanError) as caught:
        await scene.apply(written(space_id="another"))
    assert caught.value.kind is Kind.CONFLICT
