import asyncio
import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mictlanfs import wire
from mictlanfs.client.transport import HttpTransport
from mictlanfs.clock import SystemClock
from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError
from mictlanfs.identifiers import new_chunk_id
from mictlanfs.model import MIB, ChunkId
from mictlanfs.wirecopies import PullChunks
from mictlanfs_server.peer import handlers as handlers_module
from mictlanfs_server.peer.backends.base import StoredChunk
from mictlanfs_server.peer.backends.memory import MemoryBackend
from mictlanfs_server.peer.capacity import Capacity
from mictlanfs_server.peer.handlers import ChunkHandlers, parse_range
from mictlanfs_server.peer.index import Index
from mictlanfs_server.peer.popularity import ReadCounter
from mictlanfs_server.peer.pulling import Puller
from mictlanfs_server.peer.rebuilding import Rebuilder
from mictlanfs_server.peer.store import ChunkStore
from tests.unit.server.peer.making import (
    LARGE,
    digest_header,
    make_chunk,
    on_asyncio,
    path_of,
    put_frame,
)

Message = MutableMapping[str, Any]


@dataclass
class Answer:
    """What an ASGI server would send."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> MictlanError:
        assert self.headers["content-type"] == "application/json"
        return wire.decode_error(self.status, self.body)


def handlers_of(store: ChunkStore, reads: ReadCounter | None = None) -> ChunkHandlers:
    transport = HttpTransport()
    return ChunkHandlers(
        store,
        Puller(store, transport),
        Rebuilder(store, transport),
        reads or ReadCounter(SystemClock()),
    )


@dataclass
class Client:
    """An ASGI server with one request at a time, and no network."""

    app: ChunkHandlers
    store: ChunkStore
    reads: ReadCounter

    async def send(
        self,
        method: str,
        path: str,
        pieces: Sequence[bytes] = (),
        headers: Mapping[str, str] | None = None,
        *,
        length: int | None = None,
        hangs_up: bool = False,
    ) -> Answer | None:
        """The answer; None when there is none. `length` is sent when it is not that of `pieces`."""
        said = {"content-length": str(sum(map(len, pieces)) if length is None else length)}
        said.update(headers or {})
        incoming: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
        ]
        if hangs_up:
            incoming.append({"type": "http.disconnect"})
        else:
            incoming.append({"type": "http.request", "body": b"", "more_body": False})
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.sleep(0)
            return incoming.pop(0)

        async def send(message: Message) -> None:
            await asyncio.sleep(0)
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(k.lower().encode(), v.encode()) for k, v in said.items() if v],
        }
        assert self.app.is_ours(path)
        await self.app(scope, receive, send)
        return _answer(sent)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to a request that is well-formed for HTTP."""
        answer = await self.send(method, path, [body], headers)
        assert answer is not None
        return answer

    async def put(self, chunk: StoredChunk, body: bytes) -> Answer:
        return await self.ask("PUT", path_of(chunk), body, digest_header(chunk))

    async def frame(self, path: str, body: bytes) -> tuple[Sequence[wire.FrameResult], bytes]:
        answer = await self.ask("POST", path, body)
        assert answer.status == 200, answer.body
        header, rest = wire.unframe(answer.body, wire.FrameAnswer)
        return header.results, bytes(rest)


def _answer(sent: list[Message]) -> Answer | None:
    if not sent:
        return None
    start, *rest = sent
    assert start["type"] == "http.response.start"
    assert [part.get("more_body", False) for part in rest] == [True] * (len(rest) - 1) + [False]
    headers = {k.decode(): v.decode() for k, v in start["headers"]}
    return Answer(start["status"], headers, b"".join(bytes(part.get("body", b"")) for part in rest))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    index = Index(tmp_path / "index.sqlite", fsync=False)
    capacity = Capacity(256 * MIB, 0, lambda: None, lambda: index.totals.used_bytes)
    store = ChunkStore(index, MemoryBackend(), capacity)
    reads = ReadCounter(SystemClock())
    yield Client(handlers_of(store, reads), store, reads)
    store.close()


