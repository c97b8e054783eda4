"""Pure arithmetic on half-open byte ranges `[start, end)`.

Owns no state. Used by the extent maps of the mount, the extent rows of the metadata store and the
dirty ranges of write-back, so that "trim and split what is covered" is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def overlap(a_start: int, a_end: int, b_start: int, b_end: int) -> tuple[int, int] | None:
    """The part common to `[a_start, a_end)` and `[b_start, b_end)`, or None when there is none."""
    start, end = max(a_start, b_start), min(a_end, b_end)
    return (start, end) if start < end else None


def subtract(start: int, end: int, cut_start: int, cut_end: int) -> list[tuple[int, int]]:
    """What is left of `[start, end)` once `[cut_start, cut_end)` is taken away: 0 to 2 ranges."""
    if cut_end <= start or end <= cut_start:
        return [(start, end)]
    kept = []
    if start < cut_start:
        kept.append((start, cut_start))
    if cut_end < end:
        kept.append((cut_end, end))
    return kept


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
