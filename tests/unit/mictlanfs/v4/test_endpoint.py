import pytest
import trio

from mictlanfs.client.transport import HttpTransport
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.uri import ServerAddress
from mictlanfs.v4 import endpoint
from mictlanfs.v4.endpoint import Call, form_data
from mictlanfs.v4.router import AsyncRouter
from tests.support.v4router import V4Router
from tests.support.v4space import V4Space
from tests.unit.mictlanfs.v4.making import noise


@pytest.mark.parametrize(
    ("parts", "target"),
    [
        (("buckets", "b", "k"), "b@k"),
        (("buckets", "b", "metadata", "k"), "b@k"),
        (("buckets", "b", "metadata", "x", "chunks"), "b@x"),
        (("buckets", "b", "bid", "x"), "b@x"),
        (("buckets", "b", "metadata"), "b"),
        (("buckets", "data", "t1", "chunked"), "t1"),
        (("peers", "stats"), "peers/stats"),
    ],
)
def test_an_error_names_what_the_request_was_about(parts: tuple[str, ...], target: str) -> None:
    assert Call("do", "GET", parts).target == target


async def test_a_large_record_is_read_in_pieces(
    router: V4Router, space: V4Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(300_000)
    space.store("b", "k", data)
    monkeypatch.setattr(endpoint, "BODY_SIZE_BYTES_MAX", 1_000)
    async with AsyncRouter.at("127.0.0.1", router.port) as ours:
        assert bytes(await ours.get("b", "k", size=len(data))) == data


async def test_a_transport_of_the_caller_stays_open(router: V4Router, space: V4Space) -> None:
    space.store("b", "k", b"meow")
    address = ServerAddress(None, "127.0.0.1", router.port)
    transport = HttpTransport()
    for _ in range(2):
        async with AsyncRouter(address, transport=transport) as ours:
            assert bytes(await ours.get("b", "k")) == b"meow"
    await transport.aclose()
    assert router.connection_count == 1


async def test_a_server_that_never_answers_times_out(router: V4Router) -> None:
    router.fail("stall", count=2)
    address = ServerAddress(None, "127.0.0.1", router.port)
    async with AsyncRouter(address, timeout_s=0.1) as ours:
        with trio.fail_after(5):
            for asking in (ours.get("b", "k"), ours.get_bucket_metadata("b")):
                with pytest.raises(MictlanError) as caught:
                    await asking
                assert caught.value.kind is Kind.TIMED_OUT


async def test_the_version_of_the_api_is_part_of_the_path(router: V4Router) -> None:
    address = ServerAddress(None, "127.0.0.1", router.port, api_version=5)
    async with AsyncRouter(address) as ours:
        with pytest.raises(MictlanError):
            await ours.get_peers()
    assert router.asked() == ["GET /api/v5/peers"]


async def test_a_long_error_of_a_stream_is_not_read_to_its_end(
    router: V4Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "_ERROR_SIZE_BYTES_MAX", 10)
    router.fail("status", status=500, content={"detail": "x" * 300_000})
    async with AsyncRouter.at("127.0.0.1", router.port) as ours:
        with pytest.raises(MictlanError) as caught:
            await ours.get_streaming("b", "k").__aenter__()
    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_form_holds_the_value_as_it_is() -> None:
    headers, body = form_data("k", memoryview(b"a\r\n--b"), "text/plain")
    whole = b"".join(body)
    boundary = headers["content-type"].partition("boundary=")[2].encode()
    assert whole.count(boundary) == 2
    assert b"\r\n\r\na\r\n--b\r\n--" in whole
