"""Recovery files: what a mount could not commit, kept on the user's disk until somebody decides.

Owns the form of these files and the folder they are in; `client.recovering` re-applies them and the
mount writes them. A file is written once, whole and durably, and never changed::

    magic | length of the header | digest of the header | header | bytes of all ranges, in order

What was re-applied of it stands in a second file beside it. Everything here blocks.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mictlanfs import paths, wire
from mictlanfs.checksums import DIGEST_SIZE_BYTES, digest_of, new_hasher
from mictlanfs.durable import replace_file, sync_folder
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_token
from mictlanfs.jsontext import from_json, to_json
from mictlanfs.model import GIB, MIB, ROOT_INODE, Buffer, InodeNumber, Struct
from mictlanfs.oserrors import translated_os_errors

# Bounds of one file and of the folder. What is beyond them is lost, and the log says so.
OPS_MAX = 65_536
FILES_MAX = 65_536
SIZE_BYTES_MAX = 4 * GIB
RECOVERIES_MAX = 1000
HEADER_SIZE_BYTES_MAX = 256 * MIB
_MAGIC = b"mictlanfs recovery 1\n"
_LENGTH = struct.Struct(">Q")
_SUFFIX = ".recovery"
_APPLIED_SUFFIX = ".applied"
_PART_SIZE_BYTES = 4 * MIB


class KnownPath(Struct, frozen=True):
    """Where something lay, as far as the mount knew.

    Attributes:
        names: from below `top` down.
        top: the directory where the names begin; the root when the whole path is known.
    """

    names: tuple[bytes, ...]
    top: InodeNumber = ROOT_INODE

    @property
    def is_whole(self) -> bool:
        """Whether it begins at the root."""
        return self.top == ROOT_INODE

    def below(self, name: bytes) -> KnownPath:
        """The path of a name in this directory."""
        return KnownPath((*self.names, name), self.top)

    def show(self) -> str:
        """For people: `BUCKET/a/b`, with the number of a directory whose path is not known."""
        above = () if self.is_whole else (b"(inode %d)" % self.top,)
        return os.fsdecode(b"/".join((*above, *self.names))) or "/"


class Touched(Struct, frozen=True):
    """An inode that an operation touches, as the mount knew it."""

    ino: InodeNumber
    version: int
    content_version: int


class LostOperation(Struct, frozen=True):
    """An operation that was applied in the mount and not in the space.

    Attributes:
        parent, new_parent: where the directories of the operation lay; None: not known, or none.
        touched: the inode that the operation is about first, one that it replaces last.
        error: why it was not applied.
    """

    op: wire.Operation
    parent: KnownPath | None
    new_parent: KnownPath | None
    touched: tuple[Touched, ...]
    error: str


class LostFile(Struct, frozen=True):
    """Bytes that were written to a file and are not in the space.

    Attributes:
        path: None when it had no name that the mount knew.
        content_version: of the content that the bytes were written upon.
        size: that the file had with them.
        ranges: (offset, length) of its bytes, in order and without overlaps.
        digest: of all its bytes, in order.
    """

    ino: InodeNumber
    path: KnownPath | None
    content_version: int
    size: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int
    ranges: tuple[tuple[int, int], ...]
    digest: bytes

    @property
    def lost_bytes(self) -> int:
        """How many bytes there are."""
        return sum(length for _, length in self.ranges)

    @property
    def is_whole(self) -> bool:
        """Whether the bytes are all of the file."""
        return self.lost_bytes == self.size

    def show(self) -> str:
        """Its path for people."""
        return self.path.show() if self.path is not None else f"(inode {self.ino})"


class Recovery(Struct, frozen=True):
    """What one recovery file holds, without the bytes of files.

    Attributes:
        reason: why it could not be committed, for people.
        dropped_ops, dropped_bytes: what did not fit and is lost.
    """

    id: str
    space_id: str
    uri: str
    mountpoint: str
    time_ns: int
    reason: str
    ops: tuple[LostOperation, ...]
    files: tuple[LostFile, ...]
    dropped_ops: int = 0
    dropped_bytes: int = 0

    @property
    def lost_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.lost_bytes for file in self.files)


class Applied(msgspec.Struct, frozen=True):
    """What was re-applied of a recovery, so that doing it again does nothing twice.

    Attributes:
        ops: number of each operation that is done, as text, and the inode that stands for what it
            made; 0 when that is its own.
        files: numbers of the files that are done.
    """

    ops: dict[str, int] = {}  # msgspec copies it.
    files: list[int] = []


class RecoveryFile:
    """A recovery file on disk, with its header read and checked."""

    def __init__(self, path: Path, recovery: Recovery, body_start: int) -> None:
        self.path = path
        self.recovery = recovery
        self._starts: list[int] = []
        for file in recovery.files:
            self._starts.append(body_start)
            body_start += file.lost_bytes

    def ranges(self, index: int, size_max: int = _PART_SIZE_BYTES) -> Iterator[tuple[int, bytes]]:
        """The bytes of a file, in parts of at most `size_max`, each with its offset.

        Raises:
            MictlanError: CORRUPT when they are not those that were written, behind the last part.
        """
        lost = self.recovery.files[index]
        hasher = new_hasher()
        with translated_os_errors("read", str(self.path)), self.path.open("rb") as file:
            file.seek(self._starts[index])
            for offset, length in lost.ranges:
                for start in range(offset, offset + length, size_max):
                    data = file.read(min(size_max, offset + length - start))
                    hasher.update(data)
                    yield start, data
        if hasher.digest() != lost.digest:
            raise MictlanError(Kind.CORRUPT, "read", str(self.path), "it is damaged")

    def check(self, index: int) -> None:
        """Read the bytes of a file once. Raises CORRUPT when they are damaged."""
        for _ in self.ranges(index):
            pass

    # --- what was re-applied ---------------------------------------------------------------------

    def applied(self) -> Applied:
        """What was re-applied before."""
        try:
            return from_json(self._applied_path.read_bytes(), Applied)
        except FileNotFoundError:
            return Applied()
        except (OSError, ValueError) as error:
            detail = f"what was re-applied cannot be read: {error}"
            raise MictlanError(Kind.CORRUPT, "read", str(self._applied_path), detail) from error

    def note_applied(self, applied: Applied) -> None:
        """Remember, durably, what was re-applied."""
        with translated_os_errors("write", str(self._applied_path)):
            replace_file(self._applied_path, to_json(applied), is_durable=True)

    @property
    def is_applied(self) -> bool:
        """Whether all of it was re-applied, as far as that is known."""
        try:
            done = self.applied()
        except MictlanError:
            return False
        recovery = self.recovery
        return len(done.ops) >= len(recovery.ops) and len(done.files) >= len(recovery.files)

    @property
    def _applied_path(self) -> Path:
        return self.path.with_suffix(_APPLIED_SUFFIX)

    def remove(self) -> None:
        """Delete it."""
        with translated_os_errors("remove", str(self.path)):
            self._applied_path.unlink(missing_ok=True)
            self.path.unlink()
            sync_folder(self.path.parent)


def new_recovery_id(time_ns: int) -> str:
    """A name for a recovery that begins with its time, in UTC."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time_ns // 1_000_000_000))
    return f"{stamp}-{new_token()[:4]}"


