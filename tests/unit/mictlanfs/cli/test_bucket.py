import json

import msgspec
import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.model import MIB, BucketPolicy, FileKind
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ([], BucketPolicy()),
        (["--replicas", "3"], BucketPolicy(replicas=3)),
        (["--chunk-size", "1M"], BucketPolicy(chunk_size=MIB)),
        (
            ["--chunk-size", "64K", "--replicas", "1"],
            BucketPolicy(replicas=1, chunk_size=MIB // 16),
        ),
        (["--quota", "10G"], BucketPolicy(quota=10 * 1024 * MIB)),
        (["--code", "3+2"], BucketPolicy(3, 2, data=3)),
        (
            ["--code", "8+3", "--at-least", "8", "--quota", "1M"],
            BucketPolicy(4, 1, 4 * MIB, MIB, 8),
        ),
        (["--replicas", "3", "--at-least", "2"], BucketPolicy(3, 2)),
        (["--resiliency", "0"], BucketPolicy(1, 1)),
        (["--resiliency", "high"], BucketPolicy(4, 2, data=2)),
        (["--trash-days", "7"], BucketPolicy(trash_days=7)),
    ],
)
def test_a_bucket_is_made_with_its_policy(
    cli: Run, space: FakeSpace, options: list[str], policy: BucketPolicy
) -> None:
    done = cli("bucket", "create", "new", *options)
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert space.router.find(b"new").policy == policy


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["b"], Exit.CONFLICT),
        (["a/b"], Exit.FAILED),
        ([""], Exit.FAILED),
        ([".."], Exit.FAILED),
        (["n" * 256], Exit.FAILED),
        (["x", "--replicas", "0"], Exit.USAGE),
        (["x", "--replicas", "6"], Exit.USAGE),
        (["x", "--chunk-size", "1K"], Exit.USAGE),
        (["x", "--chunk-size", "17M"], Exit.USAGE),
        (["x", "--chunk-size", "much"], Exit.USAGE),
        (["x", "--quota", "much"], Exit.USAGE),
        (["x", "--quota", "10000000T"], Exit.USAGE),
        (["x", "--code", "3"], Exit.USAGE),
        (["x", "--code", "1+1"], Exit.USAGE),
        (["x", "--code", "3+2", "--at-least", "2"], Exit.USAGE),
        (["x", "--code", "3+2", "--replicas", "2"], Exit.USAGE),
        (["x", "--resiliency", "4"], Exit.USAGE),
        (["x", "--reliability", "1"], Exit.USAGE),
        (["x", "--reliability", "0.9999999999"], Exit.USAGE),
        (["x", "--reliability", "0.9", "--failure-rate", "2"], Exit.USAGE),
        (["x", "--reliability", "0.9", "--failure-rate", "none=0.1"], Exit.USAGE),
        (["x", "--years", "2"], Exit.USAGE),
        ([], Exit.USAGE),
    ],
)
def test_what_can_be_no_bucket_is_refused(
    cli: Run, space: FakeSpace, args: list[str], code: int
) -> None:
    done = cli("bucket", "create", *args)
    assert done.code == code
    assert done.err.count("\n") == 1
    assert space.router.tree() == [b"b"]


def test_buckets_are_listed(cli: Run, space: FakeSpace) -> None:
    space.router.make(FileKind.DIRECTORY, b"a\xff")
    assert cli("bucket", "ls").out == b"a\xff\nb\n"
    listed = json.loads(cli("bucket", "ls", "--json").text)
    assert [(item["name"], item["replicas"]) for item in listed] == [("a\udcff", 2), ("b", 2)]


def test_a_bucket_shows_its_policy(cli: Run, space: FakeSpace) -> None:
    text = cli("bucket", "info", "b").text
    assert "copies    2, at least 1 while peers are down" in text
    assert "chunks    of at most 64.0 KiB" in text
    shown = json.loads(cli("bucket", "info", "b", "--json").text)
    assert (shown["name"], shown["chunk_size"]) == ("b", 65536)
    assert cli("bucket", "info", "none").code == Exit.NOT_FOUND


def test_a_bucket_shows_its_code(cli: Run, space: FakeSpace) -> None:
    assert cli("bucket", "set", "b", "--code", "4+2").code == 0
    text = cli("bucket", "info", "b").text
    assert "code      4+2, at least 5 fragments while peers are down" in text
    assert "copies    3, at least 2 while peers are down" in text
    assert json.loads(cli("bucket", "info", "b", "--json").text)["code"] == "4+2"
    assert cli("bucket", "set", "b", "--replicas", "2").code == 0
    assert space.router.find(b"b").policy == BucketPolicy(2, 1, 64 * 1024)
    assert json.loads(cli("bucket", "info", "b", "--json").text)["code"] is None