# --- single chunks -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 1000, LARGE, 2 * MIB])
@on_asyncio
async def test_a_chunk_is_stored_once_and_given_back(client: Client, length: int) -> None:
    chunk, body = make_chunk(length)
    assert (await client.put(chunk, body)).status == 201
    assert (await client.put(chunk, body)).status == 200
    answer = await client.ask("GET", path_of(chunk))
    assert answer == Answer(
        200,
        {
            "content-length": str(length),
            "content-type": "application/octet-stream",
            wire.HEADER_DIGEST: chunk.digest.hex(),
        },
        body,
    )


@pytest.mark.parametrize("length", [1000, LARGE])
@on_asyncio
async def test_head_tells_length_and_digest_without_the_bytes(client: Client, length: int) -> None:
    chunk, body = make_chunk(length)
    await client.put(chunk, body)
    answer = await client.ask("HEAD", path_of(chunk))
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(length)
    assert answer.headers[wire.HEADER_DIGEST] == chunk.digest.hex()


@pytest.mark.parametrize("length", [1000, LARGE])
@on_asyncio
async def test_a_chunk_is_given_to_those_who_expect_it_and_to_no_others(
    client: Client, length: int
) -> None:
    chunk, body = make_chunk(length)
    await client.put(chunk, body)
    expected = {wire.HEADER_DIGEST: chunk.digest.hex(), "Range": "bytes=0-9"}
    answer = await client.ask("GET", path_of(chunk), headers=expected)
    assert (answer.status, answer.body) == (206, body[:10])
    other = {**expected, wire.HEADER_DIGEST: bytes(32).hex()}
    answer = await client.ask("GET", path_of(chunk), headers=other)
    assert answer.error.kind is Kind.NOT_FOUND
    wrong = {**expected, wire.HEADER_DIGEST: "no digest"}
    assert (await client.ask("GET", path_of(chunk), headers=wrong)).error.kind is Kind.INVALID


@pytest.mark.parametrize("length", [1000, LARGE])
@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=990-", 990, None),
        ("bytes=0-", 0, None),
    ],
)
@on_asyncio
async def test_a_range_is_given_as_part(
    client: Client, length: int, wanted: str, start: int, end: int | None
) -> None:
    chunk, body = make_chunk(length)
    await client.put(chunk, body)
    answer = await client.ask("GET", path_of(chunk), headers={"Range": wanted})
    last = (end or length) - 1
    assert (answer.status, answer.body) == (206, body[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{last}/{length}"
    assert answer.headers["content-length"] == str(last + 1 - start)
    assert answer.headers[wire.HEADER_DIGEST] == chunk.digest.hex()


@on_asyncio
async def test_a_range_that_reaches_too_far_ends_with_the_chunk(client: Client) -> None:
    chunk, body = make_chunk(1000)
    await client.put(chunk, body)
    answer = await client.ask("GET", path_of(chunk), headers={"Range": "bytes=995-5000"})
    assert (answer.status, answer.body) == (206, body[995:])
    assert answer.headers["content-range"] == "bytes 995-999/1000"


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=1000-",
        "bytes=1000-1001",
        "bytes=5-4",
        "bytes=-5",
        "bytes=0-1,3-4",
        "bytes=a-b",
        "bytes= 0-1",
        "bits=0-1",
        "x",
        "bytes=99999999999999999999-",
    ],
)
@on_asyncio
async def test_any_other_range_is_refused(client: Client, wanted: str) -> None:
    chunk, body = make_chunk(1000)
    await client.put(chunk, body)
    answer = await client.ask("GET", path_of(chunk), headers={"Range": wanted})
    assert answer.status == 416
    assert answer.error.kind is Kind.RANGE
    assert answer.headers["content-range"] == "bytes */1000"


@given(length=st.integers(1, 2**24), first=st.integers(0, 2**25), last=st.integers(0, 2**25))
def test_ranges_are_those_of_a_slice(length: int, first: int, last: int) -> None:
    chunk = StoredChunk(new_chunk_id(), length, bytes(32))
    value = b"bytes=%d-%d" % (first, last)
    covered = range(length)[first : last + 1]
    if covered:
        assert parse_range(value, chunk) == (covered[0], covered[-1] + 1)
    else:
        with pytest.raises(MictlanError) as caught:
            parse_range(value, chunk)
        assert caught.value.kind is Kind.RANGE


