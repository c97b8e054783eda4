"""The form in which the parts of a router say what they answer; free of the web framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mictlanfs.model import Struct


@dataclass(frozen=True, slots=True)
class MessageRoute:
    """A path, the message it takes, who answers it, and what for in a few words."""

    path: str
    request_type: type[Struct]
    handler: Callable[[Any], Awaitable[Struct | bytes]]
    purpose: str
