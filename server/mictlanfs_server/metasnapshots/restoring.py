"""Making a router's database from peers alone: the newest whole snapshot, made fit to serve.

Everything happens to a file that is not the database yet; it becomes that in one step at the end
(`new_database`). Whatever fails or is killed before leaves an empty directory, and the peers as
they were.

1. Ask every source who it is, which snapshots it has. Go on when none has a router.
2. The newest snapshot: its manifest, then each piece, from any source that has it whole. One that
   cannot be put together is told of, and the next older one is tried.
3. Check the database, bring it to this program's version.
4. Compare it with what the peers hold now (`sqlite_holdings`), and let every counter go ahead
   (`revive`).
5. Check the invariants.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import PeerNumber
from mictlanfs_server.metadata.restored import RestoredDatabase
from mictlanfs_server.metadata.sqlite_holdings import Holdings
from mictlanfs_server.metasnapshots.form import (
    Manifest,
    ManifestName,
    decode_manifest,
    parse_manifest_name,
    piece_name,
    unpack,
)
from mictlanfs_server.metasnapshots.sources import Identity, Source
from mictlanfs_server.router.datadir import new_database

T = TypeVar("T")

NS_PER_S: Final = 10**9
# A peer knows that its router is gone after a heartbeat and the time-out of an announcement.
ROUTER_LOST_S: Final = 8.0
_ASK_AGAIN_S: Final = 0.25


@dataclass(slots=True)
class Report:
    """What was restored, and what is not as it was.

    Attributes:
        moment_ns: everything committed before is there.
        peers_not_asked: peers that the metadata knows, and that were no source.
        damage: invariants that do not hold.
        missing_chunks, elsewhere_chunks, missing_paths: see `HoldingsReport`.
    """

    space_id: str
    moment_ns: int
    inode_count: int
    chunk_count: int
    sources: list[str] = field(default_factory=list)
    peers_not_asked: list[str] = field(default_factory=list)
    missing_chunks: int = 0
    elsewhere_chunks: int = 0
    missing_paths: list[bytes] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, as far as the sources could tell."""
        return not self.missing_chunks and not self.damage


Known = Mapping[Source, Identity]


async def restore(
    sources: Sequence[Source],
    folder: Path,
    say: Callable[[str], None],
    *,
    until_ns: int | None = None,
    is_forced: bool = False,
    now_ns: Callable[[], int] = time.time_ns,
) -> Report:
    """Restore into `folder`, which is empty or not there.

    Args:
        sources: peers, running or not; those that do not answer are told of and left out.
        folder: of the router.
        say: is told, in sentences, what people want to know meanwhile.
        until_ns: no snapshot of a later moment; None: the newest.
        is_forced: also when a source is registered with a router at this moment.
        now_ns: the clock.

    Cancellation: `folder` stays empty.

    Raises:
        UsageError: the folder is not empty; a router serves the space; two spaces.
        MictlanError: NOT_FOUND (no snapshot), UNAVAILABLE, CORRUPT (none is whole), UNSUPPORTED.
    """
    with new_database(folder) as path:
        known = await _identities(sources, say)
        if not is_forced:
            await _until_nobody_serves(known, say)
        space_id = _the_space(known)
        found = await _manifests(known, until_ns, say)
        manifest = await _assemble(found, path, say)
        if manifest.space_id != space_id:
            detail = f"the peers hold data of space {space_id}, the snapshot is of another"
            raise MictlanError(Kind.CORRUPT, "restore", manifest.space_id, detail)
        with RestoredDatabase(path, now_ns()) as database:
            report = Report(manifest.space_id, manifest.moment_ns, *database.counts())
            report.sources = [source.name for source in known]
            await _compare(database, known, report, say)
            database.revive(manifest.moment_ns, now_ns())
            report.damage = database.damage()
    return report


async def _identities(sources: Sequence[Source], say: Callable[[str], None]) -> Known:
    known = {}
    for source in sources:
        try:
            known[source] = await source.identity()
        except MictlanError as error:
            say(f"left out: {source.name}: {error}")
    if not known:
        detail = "none of the peers can be read"
        raise MictlanError(Kind.UNAVAILABLE, "restore", detail=detail)
    return known


async def _until_nobody_serves(known: Known, say: Callable[[str], None]) -> None:
    """Return when no source has a router. One that was killed is missed a few seconds later."""
    deadline_s = time.monotonic() + ROUTER_LOST_S
    is_told = False
    for source, first in known.items():
        identity = first
        while identity.router:
            if time.monotonic() >= deadline_s:
                raise UsageError(
                    f"{source.name} is registered with the router at {identity.router}, which "
                    "serves the space: stop that one first (or use --force)"
                )
            if not is_told:
                say(f"waiting until the peers have no router: {source.name} had {identity.router}")
                is_told = True
            await asyncio.sleep(_ASK_AGAIN_S)
            try:
                identity = await source.identity()
            except MictlanError as error:
                # A peer that has ended has no router either.
                say(f"{source.name} does not answer any more: {error}")
                break