@given(value=st.binary(max_size=40))
def test_any_bytes_are_a_range_within_the_chunk_or_refused(value: bytes) -> None:
    chunk = StoredChunk(new_chunk_id(), 100, bytes(32))
    try:
        start, end = parse_range(value, chunk)
    except MictlanError as error:
        kind = error.kind
    else:
        assert 0 <= start < end <= 100
        return
    assert kind is Kind.RANGE


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@on_asyncio
async def test_an_unknown_chunk_is_not_found(client: Client, method: str) -> None:
    answer = await client.ask(method, path_of(make_chunk(1)[0]))
    assert answer.status == 404
    assert answer.error.kind is Kind.NOT_FOUND


@pytest.mark.parametrize("length", [1000, LARGE])
@on_asyncio
async def test_deleting_is_idempotent(client: Client, length: int) -> None:
    chunk, body = make_chunk(length)
    await client.put(chunk, body)
    assert (await client.ask("DELETE", path_of(chunk))).status == 204
    assert (await client.ask("GET", path_of(chunk))).status == 404
    assert (await client.ask("DELETE", path_of(chunk))).status == 204


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ab",
        "g" * 32,
        "a" * 31,
        "a" * 33,
        "a" * 30 + " b",
        "../../../../etc/passwd",
        "a" * 32 + "/x",
        "é" * 32,
        "a" * 1000,
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
@on_asyncio
async def test_a_name_that_is_no_chunk_id_is_invalid(
    client: Client, method: str, name: str
) -> None:
    headers = {wire.HEADER_DIGEST: "00" * 32}
    answer = await client.ask(method, wire.Path.CHUNK + name, b"x", headers)
    assert answer.status == 400
    assert answer.error.kind is Kind.INVALID


@pytest.mark.parametrize("digest", ["", "ab", "g" * 64, "0" * 63, "00" * 33, "é" * 32])
@on_asyncio
async def test_a_put_needs_a_digest(client: Client, digest: str) -> None:
    chunk, body = make_chunk(10)
    answer = await client.ask("PUT", path_of(chunk), body, {wire.HEADER_DIGEST: digest})
    assert answer.error.kind is Kind.INVALID
    assert wire.HEADER_DIGEST in answer.error.detail
    assert client.store.chunk_count == 0


@pytest.mark.parametrize("length", ["", "x", "-1", "1.5"])
@on_asyncio
async def test_a_put_needs_a_length(client: Client, length: str) -> None:
    chunk, body = make_chunk(10)
    headers = {**digest_header(chunk), "content-length": length}
    answer = await client.ask("PUT", path_of(chunk), body, headers)
    assert answer.error.kind is Kind.INVALID


@on_asyncio
async def test_lengths_out_of_bounds_are_refused_before_a_byte_is_read(client: Client) -> None:
    chunk, _ = make_chunk(10)
    empty = await client.ask("PUT", path_of(chunk), b"", digest_header(chunk))
    assert empty.error.kind is Kind.INVALID
    huge = await client.send(
        "PUT", path_of(chunk), [], digest_header(chunk), length=16 * MIB + 1, hangs_up=True
    )
    assert huge is not None
    assert huge.status == 413
    assert huge.headers["connection"] == "close"


@pytest.mark.parametrize("length", [1000, LARGE])
@on_asyncio
async def test_wrong_bytes_are_corrupt(client: Client, length: int) -> None:
    chunk, body = make_chunk(length)
    wrong = bytes(reversed(body))
    answer = await client.put(chunk, wrong)
    assert answer.status == HTTP_STATUS[Kind.CORRUPT]
    assert answer.error.kind is Kind.CORRUPT
    assert client.store.chunk_count == 0


@on_asyncio
async def test_an_id_with_other_bytes_is_a_conflict(client: Client) -> None:
    chunk, body = make_chunk(1000)
    other, other_body = make_chunk(1000, seed=1, chunk_id=chunk.id)
    await client.put(chunk, body)
    answer = await client.put(other, other_body)
    assert answer.status == 409
    assert answer.error.kind is Kind.CONFLICT


@pytest.mark.parametrize("length", [1000, LARGE])
@on_asyncio
async def test_a_client_that_hangs_up_leaves_nothing_and_gets_nothing(
    client: Client, length: int
) -> None:
    chunk, body = make_chunk(length)
    answer = await client.send(
        "PUT", path_of(chunk), [body[:10]], digest_header(chunk), length=length, hangs_up=True
    )
    assert answer is None
    assert client.store.chunk_count == 0
    assert client.store.uploads.taken == 0
    assert (await client.put(chunk, body)).status == 201


