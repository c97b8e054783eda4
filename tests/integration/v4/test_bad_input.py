"""What clients do wrong, or what goes wrong with them: the answer, and that nothing is left."""

from __future__ import annotations

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit

import pytest

from mictlanfs import wire
from tests.support.batches import make_files
from tests.support.spaces import Space, wait_until
from tests.support.v4 import Server, chunk_tags, sha256

BODY = os.urandom(200_000)


def chunk_count(space: Space) -> int:
    """Chunks that the peers of a space hold together."""
    status = json.loads(space.command("status", "--json", check=False).stdout)
    return sum(peer["chunk_count"] for peer in status["peers"])


def settled_chunk_count(space: Space) -> int:
    """The same, once what peers tell of themselves every second has caught up."""
    count = chunk_count(space)
    while True:
        time.sleep(2.5)
        before, count = count, chunk_count(space)
        if before == count:
            return count


def test_unknown_task(router: Server) -> None:
    for response in (router.send("nothing", BODY), router.send_form("nothing", BODY)):
        assert response.status_code == 404
        assert response.json()["detail"]["code"] == 404


def test_task_is_used_once(router: Server, bucket: str) -> None:
    task = router.task(bucket, "k", BODY)
    assert router.send(task, BODY).status_code == 200
    assert router.send(task, BODY).status_code == 404


@pytest.mark.parametrize("announced", [0, 1, 199_999, 200_001, 10_000_000])
def test_body_of_another_size_than_announced_leaves_nothing(
    router: Server, bucket: str, announced: int
) -> None:
    for send in (router.send, router.send_form):
        response = send(router.task(bucket, "k", BODY, size=announced), BODY)
        assert response.status_code == 400
        assert response.json()["detail"]["code"] == 400
        assert router.keys(bucket) == []


def test_body_with_another_checksum_than_announced_leaves_nothing(
    router: Server, bucket: str
) -> None:
    task = router.task(bucket, "k", BODY, checksum="0" * 64)
    response = router.send(task, BODY)
    assert response.status_code == 400
    assert sha256(BODY) in response.json()["detail"]["msg"]
    assert router.keys(bucket) == []


def test_client_that_sends_no_checksum_is_not_checked(router: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY, checksum="")
    assert router.json(f"/buckets/{bucket}/metadata/k")["metadata"]["checksum"] == sha256(BODY)


def test_duplicate_key_is_refused_with_666(router: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY)
    response = router.announce(bucket, "k", BODY)
    assert response.status_code == 404
    detail = response.json()["detail"]
    assert set(detail) == {"msg", "suggestion", "bucket_id", "key", "replicas", "code"}
    assert (detail["code"], detail["bucket_id"], detail["key"]) == (666, bucket, "k")
    assert len(detail["replicas"]) == 2


def test_chunk_that_comes_twice_is_refused_with_666(router: Server, bucket: str) -> None:
    chunks = [b"0" * 50_000, b"1" * 50_000]
    router.put_ball(bucket, "ball", chunks, [0])
    again = chunk_tags(0, 2, b"".join(chunks), 50_000)
    response = router.announce(bucket, "ball_0", chunks[0], ball="ball", tags=again)
    assert (response.status_code, response.json()["detail"]["code"]) == (404, 666)
    router.put_ball(bucket, "ball", chunks, [1])
    response = router.announce(bucket, "ball_0", chunks[0], ball="ball", tags=again)
    assert (response.status_code, response.json()["detail"]["code"]) == (404, 666)
    assert router.get_ball(bucket, "ball") == b"".join(chunks)


def test_key_that_is_taken_between_the_two_steps_is_a_conflict(router: Server, bucket: str) -> None:
    first, second = (router.task(bucket, "k", BODY) for _ in range(2))
    assert router.send(first, BODY).status_code == 200
    response = router.send(second, BODY)
    assert (response.status_code, response.json()["detail"]["code"]) == (409, 666)


