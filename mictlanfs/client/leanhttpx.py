"""httpx without its command line, which takes a fifth of the start of a mount and is never called.

httpx imports its own program along with itself, and with it rich, pygments and markdown, unless
that fails: the program is an extra of it. Every command and every process of a space imports httpx,
so it is made to fail here. Whoever imported httpx before has it whole, and nothing changes.
"""

from __future__ import annotations

import sys

_PROGRAM = "httpx._main"

_is_hidden = _PROGRAM not in sys.modules
if _is_hidden:
    # What the import system takes for a module that cannot be found.
    sys.modules[_PROGRAM] = None  # type: ignore[assignment]
try:
    import httpx
finally:
    if _is_hidden:
        del sys.modules[_PROGRAM]

__all__ = ["httpx"]
