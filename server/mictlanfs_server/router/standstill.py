"""Keeps others from changing, or from using, what the router itself works on for a while.

Two forms of one idea, a ticket in the line of `leases` that belongs to no session. A *standstill*
lets everybody read and hold leases for reading; whoever held one for writing has stored what it
changed and given it down before the block begins, and whoever wants to change something waits until
it ends. With keys *for itself* the router is alone: every lease on them has been given up.

Neither waits for anything but leases inside of its block, and a block ends by itself, so the order
of tickets still ends every wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from mictlanfs.errors import Kind, MictlanError

if TYPE_CHECKING:
    from mictlanfs.model import InodeNumber
    from mictlanfs_server.router.gate import LeaseGate
    from mictlanfs_server.router.leases import Ticket

T = TypeVar("T")

# How often a tree is looked at because it had grown meanwhile. Once its top stands still, each look
# finds what is a level deeper, or made under a lease that was not known.
ROUNDS_MAX: Final = 64


@asynccontextmanager
async def standing_still(
    gate: LeaseGate,
    look: Callable[[], Awaitable[T]],
    keys_of: Callable[[T], Collection[InodeNumber]],
) -> AsyncIterator[T]:
    """Nothing under the keys of what `look` finds changes inside the block.

    What was changed before, by any session, has been committed. Raises what `look` raises,
    UNAVAILABLE when the router stops.
    """
    ticket: Ticket | None = None
    event = asyncio.Event()
    try:
        for _ in range(ROUNDS_MAX):
            found = await look()
            keys = frozenset(keys_of(found))
            if ticket is None:
                ticket = gate.table.wait(None, keys, event.set, is_write=False, is_standstill=True)
            elif keys <= ticket.keys:
                # It was clear while this was looked at.
                break
            else:
                gate.table.change_keys(ticket, keys | ticket.keys)
            await gate.until_clear(ticket, event)
        else:
            detail = "others change the directory all the time"
            raise MictlanError(Kind.UNAVAILABLE, "stand still", detail=detail)
        yield found
    finally:
        if ticket is not None:
            gate.table.withdraw(ticket)


@asynccontextmanager
async def having_alone(gate: LeaseGate, keys: Collection[InodeNumber]) -> AsyncIterator[None]:
    """Nobody holds a lease on any of these keys, or gets one, inside the block.

    Raises UNAVAILABLE when the router stops.
    """
    event = asyncio.Event()
    ticket = gate.table.wait(None, keys, event.set, is_write=True)
    try:
        await gate.until_clear(ticket, event)
        yield
    finally:
        gate.table.withdraw(ticket)
