from __future__ import annotations

import pytest

from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import BucketPolicy
from mictlanfs_server.v4.failures import DoorError
from mictlanfs_server.v4.models import PutMetadata
from mictlanfs_server.v4.tasks import Task, TaskTable
from tests.unit.server.router.fakes import FakeClock

ANNOUNCED = PutMetadata("b", "k", "k", "", "me", 5)


def add(table: TaskTable, task_id: str = "") -> Task:
    return table.add("b", "k", ANNOUNCED, BucketPolicy(), new_chunk_id(), ("p",), task_id)


def test_task_is_taken_once() -> None:
    table = TaskTable(FakeClock())
    task = add(table)
    assert table.all() == [task]
    assert table.take(task.id) == task
    with pytest.raises(DoorError) as caught:
        table.take(task.id)
    assert caught.value.status == 404
    assert table.all() == []


def test_tasks_end_by_themselves() -> None:
    clock = FakeClock()
    table = TaskTable(clock, ttl_s=10)
    first = add(table)
    clock.advance(6)
    second = add(table)
    clock.advance(5)
    assert table.all() == [second]
    with pytest.raises(DoorError):
        table.take(first.id)
    assert table.take(second.id) == second


def test_there_are_no_more_than_so_many() -> None:
    clock = FakeClock()
    table = TaskTable(clock, tasks_max=2, ttl_s=10)
    add(table)
    add(table)
    with pytest.raises(DoorError) as caught:
        add(table)
    assert caught.value.status == 503
    clock.advance(11)
    add(table)


def test_id_that_a_client_chose_is_taken_and_replaces() -> None:
    table = TaskTable(FakeClock())
    add(table, "group")
    last = add(table, "group")
    assert table.all() == [last]
    assert last.id == "group"
    for bad in ("a/b", "x" * 257):
        with pytest.raises(DoorError) as caught:
            add(table, bad)
        assert caught.value.status == 400


def test_ids_differ_and_can_stand_in_a_path() -> None:
    table = TaskTable(FakeClock())
    ids = [add(table).id for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(id_.replace("-", "").replace("_", "").isalnum() for id_ in ids)
    table.clear()
    assert table.all() == []
