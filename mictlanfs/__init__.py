"""MictlanFS: a Virtual Storage Space as an ordinary directory.

What is named here is loaded when it is first used, since every command imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mictlanfs.client.retrypolicy import RetryPolicy
    from mictlanfs.errors import Kind, MictlanError
    from mictlanfs.v4.balls import Ball
    from mictlanfs.v4.blocking import Client
    from mictlanfs.v4.client import AsyncClient
    from mictlanfs.v4.peer import AsyncPeer
    from mictlanfs.v4.router import AsyncRouter

__all__ = [
    "AsyncClient",
    "AsyncPeer",
    "AsyncRouter",
    "Ball",
    "Client",
    "Kind",
    "MictlanError",
    "RetryPolicy",
]

_HOMES = {
    "AsyncClient": "mictlanfs.v4.client",
    "AsyncPeer": "mictlanfs.v4.peer",
    "AsyncRouter": "mictlanfs.v4.router",
    "Ball": "mictlanfs.v4.balls",
    "Client": "mictlanfs.v4.blocking",
    "Kind": "mictlanfs.errors",
    "MictlanError": "mictlanfs.errors",
    "RetryPolicy": "mictlanfs.client.retrypolicy",
}

if not TYPE_CHECKING:
    # Type checkers would take any name for one of ours.
    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
