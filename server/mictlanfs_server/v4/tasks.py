"""Chunks that were announced and whose bytes have not come yet: the first step of a two-step PUT.

Owns the table of tasks. A task is used once, ends by itself, and there is a bounded number of them;
none survives a restart: a client that gets no answer begins again with the first step.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mictlanfs.model import BucketPolicy, ChunkId
from mictlanfs_server.v4.failures import DoorError, missing
from mictlanfs_server.v4.models import PutMetadata

if TYPE_CHECKING:
    from mictlanfs.clock import Clock

TASKS_MAX: Final = 16_384
TASK_TTL_S: Final = 600.0
TASK_ID_LENGTH_MAX: Final = 256
_ID_SIZE_BYTES: Final = 15


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk that is to come.

    Attributes:
        bucket, key: as they will be called.
        policy: of the bucket, as it was when the chunk was announced.
        first_chunk: id of the first chunk of the space that the bytes become, so that it is known
            where they will be.
        peers: ids of these peers, best first.
        ends_s: by the monotonic clock.
    """

    id: str
    bucket: str
    key: str
    announced: PutMetadata
    policy: BucketPolicy
    first_chunk: ChunkId
    peers: tuple[str, ...]
    ends_s: float


class TaskTable:
    """The tasks, in the order in which they end."""

    def __init__(
        self, clock: Clock, *, tasks_max: int = TASKS_MAX, ttl_s: float = TASK_TTL_S
    ) -> None:
        self._clock = clock
        self._tasks_max = tasks_max
        self._ttl_s = ttl_s
        self._tasks: OrderedDict[str, Task] = OrderedDict()

    def add(
        self,
        bucket: str,
        key: str,
        announced: PutMetadata,
        policy: BucketPolicy,
        first_chunk: ChunkId,
        peers: tuple[str, ...],
        task_id: str = "",
    ) -> Task:
        """A new task, called `task_id` if that is given: it replaces one of the same id.

        Raises:
            DoorError: 503, too many chunks are announced and have not come; 400, a bad id.
        """
        if len(task_id) > TASK_ID_LENGTH_MAX or "/" in task_id:
            raise DoorError(400, f"a task id has at most {TASK_ID_LENGTH_MAX} characters and no /")
        self._expire()
        if len(self._tasks) >= self._tasks_max:
            raise DoorError(503, "too many chunks are announced: send their bytes first")
        task_id = task_id or urlsafe_b64encode(os.urandom(_ID_SIZE_BYTES)).decode()
        ends_s = self._clock.monotonic_s() + self._ttl_s
        task = Task(task_id, bucket, key, announced, policy, first_chunk, peers, ends_s)
        self._tasks.pop(task_id, None)
        self._tasks[task_id] = task
        return task

    def take(self, task_id: str) -> Task:
        """The task, which is nobody else's from now on. Raises 404 for one that is not there."""
        self._expire()
        task = self._tasks.pop(task_id, None)
        if task is None:
            raise missing(f"there is no task {task_id}: it was used, has ended, or never was")
        return task

    def all(self) -> list[Task]:
        """All tasks, those that end first first."""
        self._expire()
        return list(self._tasks.values())

    def clear(self) -> None:
        """Forget all."""
        self._tasks.clear()

    def _expire(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._tasks:
            oldest = next(iter(self._tasks.values()))
            if oldest.ends_s > now_s:
                return
            del self._tasks[oldest.id]
