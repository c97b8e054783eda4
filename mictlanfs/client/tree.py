"""The names of the space: finding, listing and walking them.

Owns no state. Reads go to the router each time. Symlinks on the way are never followed: only a
program on a mount knows where an absolute target leads.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from mictlanfs import wire
from mictlanfs.client.inline import INLINE_WITH_NODE_SIZE_BYTES
from mictlanfs.client.names import Names, check_name, show_path
from mictlanfs.client.router import RouterClient
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Attributes, FileKind, InodeNumber, Node

SYMLINKS_MAX = 40


@dataclass(frozen=True, slots=True)
class Found:
    """How far a path exists.

    Attributes:
        names: as asked.
        nodes: the root, then one for each name that exists, in order.
    """

    names: Names
    nodes: tuple[Node, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every name exists."""
        return len(self.nodes) == len(self.names) + 1

    @property
    def node(self) -> Node:
        """What the path names.

        Raises:
            MictlanError: NOT_FOUND or NOT_DIRECTORY, naming the part that fails.
        """
        if self.is_complete:
            return self.nodes[-1]
        raise self.missing()

    @property
    def missing_names(self) -> Names:
        """The names that do not exist, from the first that does not."""
        return self.names[len(self.nodes) - 1 :]

    def missing(self) -> MictlanError:
        """The error that says why the path names nothing."""
        reached = self.names[: len(self.nodes) - 1]
        kind = self.nodes[-1].attributes.kind
        if kind is FileKind.SYMLINK:
            detail = "it is a symbolic link, and those on the way are not followed"
            return MictlanError(Kind.NOT_DIRECTORY, "use", show_path(reached), detail)
        if kind is not FileKind.DIRECTORY:
            detail = "it is not a directory"
            return MictlanError(Kind.NOT_DIRECTORY, "use", show_path(reached), detail)
        if not reached:
            detail = "there is no such bucket"
            return MictlanError(Kind.NOT_FOUND, "find", show_path(self.names[:1]), detail)
        detail = "there is no such file or directory"
        missing = self.names[: len(reached) + 1]
        return MictlanError(Kind.NOT_FOUND, "find", show_path(missing), detail)


class Tree:
    """Reads of the namespace."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    async def bucket_use(self, ino: InodeNumber) -> wire.BucketUse:
        """What the bucket that an inode is or lies in uses, and its quota."""
        return await self._router.bucket_use(ino)

    async def find(self, names: Names, *, extents_max: int = 0, inline_max: int = 0) -> Found:
        """Walk `names` from the root as far as they exist.

        Raises:
            MictlanError: the router cannot be reached; INVALID: too many names.
        """
        if len(names) > wire.RESOLVE_DEPTH_MAX:
            detail = f"more than {wire.RESOLVE_DEPTH_MAX} names"
            raise MictlanError(Kind.INVALID, "use path", detail=detail)
        nodes = await self._router.resolve(wire.Resolve(names, extents_max, inline_max))
        return Found(names, nodes)

    async def find_content(self, names: Names) -> Found:
        """Like `find_followed`, with the first extents and what is small of the content."""
        return await self.find_followed(
            names,
            extents_max=wire.EXTENTS_PAGE_MAX,
            inline_max=INLINE_WITH_NODE_SIZE_BYTES,
        )

    async def find_followed(
        self, names: Names, *, extents_max: int = 0, inline_max: int = 0
    ) -> Found:
        """Like `find`; a symlink at the very end is followed, as long as it stays in the bucket.

        Raises:
            MictlanError: also INVALID when links lead in a circle or out of the bucket.
        """
        asked = names
        for _ in range(SYMLINKS_MAX):
            found = await self.find(names, extents_max=extents_max, inline_max=inline_max)
            if not found.is_complete or found.node.attributes.kind is not FileKind.SYMLINK:
                return found
            names = _followed(names, found.node.target)
        detail = f"more than {SYMLINKS_MAX} symbolic links"
        raise MictlanError(Kind.INVALID, "follow", show_path(asked), detail)

    async def entries(
        self, ino: InodeNumber, *, extents_max: int = 0, inline_max: int = 0
    ) -> AsyncGenerator[wire.Entry, None]:
        """The entries of a directory in order of names, page by page.

        A name that changes between two pages is seen before or after the change.

        Raises:
            MictlanError: INVALID when the router sends a name that could lead out of a directory.
        """
        after = b""
        while True:
            page = await self._router.list(
                wire.ListDirectory(ino, after, wire.LIST_ENTRIES_MAX, extents_max, inline_max)
            )
            for entry in page.entries:
                check_name(entry.name)
                yield entry
            if page.is_last or not page.entries:
                return
            after = page.entries[-1].name

    async def extents(self, node: Node) -> AsyncGenerator[wire.ExtentPage, None]:
        """All extents of a file, page by page, as of the content that `node` shows.

        Raises:
            MictlanError: STALE when the file changed or went away meanwhile.
        """
        attributes = node.attributes
        offset: int | None = None
        if node.extents or node.has_all_extents:
            if not node.has_all_extents:
                offset = node.extents[-1].end
            version = attributes.content_version
            yield wire.ExtentPage(node.extents, node.chunks, offset, version, node.inline)
        else:
            offset = 0
        while offset is not None:
            page = await self._extent_page(attributes, offset)
            yield page
            if page.end is not None and page.end <= offset:
                raise MictlanError(Kind.PROTOCOL, "read extents", detail="a page without progress")
            offset = page.end

    async def _extent_page(self, attributes: Attributes, offset: int) -> wire.ExtentPage:
        request = wire.GetExtents(attributes.ino, offset, wire.EXTENTS_PAGE_MAX)
        try:
            page = await self._router.extents(request)
        except MictlanError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            raise MictlanError(Kind.STALE, "read extents", detail="the file went away") from error
        if page.content_version != attributes.content_version:
            raise MictlanError(Kind.STALE, "read extents", detail="the file changed meanwhile")
        return page


def _followed(names: Names, target: bytes) -> Names:
    """Where a symlink at `names` leads.

    Raises:
        MictlanError: INVALID when that is outside the bucket.
    """
    outside = MictlanError(
        Kind.INVALID, "follow", show_path(names), "the symbolic link leads out of the bucket"
    )
    if target.startswith(b"/"):
        raise outside
    reached = list(names[:-1])
    for name in target.split(b"/"):
        if name == b"..":
            reached.pop()
            if not reached:
                raise outside
        elif name not in {b"", b"."}:
            check_name(name)
            reached.append(name)
    return tuple(reached)
