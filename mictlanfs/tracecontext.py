"""The trace that a request belongs to, passed on in its headers when this process makes traces.

Knows no tracing library: whoever makes traces says here what the headers are at the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Source = Callable[[], Mapping[str, str]]

_source: Source | None = None


def set_source(source: Source | None) -> None:
    """From now on requests have the headers that `source` gives when they begin; None: none."""
    global _source
    _source = source


def with_trace(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """`headers`, and those of the trace if there is one."""
    if _source is None or not (trace := _source()):
        return headers
    return {**(headers or {}), **trace}
