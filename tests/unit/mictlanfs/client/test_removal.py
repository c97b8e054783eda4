import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind
from tests.support.fakespace import FakeSpace


async def test_remove_takes_files_and_empty_directories(space: FakeSpace) -> None:
    space.router.make(FileKind.DIRECTORY, b"b", b"d")
    space.router.make(FileKind.FILE, b"b", b"d", b"f")
    async with space.client() as client:
        with pytest.raises(MictlanError) as caught:
            await client.remove("b/d")
        assert caught.value.kind is Kind.NOT_EMPTY
        await client.remove("b/d/f")
        await client.remove("b/d")
        with pytest.raises(MictlanError) as caught:
            await client.remove("b/d")
        assert caught.value.kind is Kind.NOT_FOUND
        with pytest.raises(MictlanError) as caught:
            await client.remove("b")
        assert caught.value.kind is Kind.INVALID


async def test_remove_of_a_large_tree_takes_few_batches(space: FakeSpace) -> None:
    space.router.make(FileKind.DIRECTORY, b"b", b"t")
    parent = [b"b", b"t"]
    for depth in range(30):
        parent.append(b"d%d" % depth)
        space.router.make(FileKind.DIRECTORY, *parent)
    for i in range(300):
        space.router.make(FileKind.FILE, b"b", b"t", b"f%d" % i)
    removed: list[int] = []
    async with space.client() as client:
        await client.remove("b/t", recursive=True, progress=removed.append)
    assert space.router.tree(b"b") == []
    assert sum(removed) == 331
    assert len(space.router.commits) < 50


async def test_what_somebody_else_removed_meanwhile_is_no_error(space: FakeSpace) -> None:
    space.router.make(FileKind.DIRECTORY, b"b", b"t")
    for i in range(5):
        space.router.make(FileKind.FILE, b"b", b"t", b"f%d" % i)

    def remove_first(op: wire.Operation) -> None:
        space.router.find(b"b", b"t").entries.pop(b"f3", None)

    space.router.before_apply = remove_first
    async with space.client() as client:
        await client.remove("b/t", recursive=True)
    assert space.router.tree(b"b") == []
