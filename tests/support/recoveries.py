"""Recoveries for tests, as a mount would write them."""

from __future__ import annotations

from collections.abc import Sequence

from mictlanfs import wire
from mictlanfs.model import InodeNumber
from mictlanfs.recoveries import (
    KnownPath,
    LostFile,
    LostOperation,
    Recovery,
    RecoveryFile,
    Touched,
    open_recovery,
    write_recovery,
)

ID = "20260102-030405-abcd"
START_NS = 1_700_000_000_000_000_000


def lost_op(
    op: wire.Operation, *touched: Touched, parent: KnownPath | None = None
) -> LostOperation:
    """An operation that was refused."""
    return LostOperation(op, parent or KnownPath((b"b",)), parent, touched, "fenced")


def lost_file(
    ino: int, path: KnownPath | None, version: int, size: int, *ranges: tuple[int, int]
) -> LostFile:
    """A file with dirty ranges."""
    return LostFile(
        InodeNumber(ino), path, version, size, START_NS, 0o640, 7, 8, tuple(ranges), b""
    )


def written(
    ops: Sequence[LostOperation] = (),
    files: Sequence[tuple[LostFile, bytes]] = (),
    *,
    space_id: str = "space",
    uri: str = "mictlanx://router@router:60666/?protocol=http",
    recovery_id: str = ID,
) -> RecoveryFile:
    """A recovery on disk, each file with the bytes of its ranges."""
    recovery = Recovery(
        recovery_id,
        space_id,
        uri,
        "/mnt/vss",
        START_NS,
        "it was fenced",
        tuple(ops),
        tuple(file for file, _ in files),
    )
    write_recovery(recovery, [[body] for _, body in files])
    return open_recovery(recovery_id)
