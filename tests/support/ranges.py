"""Arithmetic on half-open byte ranges that only the fakes need."""

from __future__ import annotations


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
