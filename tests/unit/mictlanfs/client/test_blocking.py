import inspect
import io
from pathlib import Path

import pytest

from mictlanfs.client import blocking
from mictlanfs.client.blocking import BlockingSpace
from mictlanfs.client.space import SpaceClient, open_space
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import BucketPolicy
from tests.support.fakespace import URI, FakeSpace


@pytest.fixture
def client(space: FakeSpace, monkeypatch: pytest.MonkeyPatch) -> BlockingSpace:
    def open_fake(uri: str, **options: object) -> object:
        assert uri == URI
        assert options.pop("label") == "script"
        return open_space(uri, transport=space.net)

    monkeypatch.setattr(blocking, "open_space", open_fake)
    return BlockingSpace(URI)


def test_a_script_can_use_a_space_without_an_event_loop(
    client: BlockingSpace, tmp_path: Path
) -> None:
    client.make_bucket("c", BucketPolicy(replicas=1))
    assert [bucket.name for bucket in client.buckets()] == [b"b", b"c"]
    assert client.put(io.BytesIO(b"hello"), "c", "a/f").size == 5
    assert client.exists("c/a/f")
    assert [listing.name for listing in client.list("c/a")] == [b"f"]
    assert client.stat("c/a/f").attributes.size == 5
    client.get("c", "a/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"hello"
    client.remove("c/a", recursive=True)
    client.remove_bucket("c")
    assert not client.exists("c")


def test_errors_are_plain(client: BlockingSpace) -> None:
    with pytest.raises(MictlanError) as caught:
        client.stat("b/none")
    assert caught.value.kind is Kind.NOT_FOUND


def test_a_bad_uri_shows_at_once() -> None:
    with pytest.raises(UsageError):
        BlockingSpace("here")


@pytest.mark.parametrize(
    "verb",
    [name for name, _ in inspect.getmembers(BlockingSpace, inspect.isfunction) if name[0] != "_"],
)
def test_every_verb_takes_what_the_asynchronous_one_takes(verb: str) -> None:
    # A callback would run in another thread's event loop; scripts do without.
    expected = dict(inspect.signature(getattr(SpaceClient, verb)).parameters)
    expected.pop("progress", None)
    assert list(inspect.signature(getattr(BlockingSpace, verb)).parameters) == list(expected)
