"""What the bulk transport needs of an event loop, and nothing else: one adapter for each loop.

An adapter is a module that offers what `base.Loop` says. Only the one that is wanted is imported,
so that a server never loads trio, nor a mount asyncio.
"""

from __future__ import annotations

import sniffio

from mictlanfs.client.loops.base import Loop


def current() -> Loop:
    """The adapter of the event loop that runs now.

    Raises:
        sniffio.AsyncLibraryNotFoundError: none does.
    """
    if sniffio.current_async_library() == "trio":
        from mictlanfs.client.loops import ontrio

        return ontrio
    from mictlanfs.client.loops import onasyncio

    return onasyncio
