"""`mictlanfs ls`: list buckets and directories."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from mictlanfs.cli.options import SpaceChoice, json_option, space_options

if TYPE_CHECKING:
    from mictlanfs.cli.output import JsonList
    from mictlanfs.client.space import Listing, SpaceClient


@click.command()
@click.argument("path", default="", metavar="[BUCKET[/PATH]]")
@click.option("-l", "--long", "is_long", is_flag=True, help="Show mode, owner, size and time.")
@click.option("-R", "--recursive", is_flag=True, help="List directories in directories as well.")
@json_option
@space_options
def ls(space: SpaceChoice, path: str, *, is_long: bool, recursive: bool, as_json: bool) -> None:
    """List buckets and directories.

    Without a path, lists the buckets. Names that a terminal cannot show are quoted on a terminal
    and written as they are into a pipe.
    """
    from mictlanfs.cli.output import json_list
    from mictlanfs.cli.running import run_on_space

    async def work(client: SpaceClient) -> None:
        if not as_json:
            await _Lister(client, None, is_long=is_long, recursive=recursive).list_all(path)
            return
        with json_list() as items:
            await _Lister(client, items, is_long=is_long, recursive=recursive).list_all(path)

    run_on_space(space, "ls", work)


class _Lister:
    """Prints one listing."""

    def __init__(
        self, client: SpaceClient, items: JsonList | None, *, is_long: bool, recursive: bool
    ) -> None:
        self._client = client
        self._items = items
        self._is_long = is_long
        self._recursive = recursive

    async def list_all(self, path: str) -> None:
        """List `path` and, if asked to, what is below it, each directory after the one above."""
        from mictlanfs.cli.output import print_name
        from mictlanfs.client.names import parse_path
        from mictlanfs.model import FileKind

        stack = [b"/".join(parse_path(path))]
        is_first = True
        while stack:
            directory = stack.pop()
            if self._recursive and self._items is None:
                print_name(directory or b"/", before="" if is_first else "\n", after=":")
            is_first = False
            below = []
            async with aclosing(self._client.iterate(directory)) as listings:
                async for listing in listings:
                    self._print(directory, listing)
                    if listing.node.attributes.kind is FileKind.DIRECTORY:
                        below.append(b"/".join(filter(None, (directory, listing.name))))
            if self._recursive:
                stack.extend(reversed(below))

    def _print(self, directory: bytes, listing: Listing) -> None:
        from mictlanfs.cli.output import described, long_line, print_name, quoted
        from mictlanfs.model import FileKind

        node = listing.node
        is_itself = directory.rpartition(b"/")[2] == listing.name and (
            node.attributes.kind is not FileKind.DIRECTORY
        )
        if self._items is not None:
            path = b"/".join(filter(None, (directory, listing.name)))
            self._items.add(described(directory if is_itself else path, node))
        elif self._is_long:
            target = f" -> {quoted(node.target)}" if node.target else ""
            print_name(listing.name, long_line(node.attributes), target)
        else:
            is_directory = node.attributes.kind is FileKind.DIRECTORY
            print_name(listing.name, after="/" if is_directory else "")