def test_same_chunk_put_by_many_at_once_is_stored_once(router: Server, bucket: str) -> None:
    tasks = [router.task(bucket, "k", BODY) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda task: router.send(task, BODY).status_code, tasks))
    assert sorted(statuses) == [200, *[409] * 7]
    assert router.keys(bucket) == ["k"]


def test_bucket_of_path_and_body_must_agree(router: Server, bucket: str) -> None:
    response = router.announce(bucket, "k", BODY, bucket_id="another")
    assert (response.status_code, response.json()["detail"]["code"]) == (400, 400)


@pytest.mark.parametrize(
    "change",
    [
        {"size": "many"},
        {"size": None},
        {"tags": {"index": 1}},
        {"key": 7},
        {"checksum": None},
        {"replication_factor": "two"},
    ],
)
def test_malformed_metadata_is_unprocessable(
    router: Server, bucket: str, change: dict[str, object]
) -> None:
    response = router.announce(bucket, **{"key": "k", "data": BODY, **change})  # type: ignore[arg-type]
    assert response.status_code == 422
    [problem] = response.json()["detail"]
    assert problem["loc"][:2] == ["body", next(iter(change))]


def test_numbers_may_come_as_text(router: Server, bucket: str) -> None:
    router.put(bucket, "k", b"12345", size="5", replication_factor="1")
    assert router.get(f"/buckets/{bucket}/k").content == b"12345"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"\\ud800"', b"\xff"])
def test_what_is_no_metadata_is_unprocessable(router: Server, content: bytes) -> None:
    response = router.post("/buckets/b/metadata", content=content)
    assert response.status_code == 422
    assert isinstance(response.json()["detail"], list)


@pytest.mark.parametrize("key", ["", ".", "..", "a//b", "/a", "a/", "x" * 256, "a\0b", "a/../b"])
def test_key_that_can_be_no_name_is_refused(router: Server, bucket: str, key: str) -> None:
    response = router.announce(bucket, key, BODY, ball="b")
    assert (response.status_code, response.json()["detail"]["code"]) == (400, 400)


def test_bucket_of_which_nothing_is_left_is_refused_and_not_with_404(router: Server) -> None:
    response = router.client.post("/api/v4/buckets//metadata", json={})
    assert (response.status_code, response.json()["detail"]["code"]) == (400, 400)


def test_name_of_which_stripping_leaves_nothing_keeps_its_exact_form(
    router: Server, bucket: str
) -> None:
    router.put(bucket, "...", b"dots")
    assert router.get(f"/buckets/{bucket}/...").content == b"dots"
    assert router.get(f"/buckets/{bucket}/metadata/_").status_code == 404


@pytest.mark.parametrize("size", [-1, 2**63])
def test_impossible_sizes_are_refused(router: Server, bucket: str, size: int) -> None:
    assert router.announce(bucket, "k", BODY, size=size).status_code in {400, 422}


def test_tags_without_end_are_refused(router: Server, bucket: str) -> None:
    response = router.announce(bucket, "k", b"", tags={"t": "x" * 70_000})
    assert response.status_code == 400


