"""Pure arithmetic on half-open byte ranges `[start, end)`.

Owns no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def split_at(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut `[start, end)` at every multiple of `step`, in order. `step` must be positive."""
    if step <= 0:
        raise ValueError(f"step must be positive, not {step}")
    while start < end:
        stop = min(end, start - start % step + step)
        yield start, stop
        start = stop


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of `ranges` as a sorted list of disjoint, non-touching ranges."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(r for r in ranges if r[0] < r[1]):
        if merged and start <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