@on_asyncio
async def test_a_client_that_sends_nothing_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers_module, "IDLE_TIMEOUT_S", 0.01)
    chunk, _ = make_chunk(1000)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-length", b"1000"), (b"x-mictlanfs-digest", b"00" * 32)]
    scope = {"type": "http", "method": "PUT", "path": path_of(chunk), "headers": headers}
    await client.app(scope, receive, send)
    answer = _answer(sent)
    assert answer is not None
    assert answer.error.kind is Kind.TIMED_OUT
    assert client.store.uploads.taken == 0


@on_asyncio
async def test_a_client_that_takes_nothing_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chunk, body = make_chunk(LARGE)
    await client.put(chunk, body)
    monkeypatch.setattr(handlers_module, "IDLE_TIMEOUT_S", 0.01)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        # As uvicorn does: what comes behind a body waits until the body has left.
        if len(sent) == 2:
            await asyncio.Event().wait()
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path_of(chunk), "headers": []}
    await client.app(scope, receive, send)
    assert len(sent) == 2
    assert client.store.downloads.taken == 0
    assert "takes no bytes" in caplog.text


@pytest.mark.parametrize("method", ["POST", "PATCH", "OPTIONS"])
@on_asyncio
async def test_other_methods_are_unsupported(client: Client, method: str) -> None:
    answer = await client.ask(method, path_of(make_chunk(1)[0]))
    assert answer.error.kind is Kind.UNSUPPORTED


@on_asyncio
async def test_frames_are_posted(client: Client) -> None:
    answer = await client.ask("PUT", wire.Path.FRAME_PUT, b"x")
    assert answer.error.kind is Kind.UNSUPPORTED


