"""Whether a space keeps its promises: what workloads find again, and whether the whole is sound."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mictlanfs_server.metadata.check import find_damage
from tests.faults.journal import Step, body
from tests.faults.model import Expected, FileNode, Names, Promise, SymlinkNode, read_names
from tests.faults.workload import DATABASE


@dataclass(frozen=True, slots=True)
class Orphans:
    """Chunks of peers that the metadata does not name, and the other way round.

    Attributes:
        count, size_bytes: of those that peers hold and nobody names.
        missing: rows of replicas whose peer does not hold the chunk.
        dead: chunks that nothing refers to, and that are to be deleted from their peers.
    """

    count: int
    size_bytes: int
    missing: int
    dead: int


def problems_of(folder: Path, steps: Sequence[Step], promise: Promise) -> list[str]:
    """What is wrong in the folder of a workload that journalled these steps."""
    names = without_database(read_names(os.fspath(folder)))
    found = []
    if (difference := Expected(steps, promise).difference(names)) is not None:
        found.append(f"{folder.name}: {difference}")
    found.extend(f"{folder.name}: {problem}" for problem in database_problems(folder, steps))
    return found


def without_database(names: Names) -> Names:
    """The names that the model knows: the database and its journals are looked at by SQLite."""
    return {name: node for name, node in names.items() if not name.startswith(DATABASE)}


def database_problems(folder: Path, steps: Sequence[Step]) -> list[str]:
    """What is wrong with the database of a workload: its rows are those of its first commits."""
    begun = [step for step in steps if step.verb == "sql"]
    done_count = sum(step.is_done for step in begun)
    path = folder / DATABASE
    if not begun or (not done_count and not path.exists()):
        return []
    # Opening it may change what is there.
    found = ", ".join(f"{one.name} {one.stat().st_size}" for one in folder.glob(f"{DATABASE}*"))
    return [f"{problem} ({found})" for problem in _row_problems(path, begun, done_count)]


def _row_problems(path: Path, begun: Sequence[Step], done_count: int) -> list[str]:
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
            if verdict != "ok":
                return [f"the database is damaged: {verdict}"]
            rows = database.execute("SELECT number, body FROM row ORDER BY number").fetchall()
    except sqlite3.Error as error:
        if not done_count:
            return []
        return [f"the database cannot be read: {error}"]
    wanted = [(step.offset, body(step.seed, step.length)) for step in begun]
    if rows != wanted[: len(rows)]:
        return ["the database has other rows than were committed"]
    if len(rows) < done_count:
        return [f"the database has {len(rows)} of {done_count} committed rows"]
    return []


def fingerprint(folder: Path) -> str:
    """A digest of all names and contents below a folder."""
    names: Names = read_names(os.fspath(folder))
    digest = hashlib.blake2b(digest_size=16)
    for name, node in sorted(names.items()):
        digest.update(os.fsencode(f"{name}\0{type(node).__name__}\0"))
        if isinstance(node, FileNode):
            digest.update(len(node.content).to_bytes(8, "big"))
            digest.update(node.content)
        elif isinstance(node, SymlinkNode):
            digest.update(os.fsencode(f"{node.target}\0"))
    return digest.hexdigest()


def metadata_problems(router_data: Path) -> list[str]:
    """Invariants of the metadata that do not hold; a router may be using it."""
    uri = f"{(router_data / 'metadata.db').as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as found:
        return find_damage(found)


def find_orphans(router_data: Path, peers: Sequence[Path]) -> Orphans:
    """Compare what peers hold with what the metadata names, tombstones included."""
    uri = f"{(router_data / 'metadata.db').as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as metadata:
        named = {row[0] for row in metadata.execute("SELECT id FROM chunk")}
        (dead,) = metadata.execute("SELECT count(*) FROM chunk WHERE refs = 0").fetchone()
        rows = metadata.execute(
            "SELECT peer.id, chunk FROM replica JOIN peer ON peer.number = replica.peer"
        ).fetchall()
    held: dict[str, dict[bytes, int]] = {}
    for folder in peers:
        index = f"{(folder / 'index.sqlite').as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(index, uri=True)) as found:
            held[folder.name] = dict(found.execute("SELECT id, length FROM chunks").fetchall())
    orphans = [size for chunks in held.values() for key, size in chunks.items() if key not in named]
    missing = sum(chunk not in held.get(_folder_of(peer), {}) for peer, chunk in rows)
    return Orphans(len(orphans), sum(orphans), missing, dead)


def _folder_of(peer_id: str) -> str:
    """The data folder of a supervised peer: `mictlanx-peer-0` keeps its data in `peer-0`."""
    return peer_id.removeprefix("mictlanx-")
