from collections.abc import AsyncGenerator

import pytest

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.client.names import parse_path
from mictlanfs.client.retry import NO_RETRY
from mictlanfs.client.router import RouterClient
from mictlanfs.client.tree import SYMLINKS_MAX, Found, Tree
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import Chunk, Extent, FileKind, Node, PeerNumber
from mictlanfs.uri import parse_routers
from tests.support.fakespace import URI, FakeSpace


@pytest.fixture
def tree(space: FakeSpace) -> Tree:
    """A client of the names `b/d/f`, `b/link` and 7 extents in `b/d/f`."""
    make = space.router.make
    make(FileKind.DIRECTORY, b"b", b"d")
    file = make(FileKind.FILE, b"b", b"d", b"f")
    make(FileKind.SYMLINK, b"b", b"link", target=b"d/f")
    for n in range(7):
        chunk = Chunk(new_chunk_id(), 10, digest_of([]), (PeerNumber(0),))
        space.router.chunks[chunk.id] = chunk
        file.extents.append(Extent(20 * n, 10, chunk.id, 0))
    return Tree(RouterClient(parse_routers(URI), space.net, NO_RETRY))


async def find(tree: Tree, path: str) -> Found:
    return await tree.find(parse_path(path))


@pytest.mark.parametrize(
    ("path", "missing", "kind", "message"),
    [
        ("c/x", (b"c", b"x"), Kind.NOT_FOUND, "find c: there is no such bucket"),
        ("b/x/y", (b"x", b"y"), Kind.NOT_FOUND, "find b/x: there is no such file or directory"),
        ("b/d/f/x", (b"x",), Kind.NOT_DIRECTORY, "use b/d/f: it is not a directory"),
        ("b/link/x", (b"x",), Kind.NOT_DIRECTORY, "use b/link: it is a symbolic link"),
    ],
)
async def test_a_path_that_does_not_exist_says_where_it_ends(
    tree: Tree, path: str, missing: tuple[bytes, ...], kind: Kind, message: str
) -> None:
    found = await find(tree, path)
    assert not found.is_complete
    assert found.missing_names == missing
    with pytest.raises(MictlanError) as caught:
        assert found.node
    assert caught.value.kind is kind
    assert str(caught.value).startswith(message)


async def test_a_path_that_exists_ends_at_its_node(tree: Tree) -> None:
    found = await find(tree, "b/d/f")
    assert found.is_complete
    assert found.missing_names == ()
    assert found.node.attributes.kind is FileKind.FILE
    assert (await find(tree, "")).node.attributes.ino == 1


async def test_a_path_of_too_many_names_is_refused_without_a_request(
    tree: Tree, space: FakeSpace
) -> None:
    with pytest.raises(MictlanError) as caught:
        await tree.find((b"a",) * (wire.RESOLVE_DEPTH_MAX + 1))
    assert caught.value.kind is Kind.INVALID
    assert not space.net.requests


async def test_symlinks_are_followed_so_often_and_no_more(tree: Tree, space: FakeSpace) -> None:
    for n in range(SYMLINKS_MAX + 1):
        target = b"l%d" % (n - 1) if n else b"d/f"
        space.router.make(FileKind.SYMLINK, b"b", b"l%d" % n, target=target)
    found = await tree.find_followed((b"b", b"l%d" % (SYMLINKS_MAX - 2)))
    assert found.node.attributes.kind is FileKind.FILE
    with pytest.raises(MictlanError) as caught:
        await tree.find_followed((b"b", b"l%d" % SYMLINKS_MAX))
    assert caught.value.kind is Kind.INVALID


async def pages(extents: AsyncGenerator[wire.ExtentPage, None]) -> list[int]:
    return [extent.offset async for page in extents for extent in page.extents]


@pytest.mark.parametrize("known", [0, 1, 3, 6, 7])
@pytest.mark.parametrize("page_size", [1, 2, 7])
async def test_all_extents_are_read_however_many_came_with_the_node(
    tree: Tree, space: FakeSpace, known: int, page_size: int
) -> None:
    space.router.extents_page_max = page_size
    node = (await tree.find(parse_path("b/d/f"), extents_max=known)).node
    assert await pages(tree.extents(node)) == [20 * n for n in range(7)]
    asked = len(space.net.paths(wire.Path.EXTENTS))
    assert asked == -(-(7 - known) // page_size)


async def test_a_file_that_went_away_is_stale(tree: Tree, space: FakeSpace) -> None:
    node = (await find(tree, "b/d/f")).node
    del space.router.inodes[node.attributes.ino]
    with pytest.raises(MictlanError) as caught:
        await pages(tree.extents(node))
    assert caught.value.kind is Kind.STALE


async def test_a_router_that_makes_no_progress_does_not_hold_us_for_ever(
    tree: Tree, space: FakeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    node: Node = (await find(tree, "b/d/f")).node

    async def stuck(request: wire.GetExtents) -> wire.ExtentPage:
        return wire.ExtentPage((), (), request.offset, node.attributes.content_version)

    monkeypatch.setattr(tree._router, "extents", stuck)
    with pytest.raises(MictlanError) as caught:
        await pages(tree.extents(node))
    assert caught.value.kind is Kind.PROTOCOL