def test_a_bucket_is_made_for_a_reliability(cli: Run, space: FakeSpace) -> None:
    ids = [peer.id for peer in space.router.peers]
    rates = [f"--failure-rate={peer}=0.1" for peer in ids]
    done = cli("bucket", "create", "new", "--reliability", "0.98", *rates, "--failure-rate", "0.5")
    assert done.code == 0
    assert done.text == (
        "2 copies on 3 peers: kept over 1 year with a probability of 0.99, 2.00 times the space\n"
    )
    assert space.router.find(b"new").policy == BucketPolicy(2, 1)


def test_a_bucket_shows_its_quota_and_what_it_uses(cli: Run, space: FakeSpace) -> None:
    space.router.used = 3 * MIB
    assert "used      3.0 MiB, no quota" in cli("bucket", "info", "b").text
    assert cli("bucket", "set", "b", "--quota", "4M").code == 0
    assert "used      3.0 MiB of 4.0 MiB" in cli("bucket", "info", "b").text
    for command in (("bucket", "info", "b"), ("bucket", "ls")):
        shown = json.loads(cli(*command, "--json").text)
        shown = shown[0] if isinstance(shown, list) else shown
        assert (shown["quota"], shown["used"]) == (4 * MIB, 3 * MIB)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--quota", "1M"], {"quota": MIB}),
        (["--quota", "0"], {"quota": 0}),
        (["--trash-days", "0"], {"trash_days": 0}),
        (["--replicas", "1"], {"replicas": 1, "replicas_min": 1}),
        (["--replicas", "4", "--chunk-size", "1M"], {"replicas": 4, "chunk_size": MIB}),
        (["--at-least", "3"], {"replicas_min": 3}),
        (["--code", "5+1", "--at-least", "6"], {"replicas": 2, "replicas_min": 2, "data": 5}),
    ],
)
def test_only_what_is_given_of_a_policy_is_changed(
    cli: Run, space: FakeSpace, options: list[str], changes: dict[str, int]
) -> None:
    before = BucketPolicy(
        replicas=3, replicas_min=2, chunk_size=2 * MIB, quota=5 * MIB, trash_days=3
    )
    space.router.find(b"b").policy = before
    assert cli("bucket", "set", "b", *options).code == 0
    assert space.router.find(b"b").policy == msgspec.structs.replace(before, **changes)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["b"], Exit.USAGE),
        (["b", "--replicas", "9"], Exit.USAGE),
        (["b", "--chunk-size", "1K"], Exit.USAGE),
        (["b", "--trash-days", "-1"], Exit.USAGE),
        (["none", "--quota", "1M"], Exit.NOT_FOUND),
    ],
)
def test_what_cannot_be_set_changes_nothing(
    cli: Run, space: FakeSpace, args: list[str], code: int
) -> None:
    before = space.router.find(b"b").policy
    assert cli("bucket", "set", *args).code == code
    assert space.router.find(b"b").policy == before


def test_only_an_empty_bucket_is_removed_without_an_option(cli: Run, space: FakeSpace) -> None:
    space.router.make(FileKind.FILE, b"b", b"f")
    done = cli("bucket", "rm", "b")
    assert done.code == Exit.CONFLICT
    assert done.err == "mictlanfs: remove b: not empty\n"
    assert cli("bucket", "rm", "-r", "b").code == 0
    assert space.router.tree() == []


@pytest.mark.parametrize("name", ["none", "b/f", ""])
def test_what_is_no_bucket_is_not_removed(cli: Run, space: FakeSpace, name: str) -> None:
    space.router.make(FileKind.FILE, b"b", b"f")
    assert cli("bucket", "rm", "-r", name).code in {Exit.NOT_FOUND, Exit.FAILED}
    assert space.router.tree() == [b"b", b"b/f"]


def test_a_bucket_with_snapshots_keeps_all_that_is_in_it(cli: Run, space: FakeSpace) -> None:
    space.router.make(FileKind.FILE, b"b", b"f")
    assert cli("snapshot", "create", "b", "monday").code == 0
    done = cli("bucket", "rm", "-r", "b")
    assert (done.code, done.err) == (
        *(Exit.CONFLICT, "mictlanfs: remove b: it has snapshots: remove them first\n"),
    )
    assert space.router.tree() == [b"b", b"b/f"]
