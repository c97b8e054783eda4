"""`mictlanfs stat`: show what is known of a file."""

from __future__ import annotations

import stat as modes
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.model import Node


@dataclass(frozen=True, slots=True)
class _Kept:
    """How the content of a file is kept.

    Attributes:
        copies_min: copies of the chunk on peers that has the fewest; 0 without such chunks. Of a
            coded one, as many copies as would survive the same losses.
        inline_count: chunks that are in the metadata and on no peer.
        coded_count: chunks that are on peers as fragments.
    """

    extent_count: int
    chunk_count: int
    copies_min: int
    inline_count: int
    coded_count: int


@click.command()
@click.argument("path", metavar="BUCKET[/PATH]")
@json_option
@space_options
def stat(space: SpaceChoice, path: str, *, as_json: bool) -> None:
    """Show what is known of a file, directory or bucket."""
    from mictlanfs.cli.output import described, print_json
    from mictlanfs.cli.running import run_on_space
    from mictlanfs.client.names import parse_path

    async def work(client: SpaceClient) -> tuple[Node, _Kept]:
        node = await client.stat(path)
        return node, await _kept(client, node)

    node, kept = run_on_space(space, "stat", work)
    raw_path = b"/".join(parse_path(path))
    if as_json:
        description = described(raw_path, node)
        description["allocated"] = node.attributes.allocated
        description["version"] = node.attributes.version
        description["extents"] = kept.extent_count
        description["chunks"] = kept.chunk_count
        description["copies"] = kept.copies_min
        description["inline"] = kept.inline_count
        description["coded"] = kept.coded_count
        print_json(description)
    else:
        _print(raw_path, node, kept)


async def _kept(client: SpaceClient, node: Node) -> _Kept:
    from mictlanfs.model import FileKind

    extent_count = 0
    copies: dict[bytes, int] = {}
    coded: set[bytes] = set()
    if node.attributes.kind is FileKind.FILE:
        async with aclosing(client.extents(node)) as pages:
            async for page in pages:
                extent_count += len(page.extents)
                for chunk in page.chunks:
                    copies[chunk.id] = len(chunk.peers)
                    if chunk.coding is not None:
                        copies[chunk.id] -= chunk.coding.data - 1
                        coded.add(chunk.id)
    on_peers = [count for count in copies.values() if count]
    inline_count = len(copies) - len(on_peers)
    return _Kept(extent_count, len(copies), min(on_peers, default=0), inline_count, len(coded))


def _described(kept: _Kept) -> str:
    parts = [str(kept.chunk_count)]
    if kept.inline_count:
        parts.append(f"{kept.inline_count} in the metadata")
    if kept.coded_count:
        parts.append(f"{kept.coded_count} as fragments")
        parts.append(f"each survives the loss of any {kept.copies_min - 1}")
    elif kept.inline_count < kept.chunk_count or not kept.chunk_count:
        parts.append(f"at least {kept.copies_min} copies of each on peers")
    return ", ".join(parts)


def _print(path: bytes, node: Node, kept: _Kept) -> None:
    from mictlanfs.cli import output
    from mictlanfs.config import format_size
    from mictlanfs.model import FileKind

    attributes = node.attributes
    links = output.counted(attributes.nlink, "link")
    lines = [
        ("path", output.quoted(path or b"/")),
        ("kind", output.kind_word(attributes)),
        ("mode", f"{attributes.mode:04o} {modes.filemode(attributes.st_mode)}"),
        ("owner", f"{output.user_name(attributes.uid)}:{output.group_name(attributes.gid)}"),
        ("inode", f"{attributes.ino}, {links}, version {attributes.version}"),
        ("accessed", output.local_time(attributes.atime_ns)),
        ("modified", output.local_time(attributes.mtime_ns)),
        ("changed", output.local_time(attributes.ctime_ns)),
    ]
    if node.target:
        lines.append(("target", output.quoted(node.target)))
    if attributes.kind is FileKind.DIRECTORY:
        lines.append(("entries", str(attributes.size)))
    elif attributes.kind is FileKind.FILE:
        size = f"{attributes.size} bytes ({format_size(attributes.size)})"
        lines.append(("size", f"{size}, {attributes.allocated} stored"))
        lines.append(("chunks", _described(kept)))
    if node.policy is not None:
        chunk_size = format_size(node.policy.chunk_size)
        kept_as = f"{node.policy.replicas} copies"
        if node.policy.data:
            kept_as = f"{node.policy.data}+{node.policy.parity} code, small chunks {kept_as}"
        lines.append(("policy", f"{kept_as}, chunks of {chunk_size}"))
    for name, value in lines:
        click.echo(f"{name:9} {value}")
