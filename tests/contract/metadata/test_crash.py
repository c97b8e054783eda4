"""Acknowledged is durable: a store killed at random moments, again and again, loses nothing."""

import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from mictlanfs import wire
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber
from mictlanfs_server.metadata.base import MetadataStore
from mictlanfs_server.metadata.check import find_damage
from tests.contract.metadata.crash_child import batch_of, chunk_of
from tests.contract.metadata.forms import Client, Form

ROOT = Path(__file__).resolve().parents[3]
LANE_COUNT = 3
ROUND_COUNT = 8
LIFE_S = 0.15


@dataclass
class Lane:
    """A session of the child: what it may have sent and what was acknowledged."""

    session: str
    epoch: int
    directory: int
    answers: list[bytes] = field(default_factory=list)

    def batch(self, lane: int, index: int) -> wire.Commit:
        return batch_of(lane, index, self.session, self.epoch, self.directory)


async def prepare(store: MetadataStore) -> list[Lane]:
    lanes = []
    for number in range(LANE_COUNT):
        client = await Client.open(store)
        directory = await client.make(ROOT_INODE, b"lane-%d" % number, FileKind.DIRECTORY)
        session = await store.open_session(wire.OpenSession(1, "host", 1, f"lane {number}"))
        lanes.append(Lane(session.session, session.epoch, directory))
    # The numbers that the batches use must have been handed out.
    for _ in range(70):
        await store.take_inodes(64 * wire.INODE_BATCH_COUNT)
    return lanes


def live_and_die(form: Form, lanes: list[Lane], life_s: float) -> None:
    """Let a child commit for a while after its first acknowledgement, then kill it."""
    state = [[len(lane.answers), lane.session, lane.epoch, lane.directory] for lane in lanes]
    command = [sys.executable, "-m", "tests.contract.metadata.crash_child"]
    arguments = [form.name, str(form.folder), json.dumps(state)]
    path = ":".join(str(ROOT / part) for part in (".", "server", "mount"))
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": path}
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        time.sleep(life_s)
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL, "the child ended by itself"
    for line in lines:
        # The last line may be cut short: then nobody was told.
        with contextlib.suppress(json.JSONDecodeError):
            lane, index, answer = json.loads(line)
            assert index == len(lanes[lane].answers)
            lanes[lane].answers.append(bytes.fromhex(answer))


async def verify(store: MetadataStore, lanes: list[Lane]) -> None:
    """Everything acknowledged is there once, and what was under way can be sent again."""
    for number, lane in enumerate(lanes):
        index = len(lane.answers)
        # Applied before the kill or not, the batch without an acknowledgement succeeds now, ...
        retried = await store.commit(lane.batch(number, index))
        # ... and is answered the same again.
        assert await store.commit(lane.batch(number, index)) == retried
        lane.answers.append(retried)
        results = wire.decode(retried, wire.CommitAnswer).results
        errors = [result.error.kind if result.error else None for result in results]
        assert errors == [None] * 7 + ["not-found"]
        await verify_lane(store, number, lane)


async def verify_lane(store: MetadataStore, number: int, lane: Lane) -> None:
    directory, after, names = InodeNumber(lane.directory), b"", []
    while True:
        page = await store.list_directory(wire.ListDirectory(directory, after, extents_max=4))
        names += [(entry.name, entry.node) for entry in page.entries]
        if page.is_last:
            break
        after = names[-1][0]
    count = len(lane.answers)
    files = {b"file-%d" % index for index in range(count)} | {b"latest"}
    balls = {b"ball-%d" % index for index in range(count // 2)}
    parts = {b"part-%d" % (count - 1)} if count % 2 else set()
    assert {name for name, _ in names} == files | balls | parts
    for name, node in names:
        if name in balls:
            first = 2 * int(name[5:])
            (record,) = (await store.records(wire.GetRecords((node.attributes.ino,)))).records
            assert [piece.body for piece in record.pieces] == [b"%d" % first, b"%d" % (first + 1)]
        if name not in files:
            continue
        index = count - 1 if name == b"latest" else int(name[5:])
        assert node.attributes.ino == 1_000_000 * (number + 1) + index
        assert node.attributes.nlink == (2 if index == count - 1 else 1)
        assert [chunk.id for chunk in node.chunks] == [chunk_of(number, index).id]


def damage_of(form: Form) -> list[str]:
    with contextlib.closing(
        sqlite3.connect(form.folder / "metadata.db", isolation_level=None)
    ) as connection:
        return find_damage(connection)


def test_killed_store_keeps_every_acknowledged_batch_exactly_once(form: Form) -> None:
    lanes = form.run(prepare)
    randomness = random.Random(20_240_601)
    acknowledged = []
    for _ in range(ROUND_COUNT):
        live_and_die(form, lanes, randomness.uniform(0, LIFE_S))
        acknowledged.append(sum(len(lane.answers) for lane in lanes))
        # The log as the kill left it is recovered by this open.
        form.run(lambda store: verify(store, lanes))
        assert damage_of(form) == []
    assert acknowledged[0] > 0
    assert acknowledged == sorted(set(acknowledged))
