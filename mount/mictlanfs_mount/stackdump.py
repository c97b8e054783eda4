"""What every task is doing right now, for the log: the answer to "why does it hang?"."""

from __future__ import annotations

import traceback

import trio


def all_stacks() -> str:
    """The tasks of the running program, indented by nursery, each with its stack."""
    root = trio.lowlevel.current_root_task()
    return "\n".join(_lines_of(root, 0)) if root is not None else ""


def _lines_of(task: trio.lowlevel.Task, depth: int) -> list[str]:
    indent = "  " * depth
    lines = [f"{indent}task {task.name}"]
    for frame, line_number in task.iter_await_frames():
        summary = traceback.extract_stack(frame, limit=1)[0]
        lines.append(f"{indent}  {summary.filename}:{line_number} {summary.name}")
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            lines += _lines_of(child, depth + 1)
    return lines
