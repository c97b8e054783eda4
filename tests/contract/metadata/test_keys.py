"""Keys of leases: those of inodes and names, and that a batch stays within its own."""

import random

import pytest

from mictlanfs import wire
from mictlanfs.errors import MictlanError
from mictlanfs.model import ROOT_INODE, Extent, FileKind, InodeNumber
from mictlanfs_server.metadata.base import MetadataStore
from mictlanfs_server.router import leasekeys
from tests.contract.metadata.forms import Client, Form, new_chunk

BATCHES = 150
MANY = 1200


async def key_of(store: MetadataStore, ino: InodeNumber) -> InodeNumber:
    found = await store.keys((ino,), ())
    assert found.inodes[ino].key == (await store.node(wire.GetNode(ino))).key
    return found.inodes[ino].key


def test_key_is_the_directory_of_the_only_name_else_the_inode_itself(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        folder = await client.make(bucket, b"folder", FileKind.DIRECTORY)
        file = await client.make(bucket, b"file")
        assert await key_of(store, ROOT_INODE) == ROOT_INODE
        assert await key_of(store, folder) == folder
        assert await key_of(store, file) == bucket
        await client.do(wire.Link(file, folder, b"second", 9))
        assert await key_of(store, file) == file
        found = await store.keys((file,), ((folder, b"second"), (folder, b"none")))
        assert set(found.inodes[file].parents) == {bucket, folder}
        assert found.places == {(folder, b"second"): found.inodes[file]}
        await client.do(wire.Unlink(bucket, b"file", 9))
        assert await key_of(store, file) == folder
        await client.do(wire.Rename(folder, b"second", bucket, b"third", 9))
        assert await key_of(store, file) == bucket
        await client.do(wire.Unlink(bucket, b"third", 9, sustain=True))
        assert await key_of(store, file) == file

    form.run(scenario)


def test_what_does_not_exist_has_no_key(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        numbers = [InodeNumber(number) for number in (0, -1, 77, 2**64)]
        found = await store.keys(numbers, [(number, b"name") for number in numbers])
        assert (found.inodes, found.places) == ({}, {})

    form.run(scenario)


def test_thousands_are_found_at_once(form: Form) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        bucket = await client.bucket()
        taken = (await store.take_inodes(MANY)).first
        ops = [
            wire.MakeNode(bucket, b"%d" % i, InodeNumber(taken + i), FileKind.FILE, 0o644, 0, 0, 5)
            for i in range(MANY)
        ]
        await client.do(*ops)
        found = await store.keys([op.ino for op in ops], [(bucket, op.name) for op in ops])
        assert len(found.inodes) == len(found.places) == MANY
        assert {inode.key for inode in found.places.values()} == {bucket}

    form.run(scenario)


class Tree:
    """A small tree under random batches, and the keys of all that is in it."""

    def __init__(self, client: Client, random_: random.Random) -> None:
        self.client = client
        self.random = random_
        self.directories = [ROOT_INODE]
        self.known: list[InodeNumber] = []
        # What parts would become.
        self.balls: set[InodeNumber] = set()
        self._parts: list[wire.Operation] = []
        # Names of files that have no other, as of the last batch.
        self.names: list[tuple[InodeNumber, bytes, InodeNumber]] = []

    def _place(self) -> tuple[InodeNumber, bytes]:
        return self.random.choice(self.directories), self.random.choice([b"a", b"b", b"c"])

    def _change(self) -> wire.Operation:
        ino = self.random.choice(self.known or [ROOT_INODE])
        chunk = new_chunk()
        extents = (Extent(0, chunk.length, chunk.id, 0),)
        choices: list[wire.Operation] = [
            wire.SetAttributes(ino, 9, mode=self.random.randrange(0o777)),
            wire.SetXattr(ino, b"user.x", b"1", 9),
            wire.RemoveXattr(ino, b"user.x", 9),
            wire.WriteExtents(ino, extents, (chunk,), 10, 9),
            wire.Link(ino, *self._place(), 9),
            wire.SetRecord(ino, 0, (wire.RecordPiece(10, b""),)),
        ]
        return self.random.choice(choices)

    def part(self) -> list[wire.Operation]:
        """The next part of a ball of one or two."""
        if not self._parts and self.names:
            parent = self.random.choice(self.names)[0]
            beside = [(ino, name) for where, name, ino in self.names if where == parent]
            count, ball = min(len(beside), 2), b"%d" % self.client.new_inode()
            for index, (ino, name) in enumerate(self.random.sample(beside, len(beside))[:count]):
                new = self.client.new_inode()
                self.known.append(new)
                self.balls.add(new)
                op = wire.PutPart(ino, parent, name, ball, new, index, count, b"", 9)
                self._parts.append(op)
        return [self._parts.pop()] if self._parts else []

    def operation(self) -> wire.Operation:
        parent, name = self._place()
        which = self.random.randrange(8)
        if which < 2:
            kind = self.random.choice([FileKind.FILE, FileKind.DIRECTORY])
            if parent == ROOT_INODE:
                kind = FileKind.DIRECTORY
            op = self.client.make_op(parent, name, kind)
            self.known.append(op.ino)
            if kind is FileKind.DIRECTORY:
                self.directories.append(op.ino)
            return op
        if which == 2:
            return wire.Unlink(parent, name, 9, sustain=self.random.random() < 0.5)
        if which == 3:
            return wire.RemoveDirectory(parent, name, 9)
        if which < 6:
            return wire.Rename(parent, name, *self._place(), 9, self.random.randrange(3))
        return self._change()

    async def state(self) -> dict[InodeNumber, tuple[InodeNumber, int]]:
        """Key and version of every inode."""
        found = {}
        for ino in [ROOT_INODE, *self.known]:
            try:
                node = await self.client.store.node(wire.GetNode(ino))
            except MictlanError:
                continue
            found[ino] = (node.key, node.attributes.version)
        self.names.clear()
        for directory in sorted(found.keys() & self.directories):
            page = await self.client.store.list_directory(wire.ListDirectory(directory))
            self.names += [
                (directory, entry.name, entry.node.attributes.ino)
                for entry in page.entries
                if entry.node.attributes.kind is FileKind.FILE and entry.node.attributes.nlink == 1
            ]
        return found


@pytest.mark.parametrize("seed", range(4))
def test_batch_changes_nothing_whose_key_before_or_after_it_does_not_name(
    form: Form, seed: int
) -> None:
    async def scenario(store: MetadataStore) -> None:
        client = await Client.open(store)
        tree = Tree(client, random.Random(seed))
        before = await tree.state()
        seen: set[InodeNumber] = set()
        for _ in range(BATCHES):
            ops = [tree.operation() for _ in range(tree.random.randrange(1, 6))]
            ops += tree.part()
            tree.random.shuffle(ops)
            wanted = leasekeys.touched_by(ops)
            found = await store.keys(wanted.inodes, wanted.places | wanted.removed)
            keys = leasekeys.keys_of_batch(wanted, found)
            await client.send(client.batch(*ops))
            after = await tree.state()
            for ino in before.keys() | after.keys():
                if before.get(ino) == after.get(ino):
                    continue
                concerned = {state[ino][0] for state in (before, after) if ino in state}
                if ino not in before:
                    # Nobody can hold a lease on what did not exist.
                    concerned -= {ino}
                assert concerned <= keys, (ino, before.get(ino), after.get(ino), ops)
            before = after
            seen |= after.keys()
        assert len(seen & tree.balls) > 1, "few balls were made"

    form.run(scenario)