def _the_space(known: Known) -> str:
    spaces = {identity.space_id for identity in known.values() if identity.space_id}
    if len(spaces) > 1:
        raise UsageError(f"the peers belong to different spaces: {', '.join(sorted(spaces))}")
    if not spaces:
        raise MictlanError(Kind.NOT_FOUND, "restore", detail="the peers hold no data of any space")
    return spaces.pop()


async def _manifests(
    known: Known, until_ns: int | None, say: Callable[[str], None]
) -> dict[ManifestName, list[Source]]:
    """Every snapshot, newest first, with those who have its manifest."""
    found: dict[ManifestName, list[Source]] = {}
    for source in known:
        try:
            names = await source.manifests()
        except MictlanError as error:
            say(f"the snapshots on {source.name} are not known: {error}")
            continue
        for name in names:
            parsed = parse_manifest_name(name)
            if parsed is not None and (until_ns is None or parsed.moment_ns <= until_ns):
                found.setdefault(parsed, []).append(source)
    if not found:
        detail = "the peers have no snapshot of the metadata"
        if until_ns is not None:
            detail += f" from before {time.ctime(until_ns // NS_PER_S)}"
        raise MictlanError(Kind.NOT_FOUND, "restore", detail=detail)
    return dict(sorted(found.items(), key=lambda item: item[0].moment_ns, reverse=True))


async def _assemble(
    found: Mapping[ManifestName, list[Source]], path: Path, say: Callable[[str], None]
) -> Manifest:
    """Write the newest snapshot that is whole into a file."""
    everybody = list(dict.fromkeys(source for sources in found.values() for source in sources))
    last: MictlanError | None = None
    for name, sources in found.items():
        # Those who have the manifest have the pieces; others may have some.
        order = [*sources, *(source for source in everybody if source not in sources)]
        try:
            manifest = await _manifest(name, order)
            await _write_pieces(manifest, order, path)
        except MictlanError as error:
            last = error
            say(f"the snapshot of {time.ctime(name.moment_ns // NS_PER_S)} is not whole: {error}")
        else:
            return manifest
    assert last is not None, "there was no snapshot to try"
    raise last


async def _manifest(name: ManifestName, sources: Sequence[Source]) -> Manifest:
    async def get(source: Source) -> Manifest:
        return decode_manifest(name, await source.get(name.name))

    return await _first(sources, get)


async def _write_pieces(manifest: Manifest, sources: Sequence[Source], path: Path) -> None:
    with path.open("wb") as file:
        for index, digest in enumerate(manifest.pieces):
            length = manifest.length_of(index)

            async def get(source: Source, digest: bytes = digest, length: int = length) -> bytes:
                return unpack(await source.get(piece_name(digest)), digest, length)

            file.write(await _first(sources, get))
        file.flush()
        os.fsync(file.fileno())


async def _first(sources: Sequence[Source], get: Callable[[Source], Awaitable[T]]) -> T:
    """What the first source gives that can. Raises the error of the first one if none can."""
    first: MictlanError | None = None
    for source in sources:
        try:
            return await get(source)
        except MictlanError as error:
            first = first or error
    assert first is not None, "there was no source"
    raise first


async def _compare(
    database: RestoredDatabase, known: Known, report: Report, say: Callable[[str], None]
) -> None:
    """Make the database know what the sources hold now."""
    holdings = database.holdings()
    asked = set()
    for source, identity in known.items():
        mark = holdings.begin_peer(_number(holdings, identity))
        try:
            async for page in source.holdings():
                holdings.note(mark, page)
        except MictlanError as error:
            # Half a list would make what is missing of the rest.
            say(f"what {source.name} holds is not known: {error}")
            holdings.doubt(mark)
        else:
            asked.add(identity.peer_id)
    found = holdings.settle()
    report.peers_not_asked = [peer for peer in holdings.peer_ids() if peer not in asked]
    report.missing_chunks, report.elsewhere_chunks = found.missing, found.elsewhere
    report.missing_paths = found.paths


def _number(holdings: Holdings, identity: Identity) -> PeerNumber | None:
    if not identity.peer_id:
        return None
    number = holdings.number_of(identity.peer_id)
    replaced = None
    if number is not None and not holdings.is_store_of(number, identity.store_id):
        # Its disk was lost since. The router would retire the number, and all that counts by it.
        holdings.retire(number, identity.peer_id)
        number, replaced = None, number
    if number is None:
        number = holdings.add_peer(identity.peer_id, identity.number, identity.url, identity.zone)
    elif identity.url:
        holdings.move_peer(number, identity.url)
    if identity.store_id:
        holdings.note_store(number, identity.store_id, replaced)
    return number
