"""The stacks of all tasks, as text."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from mictlanfs_mount.stackdump import all_stacks


async def waits_for_what_never_comes() -> None:
    await trio.sleep_forever()


async def has_children() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits_for_what_never_comes, name="a lonely child")


async def test_every_task_is_listed_with_where_it_waits() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(has_children, name="a parent")
        await wait_all_tasks_blocked()
        lines = all_stacks().splitlines()
        nursery.cancel_scope.cancel()
    parent = next(i for i, line in enumerate(lines) if line.strip() == "task a parent")
    child = next(i for i, line in enumerate(lines) if line.strip() == "task a lonely child")
    assert parent < child
    assert indent_of(lines[child]) > indent_of(lines[parent])
    frames = lines[child + 1 :]
    waiting = next(line for line in frames if "waits_for_what_never_comes" in line)
    number = waits_for_what_never_comes.__code__.co_firstlineno + 1
    assert f"{__file__}:{number} " in waiting


async def test_the_task_that_asks_is_listed_too() -> None:
    assert "all_stacks" not in all_stacks().splitlines()[0]
    assert "test_the_task_that_asks_is_listed_too" in all_stacks()


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())