@on_asyncio
async def test_a_bug_is_an_internal_error_and_logged(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(client.store, "find", broken)
    answer = await client.ask("HEAD", path_of(make_chunk(1)[0]))
    assert answer.status == 500
    assert answer.error.kind is Kind.INTERNAL
    assert "a bug" not in str(answer.error)
    assert "ZeroDivisionError" in caplog.text


def test_only_chunk_paths_are_ours(client: Client) -> None:
    assert client.app.is_ours(wire.Path.CHUNK + "x")
    assert client.app.is_ours(wire.Path.FRAME_GET)
    for path in ("/", wire.Path.HEALTH, wire.Path.STATUS, wire.Path.FRAME_GET + "/x"):
        assert not client.app.is_ours(path)


# --- frames --------------------------------------------------------------------------------------


def get_frame(chunk_ids: Sequence[bytes]) -> bytes:
    return b"".join(wire.frame(wire.FrameGet(tuple(ChunkId(one) for one in chunk_ids))))


def delete_frame(chunk_ids: Sequence[ChunkId]) -> bytes:
    return b"".join(wire.frame(wire.FrameDelete(tuple(chunk_ids))))


@on_asyncio
async def test_frames_store_give_and_delete(client: Client) -> None:
    chunks = [make_chunk(length, n) for n, length in enumerate([1, 5000, LARGE, LARGE - 1])]
    ids = [chunk.id for chunk, _ in chunks]
    stored, rest = await client.frame(wire.Path.FRAME_PUT, put_frame(chunks))
    assert stored == tuple(wire.FrameResult(chunk.length) for chunk, _ in chunks)
    assert rest == b""
    given, rest = await client.frame(wire.Path.FRAME_GET, get_frame(ids))
    assert given == stored
    assert rest == b"".join(body for _, body in chunks)
    deleted, rest = await client.frame(wire.Path.FRAME_DELETE, delete_frame([*ids, ids[0]]))
    assert deleted == (wire.FrameResult(),) * 5
    assert rest == b""
    assert client.store.chunk_count == 0
    again, _ = await client.frame(wire.Path.FRAME_DELETE, delete_frame(ids))
    assert again == (wire.FrameResult(),) * 4


@on_asyncio
async def test_each_chunk_of_a_frame_has_its_own_result(client: Client) -> None:
    good, good_body = make_chunk(100)
    bad, _ = make_chunk(100, seed=1)
    frame = put_frame([(good, good_body), (bad, good_body), (good, good_body)])
    results, _ = await client.frame(wire.Path.FRAME_PUT, frame)
    assert [r.length for r in results] == [100, 0, 100]
    assert results[1].error is not None
    assert results[1].error.to_error().kind is Kind.CORRUPT
    results, rest = await client.frame(wire.Path.FRAME_GET, get_frame([bad.id, good.id]))
    assert results[0].error is not None
    assert results[0].error.to_error().kind is Kind.NOT_FOUND
    assert results[1] == wire.FrameResult(100)
    assert rest == good_body


@on_asyncio
async def test_every_read_is_counted_until_the_chunk_is_gone(client: Client) -> None:
    (whole, body), (part, other) = make_chunk(LARGE), make_chunk(LARGE, seed=1)
    for chunk, content in ((whole, body), (part, other)):
        await client.put(chunk, content)
    for _ in range(100):
        await client.ask("GET", path_of(whole))
        await client.ask("GET", path_of(part), headers={"range": f"bytes=0-{LARGE // 4 - 1}"})
        await client.frame(wire.Path.FRAME_GET, get_frame([whole.id, bytes(16)]))
    await client.ask("HEAD", path_of(part))
    rates = {told.id: told.reads_per_min for told in client.reads.hottest()}
    assert rates.keys() == {whole.id, part.id}
    assert rates[whole.id] == pytest.approx(8 * rates[part.id])
    await client.ask("DELETE", path_of(whole))
    await client.frame(wire.Path.FRAME_DELETE, delete_frame([part.id]))
    assert client.reads.hottest() == ()


@on_asyncio
async def test_a_frame_of_nothing_is_answered_with_nothing(client: Client) -> None:
    for path, body in (
        (wire.Path.FRAME_PUT, put_frame([])),
        (wire.Path.FRAME_GET, get_frame([])),
        (wire.Path.FRAME_DELETE, delete_frame([])),
    ):
        assert await client.frame(path, body) == ((), b"")


@on_asyncio
async def test_a_frame_of_256_chunks_is_taken_and_one_of_257_is_not(client: Client) -> None:
    chunks = [make_chunk(20, n) for n in range(257)]
    answer = await client.ask("POST", wire.Path.FRAME_PUT, put_frame(chunks))
    assert answer.error.kind is Kind.INVALID
    assert client.store.chunk_count == 0
    await client.frame(wire.Path.FRAME_PUT, put_frame(chunks[:256]))
    ids = [chunk.id for chunk, _ in chunks]
    _, rest = await client.frame(wire.Path.FRAME_GET, get_frame(ids[:256]))
    assert rest == b"".join(body for _, body in chunks[:256])
    for path, body in (
        (wire.Path.FRAME_GET, get_frame(ids)),
        (wire.Path.FRAME_DELETE, delete_frame(ids)),
    ):
        assert (await client.ask("POST", path, body)).error.kind is Kind.INVALID


@on_asyncio
async def test_a_frame_that_is_asked_for_too_much_gives_what_fits(client: Client) -> None:
    chunks = [make_chunk(3 * MIB, n) for n in range(3)]
    for chunk, body in chunks:
        await client.put(chunk, body)
    frame = get_frame([chunk.id for chunk, _ in chunks])
    results, rest = await client.frame(wire.Path.FRAME_GET, frame)
    assert [r.length for r in results] == [3 * MIB, 3 * MIB, 0]
    assert results[2].error is not None
    assert results[2].error.to_error().kind is Kind.TOO_LARGE
    assert len(rest) == 6 * MIB
    assert client.store.downloads.taken == 0


@on_asyncio
async def test_a_frame_that_is_too_large_is_refused_before_a_byte_is_read(client: Client) -> None:
    for path in (wire.Path.FRAME_PUT, wire.Path.FRAME_GET, wire.Path.FRAME_DELETE):
        answer = await client.send("POST", path, [], length=10 * MIB, hangs_up=True)
        assert answer is not None
        assert answer.error.kind is Kind.TOO_LARGE
        assert answer.headers["connection"] == "close"


def bad_frames() -> dict[str, bytes]:
    chunk, body = make_chunk(100)
    good = put_frame([(chunk, body)])
    return {
        "empty": b"",
        "short": good[:3],
        "cut in the header": good[:10],
        "cut in a body": good[:-1],
        "too long": good + b"x",
        "no msgpack": b"\0\0\0\4abcd" + body,
        "header too long": b"\xff\xff\xff\xff" + body,
        "chunk id too short": frame_of(chunk.id[1:], 100, chunk.digest, body),
        "chunk id too long": frame_of(chunk.id + b"x", 100, chunk.digest, body),
        "digest too short": frame_of(chunk.id, 100, chunk.digest[1:], body),
        "length of nothing": frame_of(chunk.id, 0, chunk.digest, b""),
        "negative length": frame_of(chunk.id, -100, chunk.digest, b""),
    }


def frame_of(chunk_id: bytes, length: int, digest: bytes, body: bytes) -> bytes:
    header = wire.FramePut((wire.FrameChunk(ChunkId(chunk_id), length, digest),))
    return b"".join(wire.frame(header, [body]))


@pytest.mark.parametrize("name", list(bad_frames()))
@on_asyncio
async def test_a_malformed_frame_is_refused_with_a_reason(client: Client, name: str) -> None:
    answer = await client.ask("POST", wire.Path.FRAME_PUT, bad_frames()[name])
    assert 400 <= answer.status < 500
    assert answer.error.kind in {Kind.INVALID, Kind.PROTOCOL}
    assert json.loads(answer.body)["detail"]
    assert client.store.chunk_count == 0
    assert client.store.uploads.taken == 0


@on_asyncio
async def test_ids_of_another_size_are_refused(client: Client) -> None:
    for path in (wire.Path.FRAME_GET, wire.Path.FRAME_DELETE):
        answer = await client.ask("POST", path, get_frame([b"../../etc/passwd", b"/"]))
        assert answer.error.kind is Kind.INVALID


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), path=st.sampled_from(["put", "get", "delete"]))
def test_any_bytes_are_answered_without_an_internal_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, path: str
) -> None:
    check_answer(tmp_path_factory, data, f"{wire.PREFIX}/frames/{path}")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 300), flip=st.integers(0, 299), by=st.integers(0, 255))
