"""The reads of the router protocol: what the store answers, with the leases that cover it.

Owns no state. A read with a session gets its leases from the gate in the step in which it is
answered; one without waits for writers in the same way and gets none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from mictlanfs import wire
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import InodeNumber, Node, SessionId, Struct
from mictlanfs_server.router import leasekeys
from mictlanfs_server.router.gate import LeasedAnswer

if TYPE_CHECKING:
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.gate import LeaseGate
    from mictlanfs_server.router.sessions import SessionTable

Look = Callable[[Any], Awaitable[Struct]]
LookFor = Callable[[SessionId | None, Any], Awaitable[Struct]]
KeysOf = Callable[[Any, Any], Awaitable[Iterable[InodeNumber]]]
Read = Callable[[Any, bytes | None], Awaitable[Struct | LeasedAnswer]]


class Reading:
    """Answers reads, each with the value of its session header."""

    def __init__(self, store: MetadataStore, sessions: SessionTable, gate: LeaseGate) -> None:
        self._store = store
        self._sessions = sessions
        self._gate = gate

    def lookup(self) -> Read:
        """One name: the directory, also when the name is missing; what was found."""
        return self._read(self._store.lookup, self._keys_of_lookup)

    def node(self) -> Read:
        """One inode."""
        return self._read(self._store.node, _known(leasekeys.of_node))

    def extents(self) -> Read:
        """Extents of an inode."""
        return self._read(self._store.extents, self._keys_of_inode)

    def xattrs(self) -> Read:
        """Extended attributes of an inode."""
        return self._read(self._store.xattrs, self._keys_of_inode)

    def records(self) -> Read:
        """Records of files, of the content that nobody is changing."""
        return self._read(self._store.records, self._keys_of_inodes)

    def list_directory(self) -> Read:
        """A page of a directory."""
        return self._read(self._store.list_directory, _known(leasekeys.of_list))

    def list_tree(self) -> Read:
        """Directories and what is below them, but for what is not free.

        Of the wanted first root alone the keys are waited for: while they are not free it is all
        that is looked at.
        """
        store, table = self._store, self._gate.table

        def look(session: SessionId | None, request: wire.ListTree) -> Awaitable[wire.TreePage]:
            def is_free(listing: wire.Listing) -> bool:
                return table.is_unused or table.is_free(session, leasekeys.of_listing(listing))

            return store.list_tree(request, is_free)

        return self._read_for(look, _known(leasekeys.of_tree))

    def resolve(self) -> Read:
        """A path."""
        return self._read(self._store.resolve, _known(leasekeys.of_resolved))

    def path(self) -> Read:
        """Where an inode lies: no lease covers that."""
        return self._read(self._store.path, _no_keys)

    def _read(self, look: Look, keys_of: KeysOf) -> Read:
        return self._read_for(lambda _, request: look(request), keys_of)

    def _read_for(self, look: LookFor, keys_of: KeysOf) -> Read:
        gate = self._gate

        async def read(request: Struct, header: bytes | None) -> Struct | LeasedAnswer:
            if header is None and gate.table.is_unused:
                return await look(None, request)
            try:
                session = self._session(header)
                leased = await gate.read(
                    session, lambda: look(session, request), lambda answer: keys_of(request, answer)
                )
            except MictlanError as error:
                leased = LeasedAnswer(wire.Grants((), 0), error)
            if header is not None:
                return leased
            if isinstance(leased.answer, MictlanError):
                raise leased.answer
            return leased.answer

        return read

    def _session(self, header: bytes | None) -> SessionId | None:
        """The session of a header `SESSION:EPOCH`. Raises FENCED, INVALID."""
        if header is None:
            return None
        name, _, epoch = header.decode("latin-1").rpartition(":")
        if not epoch.isdecimal():
            detail = f"{wire.HEADER_SESSION} is a session and its epoch"
            raise MictlanError(Kind.INVALID, "read", detail=detail)
        session = SessionId(name)
        if not self._sessions.is_open(session, int(epoch)):
            detail = "the session has ended: open a new one"
            raise MictlanError(Kind.FENCED, "session", session, detail)
        return session

    async def _keys_of_lookup(
        self, request: wire.Lookup, answer: Node | MictlanError
    ) -> Iterable[InodeNumber]:
        if not isinstance(answer, MictlanError):
            return leasekeys.of_lookup(request, answer)
        return await self._keys(request.parent)

    async def _keys_of_inode(
        self, request: wire.GetExtents | wire.GetXattrs, answer: Struct | MictlanError
    ) -> Iterable[InodeNumber]:
        return () if isinstance(answer, MictlanError) else await self._keys(request.ino)

    async def _keys_of_inodes(
        self, request: wire.GetRecords, answer: Struct | MictlanError
    ) -> Iterable[InodeNumber]:
        return () if isinstance(answer, MictlanError) else await self._keys(*request.inodes)

    async def _keys(self, *inodes: InodeNumber) -> list[InodeNumber]:
        found = await self._store.keys(inodes, ())
        return list({inode.key: None for inode in found.inodes.values()})


def _known(keys_of: Callable[[Any, Any], list[InodeNumber]]) -> KeysOf:
    async def known(request: Struct, answer: Struct | MictlanError) -> Iterable[InodeNumber]:
        # An error tells of nothing that a lease could cover.
        return () if isinstance(answer, MictlanError) else keys_of(request, answer)

    return known


async def _no_keys(_: Struct, __: Struct | MictlanError) -> Iterable[InodeNumber]:
    return ()
