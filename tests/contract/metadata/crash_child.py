"""A process that commits batches until it is killed, and tells of each one that was acknowledged.

Started by `test_crash.py`. The batches follow from lane and number alone, so that the test can make
the same ones again. Each lane is a session; the lanes commit at the same time, so batches of
several are in one transaction.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from mictlanfs import wire
from mictlanfs.model import Chunk, ChunkId, Extent, FileKind, InodeNumber, PeerNumber, SessionId
from mictlanfs_server.metadata.base import MetadataStore
from tests.contract.metadata.forms import FORMS

OPS_PER_BATCH = 8
LENGTH = 8


def chunk_of(lane: int, index: int) -> Chunk:
    chunk_id = ChunkId(lane.to_bytes(8, "big") + index.to_bytes(8, "big"))
    return Chunk(chunk_id, LENGTH, b"d" * 32, (PeerNumber(1), PeerNumber(2)))


def batch_of(lane: int, index: int, session: str, epoch: int, directory: int) -> wire.Commit:
    """The batch number `index`, from 0, of a lane: makes a file and replaces the one before.

    It also stores one of the two parts of a ball.
    """
    parent = InodeNumber(directory)
    ino = InodeNumber(1_000_000 * (lane + 1) + index)
    part, ball = InodeNumber(ino + 300_000), InodeNumber(ino + 600_000)
    name, whole = b"part-%d" % index, b"ball-%d" % (index // 2)
    chunk = chunk_of(lane, index)
    ops: tuple[wire.Operation, ...] = (
        wire.MakeNode(parent, b"new", ino, FileKind.FILE, 0o600, 0, 0, index),
        wire.WriteExtents(ino, (Extent(0, LENGTH, chunk.id, 0),), (chunk,), LENGTH, index),
        wire.SetXattr(ino, b"user.index", b"%d" % index, index),
        wire.Link(ino, parent, b"file-%d" % index, index),
        wire.Rename(parent, b"new", parent, b"latest", index),
        wire.MakeNode(parent, name, part, FileKind.FILE, 0o600, 0, 0, index),
        wire.PutPart(part, parent, name, whole, ball, index % 2, 2, b"%d" % index, index),
        # Fails: its error is part of the answer that must be repeated.
        wire.Unlink(parent, b"never there", index),
    )
    assert len(ops) == OPS_PER_BATCH
    return wire.Commit(SessionId(session), epoch, 1 + index * OPS_PER_BATCH, ops, sync=True)


async def commit_for_ever(store: MetadataStore, lane: int, start: int, *session: object) -> None:
    index = start
    while True:
        answer = await store.commit(batch_of(lane, index, *session))  # type: ignore[arg-type] # JSON
        # One write, so that a kill leaves a whole line or none.
        sys.stdout.write(json.dumps([lane, index, answer.hex()]) + "\n")
        sys.stdout.flush()
        index += 1


async def main() -> None:
    form, folder, lanes = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    store = FORMS[form](folder, time.time_ns)
    await store.start()
    async with asyncio.TaskGroup() as tasks:
        for lane, (start, *session) in enumerate(lanes):
            tasks.create_task(commit_for_ever(store, lane, start, *session))


if __name__ == "__main__":
    asyncio.run(main())