def test_form_without_the_field_is_unprocessable(router: Server, bucket: str) -> None:
    url = "/buckets/data/"
    response = router.post(url + router.task(bucket, "k", BODY), files={"other": b"x"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "data"]
    response = router.post(url + router.task(bucket, "k", BODY), content=b"no form")
    assert response.status_code == 422
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = router.post(url + router.task(bucket, "k", BODY), content=b"y", headers=headers)
    assert response.status_code == 400


@pytest.mark.parametrize("key", ["a\nb", "a\n", "\n", "ä ö", "a%b", "a?b", "a#b", "a;b", "a\\b"])
def test_any_name_of_a_file_can_be_a_key(router: Server, bucket: str, key: str) -> None:
    router.put(bucket, key, b"x")
    path = f"/buckets/{bucket}/"
    assert router.get(path + quote(key)).content == b"x"
    assert router.json(path + "metadata/" + quote(key))["metadata"]["key"] == key
    assert router.delete(path + quote(key)).status_code == 200


def test_missing_things_are_404_with_a_detail(router: Server, bucket: str) -> None:
    router.put(bucket, "k", b"x")
    for path in ("none", "metadata/none", "metadata/none/chunks", "none/size", "none/merge"):
        response = router.get(f"/buckets/{bucket}/{path}")
        assert (response.status_code, response.json()["detail"]["code"]) == (404, 404)
    assert router.post(f"/buckets/{bucket}/none/disable").status_code == 404
    assert router.post(f"/u/buckets/{bucket}/none", json={}).status_code == 404
    for method in ("GET", "PUT", "PATCH", "OPTIONS"):
        response = router.client.request(method, "/api/v4/nothing/of/this")
        assert (response.status_code, response.json()["detail"]["code"]) == (404, 404)


def test_method_that_a_path_has_not_is_405(router: Server, peer: Server) -> None:
    for server, path in ((router, "/peers"), (peer, "/stats")):
        response = server.client.put(server.url(path))
        assert (response.status_code, response.json()["detail"]["code"]) == (405, 405)


@pytest.mark.parametrize("query", [{"start": "x"}, {"end": "1.5"}])
def test_numbers_that_are_none_are_unprocessable(router: Server, query: dict[str, str]) -> None:
    assert router.get("/peers/stats", params=query).status_code == 422


def test_ten_thousand_keys_are_listed_each_once(space: Space, router: Server, bucket: str) -> None:
    router.put(bucket, "zzz", b"put")
    wanted = wire.encode(wire.Resolve((bucket.encode(),)))
    answer = router.client.post(wire.Path.RESOLVE, content=wanted).content
    parent = wire.decode(answer, wire.Resolved).nodes[-1].attributes.ino
    make_files(space.uri, parent, [b"file%05d" % number for number in range(10_000)])
    for _ in range(2):
        balls = router.json(f"/buckets/{bucket}/metadata")["balls"]
        expected = [f"file{number:05}_0" for number in range(10_000)]
        assert [ball["key"] for ball in balls] == [*expected, "zzz"]
        assert {ball["checksum"] for ball in balls} == {sha256(b""), sha256(b"put")}


@pytest.mark.parametrize("is_form", [False, True])
def test_client_that_hangs_up_half_way_leaves_nothing(
    space: Space, router: Server, bucket: str, is_form: bool
) -> None:
    body = os.urandom(12_000_000)
    before = settled_chunk_count(space)
    task = router.task(bucket, "k", body)
    where = urlsplit(str(router.client.base_url))
    head = f"POST /api/v4/buckets/data/{task}{'' if is_form else '/chunked'} HTTP/1.1\r\n"
    head += f"Host: x\r\nContent-Length: {len(body)}\r\n"
    start = b""
    if is_form:
        head += "Content-Type: multipart/form-data; boundary=x\r\n"
        start = b'--x\r\nContent-Disposition: form-data; name="data"; filename="k"\r\n\r\n'
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.sendall(head.encode() + b"\r\n" + start + body[:9_500_000])
        # Long enough for whole chunks to be stored.
        wait_until(lambda: chunk_count(space) > before, "chunks are stored")
    wait_until(lambda: chunk_count(space) == before, "the chunks are deleted again")
    assert router.keys(bucket) == []
    router.put(bucket, "k", body)


def test_bodies_that_are_refused_leave_no_chunk(space: Space, router: Server, bucket: str) -> None:
    body = os.urandom(9_000_000)
    before = settled_chunk_count(space)
    assert router.send(router.task(bucket, "k", body, checksum="0" * 64), body).status_code == 400
    assert router.send(router.task(bucket, "k", body, size=8_500_000), body).status_code == 400
    assert settled_chunk_count(space) == before
