import json

import pytest

from mictlanfs.cli.exits import Exit
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run


def test_snapshots_are_taken_listed_and_removed(cli: Run, space: FakeSpace) -> None:
    done = cli("snapshot", "create", "b/d", "monday")
    assert (done.code, done.text) == (0, "b/.snapshots/monday: 3 names, 2.0 KiB\n")
    assert cli("snapshot", "create", "b", "tuesday").code == 0
    lines = cli("snapshot", "ls").text.splitlines()
    assert [line.split()[-2:] for line in lines] == [["b/d", "monday"], ["b", "tuesday"]]
    shown = json.loads(cli("snapshot", "ls", "b", "--json").text)
    assert shown[0] == {
        "bucket": "b",
        "name": "monday",
        "path": "b/d",
        "created_ns": 0,
        "names": 3,
        "bytes": 2048,
    }
    assert cli("snapshot", "rm", "b", "monday").code == 0
    assert cli("snapshot", "rm", "b", "monday").code == Exit.NOT_FOUND
    assert [one.name for one in space.router.snapshots] == [b"tuesday"]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["create", "b"], Exit.USAGE),
        (["create", "b", "a/b"], Exit.FAILED),
        (["create", "b", ""], Exit.FAILED),
        (["create", "b", ".."], Exit.FAILED),
        (["ls", "a/b"], Exit.FAILED),
        (["rm", "b"], Exit.USAGE),
    ],
)
def test_what_can_be_no_snapshot_is_refused(
    cli: Run, space: FakeSpace, args: list[str], code: int
) -> None:
    assert cli("snapshot", *args).code == code
    assert space.router.snapshots == []