def test_a_damaged_frame_is_answered_without_an_internal_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, by: int
) -> None:
    frame = bytearray(put_frame([make_chunk(60, n) for n in range(2)]))
    frame[flip % len(frame)] ^= by
    check_answer(tmp_path_factory, bytes(frame[: len(frame) - cut]), wire.Path.FRAME_PUT)


def check_answer(factory: pytest.TempPathFactory, body: bytes, path: str) -> None:
    index = Index(factory.mktemp("index") / "index.sqlite", fsync=False)
    capacity = Capacity(MIB, 0, lambda: None, lambda: index.totals.used_bytes)
    store = ChunkStore(index, MemoryBackend(), capacity)
    try:
        reads = ReadCounter(SystemClock())
        client = Client(handlers_of(store, reads), store, reads)
        answer = asyncio.run(client.ask("POST", path, body))
    finally:
        store.close()
    assert answer.status < 500


def test_pull_answers_for_each_chunk_by_a_frame(client: Client) -> None:
    here, body = make_chunk(10)

    async def scenario() -> None:
        await client.put(here, body)
        chunks = tuple(wire.FrameChunk(c.id, c.length, c.digest) for c in (here,))
        request = PullChunks("http://127.0.0.1:1", chunks)
        results, _ = await client.frame(wire.Path.FRAME_PULL, b"".join(wire.frame(request)))
        assert [(result.length, result.error) for result in results] == [(10, None)]
        nobody = (wire.FrameChunk(new_chunk_id(), 10, b"d" * 32),)
        request = PullChunks("http://127.0.0.1:1", nobody)
        results, _ = await client.frame(wire.Path.FRAME_PULL, b"".join(wire.frame(request)))
        assert results[0].error is not None
        assert results[0].error.kind == Kind.UNAVAILABLE.value
        answer = await client.ask(
            "POST", wire.Path.FRAME_PULL, b"".join(wire.frame(PullChunks("ftp://h", nobody)))
        )
        assert answer.status == HTTP_STATUS[Kind.INVALID]

    asyncio.run(scenario())
