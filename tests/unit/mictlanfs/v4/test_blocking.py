import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.v4.blocking import Client
from tests.support.v4router import V4Router
from tests.support.v4server import serving_in_a_thread, uri_of
from tests.support.v4space import V4Space, public_get
from tests.unit.mictlanfs.v4.making import QUICK, noise


@pytest.fixture
def served(space: V4Space) -> Iterator[V4Router]:
    """A router that answers although the tests block."""
    router = V4Router(space)
    with serving_in_a_thread(router):
        yield router


@pytest.fixture
def ours(served: V4Router) -> Iterator[Client]:
    with Client(uri_of(served), client_id="tester", retry=QUICK) as ours:
        yield ours


def test_every_verb_works(ours: Client, space: V4Space, tmp_path: Path) -> None:
    data = noise(25_000)
    (tmp_path / "f").write_bytes(data)
    assert ours.put("photos", "cat", data, chunk_size=10_000).chunk_count == 3
    assert public_get(space, "photos", "cat") == data
    assert bytes(ours.get("photos", "cat").data) == data
    ours.put_file("photos", "dog", tmp_path / "f")
    ours.put_chunks("photos", "cow", [b"mo", b"o"])
    ours.put_single_chunk("photos", "raw", b"x")
    assert ours.get_to_file("photos", "dog", tmp_path / "g").read_bytes() == data
    assert bytes(ours.get_chunk("photos", "cow", 1).data) == b"o"
    assert bytes(ours.get_by_key("photos", "raw").data) == b"x"
    assert ours.get_metadata("photos", "cow").size == 3
    assert ours.get_metadata_by_key("photos", "raw").size == 1
    listed = {ball.ball_id: ball.size for ball in ours.get_bucket_metadata("photos")}
    assert listed == {"cat": 25_000, "dog": 25_000, "cow": 3, "raw": 1}
    assert len(ours.get_chunks_by_bucket_id("photos")) == 7
    assert ours.delete(bucket_id="photos", ball_id="cat") == 3
    assert ours.delete_by_key(bucket_id="photos", key="raw") == 1
    assert ours.delete_bucket("photos") == 3


def test_errors_are_raised_as_they_are(ours: Client) -> None:
    with pytest.raises(MictlanError) as caught:
        ours.get("photos", "nothing")
    assert caught.value.kind is Kind.NOT_FOUND


def test_connections_and_the_cache_last_from_call_to_call(ours: Client, served: V4Router) -> None:
    ours.put("photos", "cat", b"meow")
    for _ in range(5):
        assert bytes(ours.get("photos", "cat", use_cache=True).data) == b"meow"
    assert len(served.asked("GET .*/cat_0$")) == 1
    assert served.connection_count == 1


def test_threads_share_a_client(ours: Client, space: V4Space) -> None:
    threads = [
        threading.Thread(target=ours.put, args=("photos", f"cat{index}", noise(1_000, index)))
        for index in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(8):
        assert public_get(space, "photos", f"cat{index}") == noise(1_000, index)


def test_a_closed_client_does_nothing(served: V4Router) -> None:
    ours = Client(uri_of(served))
    ours.close()
    ours.close()
    with pytest.raises(MictlanError) as caught:
        ours.get("photos", "cat")
    assert caught.value.kind is Kind.UNAVAILABLE
    assert not [t for t in threading.enumerate() if t.name == "mictlanfs-client"]


def test_closing_ends_calls_of_other_threads(served: V4Router) -> None:
    served.fail("stall", count=1e9)
    ours = Client(uri_of(served))
    errors: list[Exception] = []

    def get() -> None:
        try:
            ours.get("photos", "cat")
        except MictlanError as error:
            errors.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    while not served.busy:
        time.sleep(0.01)
    ours.close()
    thread.join(5)
    assert [str(error) for error in errors] == ["the client was closed meanwhile"]


def test_wrong_arguments_are_refused_without_a_thread() -> None:
    with pytest.raises(UsageError):
        Client("http://127.0.0.1")
    with pytest.raises(MictlanError):
        Client("mictlanx://r@127.0.0.1:1/?protocol=http", cache_size="x")
    assert not [t for t in threading.enumerate() if t.name == "mictlanfs-client"]
