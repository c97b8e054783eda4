"""Bringing a recovery back into its space: what does not conflict, and the rest beside it.

Operations come first, in their order, then the bytes of files. Everything is found by inode, so
that it finds its place after others have renamed things. Nothing that another mount changed since
is overwritten or removed: such a name gets a neighbour `NAME.recovered-ID`, and a removal, a rename
or a change of attributes that does not fit any more is left out and said.

What is done is remembered beside the recovery, so that applying it again goes on where it ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import msgspec

from mictlanfs import wire
from mictlanfs.client.caller import Caller
from mictlanfs.client.chunks import ChunkStore
from mictlanfs.client.names import Names, show_path
from mictlanfs.client.router import RouterClient
from mictlanfs.client.session import Session
from mictlanfs.client.tree import Tree
from mictlanfs.client.upload import new_directories
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import (
    NAME_SIZE_BYTES_MAX,
    BucketPolicy,
    Chunk,
    Extent,
    FileKind,
    InodeNumber,
    Node,
)
from mictlanfs.recoveries import Applied, LostFile, LostOperation, RecoveryFile

EXTENTS_PER_COMMIT_MAX = 256
BESIDE_ATTEMPTS_MAX = 100


class Verdict(Enum):
    """What became of one part of a recovery."""

    APPLIED = "applied"
    THERE = "was there already"
    BESIDE = "put beside"
    LEFT = "left out"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one operation or file.

    Attributes:
        what: it, for people.
        detail: where it went, or why it was left out.
    """

    verdict: Verdict
    what: str
    detail: str = ""


class _LeaveOutError(Exception):
    """It conflicts with what others did; the text says how."""


def describe(lost: LostOperation) -> str:
    """An operation in words."""
    op = lost.op

    def named(name: bytes) -> str:
        return lost.parent.below(name).show() if lost.parent else show_path((name,))

    match op:
        case wire.MakeNode():
            return f"make {op.kind.name.lower().replace('_', ' ')} {named(op.name)}"
        case wire.Unlink():
            return f"remove {named(op.name)}"
        case wire.RemoveDirectory():
            return f"remove directory {named(op.name)}"
        case wire.Rename():
            to = lost.new_parent.below(op.new_name).show() if lost.new_parent else "?"
            return f"rename {named(op.name)} to {to}"
        case wire.Link():
            return f"link inode {op.ino} as {named(op.name)}"
        case wire.SetAttributes():
            fields = ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns")
            changed = [f for f in fields if getattr(op, f) is not None]
            return f"change {', '.join(changed) or 'nothing'} of inode {op.ino}"
        case _:
            return f"{type(op).__name__} of inode {op.ino}"


