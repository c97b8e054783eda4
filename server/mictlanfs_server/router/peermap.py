"""The peer map that the world sees: never ahead of what is saved.

`membership` changes in memory; a version becomes public only after it was saved, so versions never
go back, whenever the router is killed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mictlanfs.model import PeerMap
    from mictlanfs_server.metadata.base import MetadataStore
    from mictlanfs_server.router.membership import Membership


class PublicPeerMap:
    """The last peer map that was saved.

    Attributes:
        header: its version as the value of a header.
    """

    def __init__(self, store: MetadataStore, membership: Membership, saved: PeerMap) -> None:
        self._store = store
        self._membership = membership
        self._saved = saved
        self._lock = asyncio.Lock()
        self.header = b"%d" % saved.version

    async def publish(self) -> None:
        """Save what membership believes now, if it is news, and make it public.

        Cancellation: it may be saved and not yet public; the next call makes it so.
        """
        if self._membership.version == self._saved.version:
            return
        async with self._lock:
            news = self._membership.peer_map()
            if news.version == self._saved.version:
                return
            await self._store.save_peers(news.version, news.peers, self._membership.book())
            self._saved = news
            self.header = b"%d" % news.version

    @property
    def peer_map(self) -> PeerMap:
        """The public map, with the space used as of the last heartbeats."""
        if self._membership.version == self._saved.version:
            return self._membership.peer_map()
        return self._saved
