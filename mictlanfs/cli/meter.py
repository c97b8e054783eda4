"""Progress of a long operation: a bar on stderr when that is a terminal, else nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


@contextmanager
def byte_meter(label: str, size_total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows bytes while the block runs; the value is called with each number of bytes more.

    `size_total` None: not known.
    """
    if not is_shown():
        yield lambda _: None
        return
    from rich import progress as rich

    columns: list[ProgressColumn] = [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    ]
    with _bar(columns) as bar:
        task = bar.add_task(label, total=size_total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def count_meter(label: str) -> Iterator[Callable[[int], None]]:
    """Shows how many there have been while the block runs."""
    if not is_shown():
        yield lambda _: None
        return
    from rich import progress as rich

    columns: list[ProgressColumn] = [
        rich.TextColumn("{task.description}"),
        rich.TextColumn("{task.completed:.0f}"),
        rich.TimeElapsedColumn(),
    ]
    with _bar(columns) as bar:
        task = bar.add_task(label, total=None)
        yield lambda count: bar.advance(task, count)


@contextmanager
def part_meter(label: str) -> Iterator[Callable[[float], None]]:
    """Shows which part is done while the block runs; the value is called with it, from 0 to 1."""
    if not is_shown():
        yield lambda _: None
        return
    from rich import progress as rich

    columns: list[ProgressColumn] = [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
    ]
    with _bar(columns) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda part: bar.update(task, completed=part)


@contextmanager
def text_meter() -> Iterator[Callable[[str], None]]:
    """Shows what is being done while the block runs; the value is called with a few words."""
    if not is_shown():
        yield lambda _: None
        return
    from rich import progress as rich

    columns: list[ProgressColumn] = [
        rich.TextColumn("{task.description}", markup=False),
        rich.TimeElapsedColumn(),
    ]
    with _bar(columns) as bar:
        task = bar.add_task("", total=None)
        yield lambda text: bar.update(task, description=text)


def is_shown() -> bool:
    """Whether somebody watches."""
    return sys.stderr.isatty()


def _bar(columns: list[ProgressColumn]) -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True)