class Applier:
    """Applies one recovery to its space."""

    def __init__(
        self,
        router: RouterClient,
        tree: Tree,
        chunks: ChunkStore,
        session: Session,
        caller: Caller,
        file: RecoveryFile,
    ) -> None:
        self._router = router
        self._tree = tree
        self._chunks = chunks
        self._session = session
        self._caller = caller
        self._file = file
        self._recovery = file.recovery
        applied = file.applied()
        self._done_ops = dict(applied.ops)
        self._done_files = set(applied.files)
        # What was made here, or found as the mount had known it: only this recovery changes it.
        self._own: set[InodeNumber] = set()
        # For what was put beside: where it is. For directories that somebody else made as well:
        # the one that is there.
        self._places: dict[InodeNumber, wire.Place] = {}
        self._stands_for: dict[InodeNumber, InodeNumber] = {}

    async def apply(self) -> list[Outcome]:
        """Apply what was not applied before.

        Cancellation and errors: another call goes on.

        Raises:
            MictlanError: CONFLICT when it is of another space; the space does not answer.
        """
        space_id = self._session.grant.space_id
        if space_id != self._recovery.space_id:
            detail = f"it is of the space {self._recovery.space_id}, and this is {space_id}"
            raise MictlanError(Kind.CONFLICT, "recover", self._recovery.id, detail)
        outcomes: list[Outcome] = []
        # Remembered when it is durable. What is done twice for want of that finds itself done.
        for index, lost in enumerate(self._recovery.ops):
            outcomes += await self._apply_op(str(index), lost)
        await self._session.sync()
        self._remember()
        for index, file in enumerate(self._recovery.files):
            if index in self._done_files:
                continue
            outcomes.append(await self._apply_file(index, file))
            if outcomes[-1].verdict is not Verdict.LEFT:
                await self._session.sync()
                self._done_files.add(index)
                self._remember()
        await self._session.sync()
        return outcomes

    def _remember(self) -> None:
        self._file.note_applied(Applied(self._done_ops, sorted(self._done_files)))

    # --- operations ------------------------------------------------------------------------------

    async def _apply_op(self, key: str, lost: LostOperation) -> list[Outcome]:
        op = lost.op
        if key in self._done_ops:
            if isinstance(op, wire.MakeNode):
                self._own.add(op.ino)
                if self._done_ops[key]:
                    self._stands_for[op.ino] = InodeNumber(self._done_ops[key])
            return []
        what = describe(lost)
        try:
            outcome = await self._outcome(lost, what)
        except _LeaveOutError as why:
            return [Outcome(Verdict.LEFT, what, str(why))]
        except MictlanError as error:
            if error.is_retryable:
                raise
            return [Outcome(Verdict.LEFT, what, str(error))]
        ino = op.ino if isinstance(op, wire.MakeNode) else InodeNumber(0)
        self._done_ops[key] = self._stands_for.get(ino, 0)
        return [outcome]

    async def _outcome(self, lost: LostOperation, what: str) -> Outcome:
        match lost.op:
            case wire.MakeNode() as op:
                return await self._make(lost, op, what)
            case wire.Unlink() | wire.RemoveDirectory() as op:
                return await self._remove(lost, op, what)
            case wire.Rename() as op:
                return await self._rename(lost, op, what)
            case wire.SetAttributes() as op:
                return await self._set_attributes(lost, op, what)
            case _:
                raise _LeaveOutError("it has to be done by hand")

    async def _node(self, ino: InodeNumber) -> Node | None:
        try:
            return await self._router.node(wire.GetNode(ino))
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return None

    async def _look(self, place: wire.Place) -> Node | None:
        try:
            return await self._router.lookup(wire.Lookup(place.parent, place.name))
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return None

    async def _directory(self, ino: InodeNumber, lost: LostOperation) -> InodeNumber:
        """The directory of an operation, as it is now; made again when it is gone."""
        ino = self._stands_for.get(ino, ino)
        if await self._node(ino) is not None:
            return ino
        op = lost.op
        is_new_parent = isinstance(op, wire.Rename) and ino == op.new_parent
        path = lost.new_parent if is_new_parent else lost.parent
        if path is None or not path.is_whole:
            raise _LeaveOutError("its directory is gone")
        found = self._stands_for[ino] = await self._made_directory(path.names)
        return found

    async def _made_directory(self, names: Names) -> InodeNumber:
        """The directory of that path, made where it is missing."""
        found = await self._tree.find(names)
        if len(found.nodes) < 2 and names:
            raise _LeaveOutError("its bucket is gone")
        reached = found.nodes[-1].attributes
        if reached.kind is not FileKind.DIRECTORY:
            raise _LeaveOutError("a file is where its directory was")
        missing = found.missing_names
        ops, ino = await new_directories(self._session, self._caller, reached.ino, missing)
        if ops:
            await self._session.apply_all(ops)
        return ino

    async def _free_place(self, place: wire.Place) -> wire.Place:
        """The name, or one beside it that nothing has."""
        if await self._look(place) is None:
            return place
        for number in range(1, BESIDE_ATTEMPTS_MAX):
            name = self._beside(place.name, number)
            if await self._look(wire.Place(place.parent, name)) is None:
                return wire.Place(place.parent, name)
        raise _LeaveOutError("too many files of that name were recovered")

    def _beside(self, name: bytes, number: int) -> bytes:
        ending = f".recovered-{self._recovery.id}" + (f"-{number}" if number > 1 else "")
        return name[: NAME_SIZE_BYTES_MAX - len(ending)] + ending.encode()

    async def _make(self, lost: LostOperation, op: wire.MakeNode, what: str) -> Outcome:
        if await self._node(op.ino) is not None:
            self._own.add(op.ino)
            return Outcome(Verdict.THERE, what)
        place = wire.Place(await self._directory(op.parent, lost), op.name)
        found = await self._look(place)
        if found is not None and found.attributes.kind is op.kind is FileKind.DIRECTORY:
            self._stands_for[op.ino] = found.attributes.ino
            return Outcome(Verdict.THERE, what, "somebody else made it, too")
        free = await self._free_place(place)
        made = msgspec.structs.replace(op, parent=free.parent, name=free.name)
        await self._session.apply(made)
        self._own.add(op.ino)
        return self._placed(op.ino, op.name, free, what)

    def _placed(self, ino: InodeNumber, name: bytes, place: wire.Place, what: str) -> Outcome:
        self._places[ino] = place
        if place.name == name:
            return Outcome(Verdict.APPLIED, what)
        return Outcome(Verdict.BESIDE, what, f"it is {show_path((place.name,))} now")

    async def _subject(
        self, lost: LostOperation, parent: InodeNumber, name: bytes
    ) -> tuple[wire.Place, Node] | None:
        """Where what an operation is about has the name that it had; None: it has it no more."""
        ino = lost.touched[0].ino
        directory = self._stands_for.get(parent, parent)
        place = self._places.get(ino)
        if place is None and ino in self._own:
            # It was put somewhere by an earlier call.
            place = await self._where(ino)
        place = place or wire.Place(directory, name)
        if await self._node(place.parent) is None:
            return None
        found = await self._look(place)
        if found is None:
            return None
        if found.attributes.ino != self._stands_for.get(ino, ino):
            raise _LeaveOutError("the name stands for something else now")
        return place, found

    async def _where(self, ino: InodeNumber) -> wire.Place | None:
        """A name of an inode; None when it has none."""
        try:
            names = await self._router.path(ino)
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return None
        found = await self._tree.find(names)
        if not names or not found.is_complete:
            return None
        return wire.Place(found.nodes[-2].attributes.ino, names[-1])

    def _is_unchanged(self, node: Node, lost: LostOperation) -> bool:
        ino = node.attributes.ino
        known = {one.ino: one.content_version for one in lost.touched}
        return ino in self._own or known.get(ino) == node.attributes.content_version

    async def _remove(
        self, lost: LostOperation, op: wire.Unlink | wire.RemoveDirectory, what: str
    ) -> Outcome:
        subject = await self._subject(lost, op.parent, op.name)
        if subject is None:
            return Outcome(Verdict.THERE, what)
        place, node = subject
        if isinstance(op, wire.Unlink) and not self._is_unchanged(node, lost):
            raise _LeaveOutError("it was changed since")
        removal = msgspec.structs.replace(op, parent=place.parent, name=place.name, sustain=False)
        await self._session.apply(removal)
        return Outcome(Verdict.APPLIED, what)

    async def _rename(self, lost: LostOperation, op: wire.Rename, what: str) -> Outcome:
        ino = lost.touched[0].ino
        target_place = wire.Place(await self._directory(op.new_parent, lost), op.new_name)
        target = await self._look(target_place)
        if target is not None and target.attributes.ino == ino:
            return Outcome(Verdict.THERE, what)
        subject = await self._subject(lost, op.parent, op.name)
        if subject is None:
            raise _LeaveOutError("it is not there any more")
        mode = wire.RenameMode.NO_REPLACE
        if target is not None and len(lost.touched) > 1:
            is_meant = lost.touched[-1].ino == target.attributes.ino
            if is_meant and self._is_unchanged(target, lost):
                mode = wire.RenameMode.REPLACE
        if mode == wire.RenameMode.NO_REPLACE:
            target_place = await self._free_place(target_place)
        place = subject[0]
        await self._session.apply(
            wire.Rename(
                place.parent,
                place.name,
                target_place.parent,
                target_place.name,
                op.time_ns,
                mode,
            )
        )
        return self._placed(ino, op.new_name, target_place, what)

    async def _set_attributes(
        self, lost: LostOperation, op: wire.SetAttributes, what: str
    ) -> Outcome:
        if op.ino in self._stands_for:
            raise _LeaveOutError("somebody else made it, too")
        node = await self._node(op.ino)
        if node is None:
            raise _LeaveOutError("it is not there any more")
        now = node.attributes
        fields = ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns")
        if all(getattr(op, field) in {None, getattr(now, field)} for field in fields):
            return Outcome(Verdict.THERE, what)
        if op.ino not in self._own and now.version > lost.touched[0].version:
            raise _LeaveOutError("it was changed since")
        self._own.add(op.ino)
        await self._session.apply(op)
        return Outcome(Verdict.APPLIED, what)

    # --- bytes of files --------------------------------------------------------------------------

    async def _apply_file(self, index: int, lost: LostFile) -> Outcome:
        what = f"{lost.lost_bytes} bytes of {lost.show()}"
        try:
            self._file.check(index)
            node = await self._node(lost.ino)
            if node is not None and self._is_as_before(node, lost):
                try:
                    await self._write(index, node, lost)
                    return Outcome(Verdict.APPLIED, what)
                except MictlanError as error:
                    if error.kind is not Kind.CONFLICT:
                        raise
            return await self._write_beside(index, node, lost, what)
        except _LeaveOutError as why:
            return Outcome(Verdict.LEFT, what, str(why))
        except MictlanError as error:
            if error.is_retryable:
                raise
            return Outcome(Verdict.LEFT, what, str(error))

    def _is_as_before(self, node: Node, lost: LostFile) -> bool:
        if node.attributes.kind is not FileKind.FILE:
            return False
        # What was made by this recovery is empty but for what others wrote since.
        is_new = lost.ino in self._own and node.attributes.content_version == 1
        return is_new or node.attributes.content_version == lost.content_version

    async def _write_beside(
        self, index: int, node: Node | None, lost: LostFile, what: str
    ) -> Outcome:
        path = await self._present_path(lost, node)
        if not path:
            raise _LeaveOutError("where it lay is not known; export it")
        wanted = wire.Place(await self._made_directory(path[:-1]), path[-1])
        if node is not None or not lost.is_whole:
            # A part of a file must not pose as the file.
            wanted = wire.Place(wanted.parent, self._beside(path[-1], 1))
        place = await self._free_place(wanted)
        ino = await self._session.new_inode()
        make = wire.MakeNode(
            place.parent,
            place.name,
            ino,
            FileKind.FILE,
            lost.mode,
            lost.uid,
            lost.gid,
            time.time_ns(),
        )
        await self._session.apply(make)
        made = await self._node(ino)
        assert made is not None
        await self._write(index, made, lost)
        now = show_path((*path[:-1], place.name))
        if place.name == path[-1]:
            return Outcome(Verdict.APPLIED, what, "the file was gone, and is there again")
        rest = "" if lost.is_whole else "; what was not written is a hole there"
        return Outcome(Verdict.BESIDE, what, f"they are in {now}{rest}")

    async def _present_path(self, lost: LostFile, node: Node | None) -> Names:
        if node is not None and node.attributes.nlink:
            return await self._router.path(lost.ino)
        if lost.path is None or not lost.path.names:
            return ()
        if lost.path.is_whole:
            return lost.path.names
        try:
            return (*await self._router.path(lost.path.top), *lost.path.names)
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return ()

    async def _write(self, index: int, node: Node, lost: LostFile) -> None:
        """Write all bytes of a file upon the content that `node` shows.

        Raises:
            MictlanError: CONFLICT when somebody else writes it meanwhile.
        """
        policy = node.policy or BucketPolicy()
        version = node.attributes.content_version
        extents: list[Extent] = []
        chunks: list[Chunk] = []

        async def commit() -> int:
            op = wire.WriteExtents(
                node.attributes.ino,
                tuple(extents),
                tuple(chunks),
                extents[-1].end,
                lost.mtime_ns,
                if_content_version=version,
            )
            (attributes, *_) = await self._session.apply(op)
            extents.clear()
            chunks.clear()
            return attributes.content_version

        for offset, data in self._parts(index, policy.chunk_size):
            chunk = await self._chunks.store([data], policy)
            extents.append(Extent(offset, len(data), chunk.id, 0))
            chunks.append(chunk)
            if len(extents) == EXTENTS_PER_COMMIT_MAX:
                version = await commit()
        if extents:
            await commit()

    def _parts(self, index: int, chunk_size: int) -> Iterator[tuple[int, bytes]]:
        """The bytes of a file, cut where chunks of the file end."""
        for offset, data in self._file.ranges(index, chunk_size):
            cut = chunk_size - offset % chunk_size
            yield offset, data[:cut]
            if len(data) > cut:
                yield offset + cut, data[cut:]
