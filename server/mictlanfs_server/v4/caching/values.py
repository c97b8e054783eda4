"""Where a cache keeps its values, and the plainest place for them: the memory of this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class ValueStore(Protocol):
    """Values with their tokens, by key. Unbounded by itself; all methods return soon."""

    def held(self) -> Iterable[tuple[str, int]]:
        """What is there already: keys and sizes in bytes, oldest first."""
        ...

    def read(self, key: str, token: str) -> bytes | None:
        """The value of `key` if its token is `token`; one with another token is let go of."""
        ...

    def write(self, key: str, token: str, value: memoryview) -> None:
        """Keep the bytes of `value`, which is contiguous, in the place of what `key` had.

        Raises:
            OSError: it could not be kept; what `key` had is gone or as before.
        """
        ...

    def discard(self, key: str) -> bool:
        """Let go of what `key` has; whether it had anything."""
        ...

    def clear(self) -> None:
        """Let go of everything."""
        ...

    def close(self) -> None:
        """Let go of everything that nobody else uses; only `close` may follow."""
        ...


class ProcessValues:
    """Values in the memory of this process, which nobody else sees."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, bytes]] = {}

    def held(self) -> Iterable[tuple[str, int]]:
        """See `ValueStore`."""
        return ()

    def read(self, key: str, token: str) -> bytes | None:
        """See `ValueStore`."""
        found = self._values.get(key)
        if found is None:
            return None
        if found[0] != token:
            del self._values[key]
            return None
        return found[1]

    def write(self, key: str, token: str, value: memoryview) -> None:
        """See `ValueStore`."""
        whole = value.obj
        if isinstance(whole, bytes) and len(whole) == value.nbytes:
            # Bytes never change: they need no copy.
            self._values[key] = (token, whole)
        else:
            self._values[key] = (token, value.tobytes())

    def discard(self, key: str) -> bool:
        """See `ValueStore`."""
        return self._values.pop(key, None) is not None

    def clear(self) -> None:
        """See `ValueStore`."""
        self._values.clear()

    def close(self) -> None:
        """See `ValueStore`."""
        self._values.clear()
