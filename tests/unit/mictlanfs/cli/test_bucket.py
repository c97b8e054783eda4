import json

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