def write_recovery(recovery: Recovery, bodies: Sequence[Sequence[Buffer]]) -> Path:
    """Write a recovery file durably; nobody ever sees a part of it.

    Args:
        recovery: with everything but the digests of its files.
        bodies: of each file the bytes of its ranges, in any number of pieces.

    Raises:
        MictlanError: it cannot be written; nothing is left behind.
    """
    files = tuple(
        msgspec.structs.replace(file, digest=digest_of(pieces))
        for file, pieces in zip(recovery.files, bodies, strict=True)
    )
    header = wire.encode(msgspec.structs.replace(recovery, files=files))
    folder = paths.recovery_dir()
    if sum(1 for _ in _files_in(folder)) >= RECOVERIES_MAX:
        detail = f"there are {RECOVERIES_MAX} recovery files already: see 'mictlanfs recover'"
        raise MictlanError(Kind.NO_SPACE, "write", str(folder), detail)
    path = folder / f"{recovery.id}{_SUFFIX}"
    temporary = path.with_suffix(".new")
    with translated_os_errors("write", str(path)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            try:
                file.write(_MAGIC + _LENGTH.pack(len(header)) + digest_of([header]) + header)
                for pieces in bodies:
                    for piece in pieces:
                        file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        sync_folder(folder)
    return path


def open_recovery(recovery_id: str) -> RecoveryFile:
    """The recovery file of that name.

    Raises:
        MictlanError: NOT_FOUND; CORRUPT.
    """
    path = paths.recovery_dir() / f"{recovery_id}{_SUFFIX}"
    if "/" in recovery_id or not path.is_file():
        detail = "there is no such recovery: see 'mictlanfs recover list'"
        raise MictlanError(Kind.NOT_FOUND, "find", recovery_id, detail)
    return _opened(path)


def list_recoveries() -> list[RecoveryFile | MictlanError]:
    """All recoveries of this user, oldest first; for a damaged one its error."""
    found: list[RecoveryFile | MictlanError] = []
    for path in sorted(_files_in(paths.recovery_dir())):
        try:
            found.append(_opened(path))
        except MictlanError as error:
            found.append(error)
    return found


def _files_in(folder: Path) -> Iterator[Path]:
    return folder.glob(f"*{_SUFFIX}")


def _opened(path: Path) -> RecoveryFile:
    damaged = MictlanError(Kind.CORRUPT, "read", str(path), "it is damaged")
    with translated_os_errors("read", str(path)), path.open("rb") as file:
        start = file.read(len(_MAGIC) + _LENGTH.size + DIGEST_SIZE_BYTES)
        if len(start) < len(_MAGIC) + _LENGTH.size + DIGEST_SIZE_BYTES:
            raise damaged
        if not start.startswith(_MAGIC):
            detail = "it is no recovery file of this version"
            raise MictlanError(Kind.CORRUPT, "read", str(path), detail)
        (length,) = _LENGTH.unpack_from(start, len(_MAGIC))
        size = os.fstat(file.fileno()).st_size
        if length > min(HEADER_SIZE_BYTES_MAX, size):
            raise damaged
        header = file.read(length)
    if digest_of([header]) != start[-DIGEST_SIZE_BYTES:]:
        raise damaged
    recovery = wire.decode(header, Recovery)
    body_start = len(start) + length
    if size != body_start + recovery.lost_bytes:
        raise damaged
    return RecoveryFile(path, recovery, body_start)
