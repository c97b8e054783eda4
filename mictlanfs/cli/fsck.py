"""`mictlanfs fsck`: check a space while it is in use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.exits import Exit
from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.wireverify import CheckState


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says.

    Attributes:
        check: what the router found.
        bad_count: copies that peers found bad when they read all of them; 0 without --deep.
        is_repairing: whether it was to be repaired.
    """

    check: CheckState
    bad_count: int
    is_repairing: bool

    @property
    def left_count(self) -> int:
        """Copies that are bad or missing and still named."""
        return self.check.missing_count - self.check.repaired_count

    @property
    def exit_code(self) -> Exit:
        """0 when all is well; 8 when data is damaged; 1 when something is left to do."""
        if self.check.broken or self.check.damaged:
            return Exit.CORRUPT
        if (
            self.left_count
            or self.check.peers_skipped
            or (self.bad_count and not self.is_repairing)
        ):
            return Exit.FAILED
        return Exit.OK


@click.command()
@click.option("--deep", is_flag=True, help="Have every chunk read, and all of the metadata.")
@click.option("--repair", is_flag=True, help="Repair what can be repaired.")
@json_option
@space_options
def fsck(space: SpaceChoice, *, deep: bool, repair: bool, as_json: bool) -> None:
    """Check a space while it is in use.

    Compares the metadata with itself, and with what the peers hold; with --deep every chunk is
    read. --repair takes back what the metadata says of copies that are not there, so that they are
    made again. The exit code is 0 when all is well or was repaired, 8 when data is damaged for
    good, and 1 when something else is left to do.
    """
    from mictlanfs.cli.meter import text_meter
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.wireverify import CheckSpace

    request = CheckSpace(begin=True, metadata=True, deep=deep, peers=True, repair=repair)

    async def work(client: SpaceClient) -> Verdict:
        bad_count = 0
        with text_meter() as say:
            if deep:
                bad_count = await _scrub(client, say)
            return Verdict(await client.verifier.check(request, say), bad_count, repair)

    found = run_on_space(space, "fsck", work)
    if as_json:
        import msgspec

        from mictlanfs.cli.output import print_json

        check = msgspec.structs.asdict(found.check)
        del check["is_begun"]
        print_json(
            {
                "is_sound": found.exit_code == Exit.OK,
                "bad_count": found.bad_count,
                **check,
                "damaged": [msgspec.structs.asdict(one) for one in found.check.damaged],
            }
        )
    else:
        for line in lines(found):
            click.echo(line)
    if found.exit_code != Exit.OK:
        raise click.exceptions.Exit(found.exit_code)


async def _scrub(client: SpaceClient, say: object) -> int:
    """Have every peer read all that it holds; how many copies were bad."""
    assert callable(say)
    verifier = client.verifier
    peers = await verifier.peers()
    for peer in peers:
        await verifier.scrub(peer, begin=True)
    bad_count = 0
    for peer in peers:
        say(f"peer {peer.id} reads all of its chunks")
        bad_count += (await verifier.scrubbed(peer)).bad_count
    return bad_count


def lines(verdict: Verdict) -> Iterator[str]:
    """What was found, for people."""
    from mictlanfs.cli.output import counted

    found = verdict.check
    for text in found.broken:
        yield f"broken    {text}"
    for one in found.damaged:
        yield f"damaged   {', '.join(one.paths) or 'a file without a name'} (chunk {one.chunk})"
    checked = counted(len(found.peers_checked), "peer")
    yield f"copies    {found.copies_count} on {checked}, {found.missing_count} missing or bad"
    if verdict.bad_count:
        yield f"scrub     {counted(verdict.bad_count, 'copy', 'copies')} found bad, out of service"
    if found.repaired_count:
        yield f"repaired  {counted(found.repaired_count, 'copy', 'copies')} will be made again"
    if found.orphan_count:
        yield f"orphans   {found.orphan_count}; see 'mictlanfs gc'"
    for peer_id in found.peers_skipped:
        yield f"skipped   peer {peer_id} does not answer"
    words = {Exit.OK: "sound", Exit.CORRUPT: "DAMAGED", Exit.FAILED: "not complete"}
    yield words[verdict.exit_code]
