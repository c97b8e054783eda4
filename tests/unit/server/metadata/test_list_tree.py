import pytest

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import FileKind, InodeNumber
from mictlanfs_server.metadata import sqlite_reads
from tests.unit.server.metadata.space import Space, new_chunk

MISSING = InodeNumber(9_999)


class Tree:
    """Directories by name: `a` with `a/x` and `a/y` in it, `b`, `c`; two files in each."""

    def __init__(self, space: Space, top: InodeNumber) -> None:
        self.space = space
        self.top = top
        self.inos = {"": top}
        for path in ("a", "a/x", "a/y", "b", "c"):
            parent, _, name = path.rpartition("/")
            ino = self.inos[path] = space.mkdir(self.inos[parent], name.encode())
            for file in (b"1", b"2"):
                space.make(ino, file)

    def list(
        self, *roots: str, left_out: str = "", entries_max: int = 100, is_ahead: bool = False
    ) -> list[str]:
        """The directories that are told, by name."""
        left = self.inos[left_out] if left_out else None
        request = wire.ListTree(
            tuple(self.inos[root] for root in roots), entries_max, is_ahead=is_ahead
        )
        answer = self.space.reads.list_tree(request, lambda listing: listing.ino != left)
        names = {ino: name for name, ino in self.inos.items()}
        for listing in answer.listings:
            alone = self.space.reads.list_directory(wire.ListDirectory(listing.ino))
            assert listing.page == alone
        return [names[listing.ino] for listing in answer.listings]


@pytest.fixture
def tree(space: Space, bucket: InodeNumber) -> Tree:
    return Tree(space, bucket)


def everything(_: wire.Listing) -> bool:
    return True


def test_directories_come_in_the_order_of_a_walk(tree: Tree) -> None:
    assert tree.list("") == ["", "a", "a/x", "a/y", "b", "c"]


def test_roots_come_in_the_order_given_each_before_what_is_below_it(tree: Tree) -> None:
    assert tree.list("c", "a", "b") == ["c", "a", "a/x", "a/y", "b"]


def test_the_answer_ends_before_the_first_that_does_not_fit(tree: Tree) -> None:
    # Each counts its entries and one more: 5 for `a`, 3 for the others.
    assert tree.list("a", "b", entries_max=5 + 3 + 3 + 2) == ["a", "a/x", "a/y", "b"]
    assert tree.list("a", "b", entries_max=5 + 3 + 3 + 1) == ["a", "a/x", "a/y"]
    assert tree.list("a", "b", entries_max=1) == ["a"], "the first one is what is wanted"
    assert tree.list("a", "b", entries_max=-1) == ["a"]


def test_a_directory_that_never_fits_is_passed_over(tree: Tree, space: Space) -> None:
    for index in range(20):
        space.make(tree.inos["b"], b"more %d" % index)
    assert tree.list("", entries_max=21) == ["", "a", "a/x", "a/y", "c"]


def test_a_large_first_root_is_answered_as_alone(tree: Tree, space: Space) -> None:
    for index in range(wire.LIST_ENTRIES_MAX):
        space.make(tree.inos["b"], b"more %d" % index)
    request = wire.ListTree((tree.inos["b"], tree.inos["c"]))
    (listing,) = space.reads.list_tree(request, everything).listings
    assert len(listing.page.entries) == wire.LIST_ENTRIES_MAX
    assert not listing.page.is_last


def test_what_is_not_free_is_left_out_with_what_is_below_it(tree: Tree) -> None:
    assert tree.list("", left_out="a") == ["", "b", "c"]
    assert tree.list("b", "c", left_out="c") == ["b"]


def test_a_wanted_root_that_is_not_free_comes_alone(tree: Tree) -> None:
    assert tree.list("a", "b", left_out="a") == ["a"]
    assert tree.list("a", "b", left_out="a", is_ahead=True) == ["b"]


def test_roots_that_are_gone_or_no_directories_are_left_out(
    tree: Tree, space: Space, bucket: InodeNumber
) -> None:
    file = space.make(bucket, b"file")
    request = wire.ListTree((tree.inos["b"], MISSING, file, tree.inos["c"]))
    found = space.reads.list_tree(request, everything).listings
    assert [listing.ino for listing in found] == [tree.inos["b"], tree.inos["c"]]
    ahead = wire.ListTree((MISSING, tree.inos["c"]), is_ahead=True)
    assert len(space.reads.list_tree(ahead, everything).listings) == 1


@pytest.mark.parametrize("is_file", [False, True])
def test_a_wanted_root_must_be_a_directory(
    space: Space, bucket: InodeNumber, is_file: bool
) -> None:
    ino = space.make(bucket, b"file") if is_file else MISSING
    with pytest.raises(MictlanError) as raised:
        space.reads.list_tree(wire.ListTree((ino, bucket)), everything)
    assert raised.value.kind is (Kind.NOT_DIRECTORY if is_file else Kind.NOT_FOUND)


def test_no_more_roots_are_looked_at_than_are_allowed(tree: Tree, space: Space) -> None:
    roots = (tree.inos["b"], *[MISSING] * (wire.TREE_ROOTS_MAX - 1), tree.inos["c"])
    (listing,) = space.reads.list_tree(wire.ListTree(roots), everything).listings
    assert listing.ino == tree.inos["b"]


def test_the_answer_ends_when_it_carries_too_many_bytes(tree: Tree, space: Space) -> None:
    body = bytes(wire.INLINE_CHUNK_SIZE_BYTES_MAX)
    for index in range(wire.INLINE_ANSWER_SIZE_BYTES_MAX // len(body)):
        space.write_inline(space.make(tree.inos["b"], b"%04d" % index), 0, body)
    request = wire.ListTree((tree.inos["b"], tree.inos["c"]), 2000, 4, len(body))
    (listing,) = space.reads.list_tree(request, everything).listings
    assert all(entry.node.inline for entry in listing.page.entries if entry.node.chunks)


def test_the_answer_ends_when_it_carries_too_many_extents(
    tree: Tree, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.write(space.make(tree.inos["b"], b"written"), 0, new_chunk(10))
    request = wire.ListTree((tree.inos["b"], tree.inos["c"]), 2000, 4)
    assert len(space.reads.list_tree(request, everything).listings) == 2
    monkeypatch.setattr(sqlite_reads, "PAGE_EXTENTS_MAX", 1)
    assert len(space.reads.list_tree(request, everything).listings) == 1


def test_a_file_with_two_names_is_in_both_directories(tree: Tree, space: Space) -> None:
    file = space.make(tree.inos["b"], b"linked")
    space.link(file, tree.inos["c"], b"linked")
    found = space.reads.list_tree(wire.ListTree((tree.inos["b"], tree.inos["c"])), everything)
    nodes = [listing.page.entries[-1].node for listing in found.listings]
    assert [node.attributes.ino for node in nodes] == [file, file]
    assert [node.key for node in nodes] == [file, file]
    assert {node.attributes.kind for node in nodes} == {FileKind.FILE}
