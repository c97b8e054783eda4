"""Every row of the router's table, by the exact requests and the exact fields of the answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from tests.support.localspaces import wait_until
from tests.support.v4 import Server, chunk_tags, sha256

METADATA_FIELDS = {
    *("key", "size", "checksum", "tags", "content_type", "producer_id", "ball_id", "bucket_id"),
    "is_disabled",
}
PEER_STATS_FIELDS = {
    *("peer_id", "used_disk", "total_disk", "available_disk", "disk_uf", "balls", "peers"),
}
BODY = os.urandom(300_000)


def test_first_step_of_a_put_names_one_task_and_the_peers_that_will_hold_the_bytes(
    router: Server, bucket: str
) -> None:
    answer = router.announce(bucket, "k", BODY).json()
    assert set(answer) == {"key", "service_time", "tasks_ids", "bucket_id", "replicas", "extra"}
    assert (answer["key"], answer["bucket_id"], answer["extra"]) == ("k", bucket, {})
    assert isinstance(answer["service_time"], float)
    [task] = answer["tasks_ids"]
    taken = router.send(task, BODY).json()
    assert sorted(taken["peer_ids"]) == sorted(answer["replicas"])


def test_second_step_as_raw_bytes(router: Server, bucket: str) -> None:
    response = router.send(router.task(bucket, "k", BODY), BODY)
    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"peer_ids", "combined_key", "bucket_id", "key", "size"}
    assert answer["combined_key"] == f"{bucket}@k"
    assert (answer["bucket_id"], answer["key"], answer["size"]) == (bucket, "k", len(BODY))
    assert answer["peer_ids"]


def test_second_step_as_a_form(router: Server, bucket: str) -> None:
    response = router.send_form(router.task(bucket, "k", BODY), BODY, "k")
    assert (response.status_code, response.content) == (201, b"")
    assert router.get(f"/buckets/{bucket}/k").content == BODY


def test_nothing_is_there_before_the_second_step(router: Server, bucket: str) -> None:
    task = router.task(bucket, "k", BODY)
    assert router.get(f"/buckets/{bucket}/k").status_code == 404
    assert router.get(f"/buckets/{bucket}/metadata/k").status_code == 404
    assert router.keys(bucket) == []
    router.send(task, BODY)
    assert router.keys(bucket) == ["k"]


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(9000), os.urandom(9_000_000)])
def test_bytes_of_any_size_come_back(router: Server, bucket: str, data: bytes) -> None:
    router.put(bucket, "k", data)
    response = router.get(f"/buckets/{bucket}/k", headers={"Force-Get": "1"})
    assert response.status_code == 200
    assert response.content == data
    assert response.headers["content-length"] == str(len(data))
    assert "content-encoding" not in response.headers
    assert router.get(f"/buckets/{bucket}/k").content == data


def test_metadata_is_told_as_it_was_sent(router: Server, bucket: str) -> None:
    tags = {"index": "x", "a": "ä", "empty": ""}
    more = {"content_type": "text/plain", "producer_id": "me"}
    router.put(bucket, "k", BODY, ball="b", tags=tags, **more)
    answer = router.json(f"/buckets/{bucket}/metadata/k")
    assert set(answer) == {"service_time", "peer_id", "local_peer_id", "metadata"}
    assert isinstance(answer["service_time"], int)
    assert isinstance(answer["peer_id"], str)
    assert isinstance(answer["local_peer_id"], str)
    assert answer["metadata"] == {
        "key": "k",
        "size": len(BODY),
        "checksum": sha256(BODY),
        "tags": tags,
        "content_type": "text/plain",
        "producer_id": "me",
        "ball_id": "b",
        "bucket_id": bucket,
        "is_disabled": False,
    }
    assert router.get(f"/buckets/{bucket}/k").headers["content-type"] == "text/plain"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_chunks_of_a_ball_in_any_order_are_read_one_by_one(
    router: Server, bucket: str, order: Sequence[int]
) -> None:
    chunks = [os.urandom(size) for size in (100_000, 1, 250_000)]
    router.put_ball(bucket, "ball", chunks, order)
    assert router.get_ball(bucket, "ball") == b"".join(chunks)
    answer = router.json(f"/buckets/{bucket}/metadata/ball/chunks")
    assert set(answer) == {"bucket_id", "ball_id", "size", "size_bytes", "checksum", "chunks"}
    assert (answer["bucket_id"], answer["ball_id"]) == (bucket, "ball")
    assert isinstance(answer["size"], str)
    assert answer["size_bytes"] == 350_001
    assert answer["checksum"] == sha256(b"".join(chunks))
    assert [chunk["key"] for chunk in answer["chunks"]] == ["ball_0", "ball_1", "ball_2"]
    assert all(set(chunk) == METADATA_FIELDS for chunk in answer["chunks"])


def test_chunks_of_a_ball_that_is_not_whole_are_told_too(router: Server, bucket: str) -> None:
    chunks = [b"a" * 10_000, b"b" * 10_000, b"c" * 10_000]
    router.put_ball(bucket, "ball", chunks, (2, 0))
    found = router.json(f"/buckets/{bucket}/metadata/ball/chunks")
    assert [chunk["key"] for chunk in found["chunks"]] == ["ball_0", "ball_2"]
    assert router.get(f"/buckets/{bucket}/ball_2").content == chunks[2]
    assert router.get(f"/buckets/{bucket}/ball/merge").status_code == 404
    assert router.get(f"/buckets/{bucket}/metadata/ball_1").status_code == 404


def test_records_of_one_ball_without_a_place_in_it_stay_records(
    router: Server, bucket: str
) -> None:
    for key in ("one", "two"):
        router.put(bucket, key, key.encode(), ball="ball")
    found = router.json(f"/buckets/{bucket}/metadata/ball/chunks")
    assert [chunk["key"] for chunk in found["chunks"]] == ["one", "two"]
    assert router.delete(f"/buckets/{bucket}/bid/ball").json()["n_deletes"] >= 2
    assert router.keys(bucket) == []


def test_merge_gives_the_chunks_one_behind_the_other(router: Server, bucket: str) -> None:
    chunks = [os.urandom(70_000), os.urandom(70_000)]
    router.put_ball(bucket, "ball", chunks)
    response = router.get(f"/buckets/{bucket}/ball/merge", params={"attachment": "true"})
    assert (response.status_code, response.content) == (200, b"".join(chunks))
    assert response.headers["content-disposition"].startswith("attachment; filename=")
    assert router.get(f"/buckets/{bucket}/nothing/merge").status_code == 404


def test_listing_has_each_record_once_empty_ones_too_and_a_ball_together(
    router: Server, bucket: str
) -> None:
    router.put(bucket, "aaa", b"")
    router.put_ball(bucket, "ball", [b"0" * 50_000, b"1" * 50_000])
    router.put(bucket, "zzz", BODY)
    answer = router.json(f"/buckets/{bucket}/metadata")
    assert answer["bucket_id"] == bucket
    assert answer["peer_ids"] == answer["peers_ids"] != []
    assert [ball["key"] for ball in answer["balls"]] == ["aaa", "ball_0", "ball_1", "zzz"]
    assert all(set(ball) == METADATA_FIELDS for ball in answer["balls"])
    assert {ball["bucket_id"] for ball in answer["balls"]} == {bucket}


def test_bucket_that_is_unknown_is_empty(router: Server) -> None:
    answer = router.json("/buckets/neverseen/metadata")
    assert (answer["bucket_id"], answer["balls"]) == ("neverseen", [])


def test_size_of_each_replica(router: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY)
    answer = router.json(f"/buckets/{bucket}/k/size")
    assert len(answer) == 2
    assert {replica["size"] for replica in answer} == {len(BODY)}
    assert all(set(replica) == {"bucket_id", "key", "peer_id", "size"} for replica in answer)


def test_attachment_has_a_name(router: Server, bucket: str) -> None:
    router.put(bucket, "k", b"x", tags={"fullname": "given.txt"})
    router.put(bucket, "l", b"x")
    url = f"/buckets/{bucket}"

    def name(key: str, **query: str) -> str:
        response = router.get(f"{url}/{key}", params={"attachment": "1", **query})
        return str(response.headers["content-disposition"])

    assert 'filename="given.txt"' in name("k")
    assert 'filename="other.txt"' in name("k", filename="other.txt")
    assert f'filename="{bucket}_l"' in name("l")
    assert "content-disposition" not in router.get(f"{url}/k").headers
    response = router.get(f"{url}/k", params={"content_type": "image/png"})
    assert response.headers["content-type"] == "image/png"


def test_disabled_record_says_so_and_is_read_as_before(router: Server, bucket: str) -> None:
    router.put_ball(bucket, "ball", [b"0" * 50_000, b"1" * 50_000])
    response = router.post(f"/buckets/{bucket}/ball_1/disable")
    assert (response.status_code, response.content) == (204, b"")
    disabled = {
        b["key"]: b["is_disabled"] for b in router.json(f"/buckets/{bucket}/metadata")["balls"]
    }
    assert disabled == {"ball_0": False, "ball_1": True}
    assert router.get(f"/buckets/{bucket}/ball_1").content == b"1" * 50_000


def test_metadata_is_updated(router: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY, tags={"old": "1"})
    change = {"tags": {"new": "2"}, "content_type": "text/css"}
    response = router.post(f"/u/buckets/{bucket}/k", json=change)
    assert (response.status_code, response.content) == (204, b"")
    found = router.json(f"/buckets/{bucket}/metadata/k")["metadata"]
    assert (found["tags"], found["content_type"]) == ({"new": "2"}, "text/css")
    assert found["checksum"] == sha256(BODY)
    again = router.announce(bucket, "k", BODY, tags={"third": "3"}, headers={"Update": "1"})
    assert again.status_code == 200
    found = router.json(f"/buckets/{bucket}/metadata/k")["metadata"]
    assert found["tags"] == {"third": "3"}


def test_delete_by_key_frees_the_key(router: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY)
    response = router.delete(f"/buckets/{bucket}/k", headers={"Force": "1"})
    assert response.status_code == 200
    assert response.json() == {"n_deletes": 2, "key": "k"}
    assert router.get(f"/buckets/{bucket}/k").status_code == 404
    assert router.get(f"/buckets/{bucket}/metadata/k").status_code == 404
    assert router.delete(f"/buckets/{bucket}/k").status_code == 404
    router.put(bucket, "k", b"other")
    assert router.get(f"/buckets/{bucket}/k").content == b"other"


def test_ball_is_deleted_chunk_by_chunk_as_the_client_does(router: Server, bucket: str) -> None:
    chunks = [os.urandom(10_000) for _ in range(4)]
    router.put_ball(bucket, "ball", chunks)
    found = router.json(f"/buckets/{bucket}/metadata/ball/chunks")
    for chunk in found["chunks"]:
        response = router.delete(f"/buckets/{bucket}/{chunk['key']}", headers={"Force": "1"})
        assert response.status_code == 200, response.text
        assert response.json()["key"] == chunk["key"]
    assert router.get(f"/buckets/{bucket}/metadata/ball/chunks").status_code == 404
    router.put_ball(bucket, "ball", chunks)
    assert router.get_ball(bucket, "ball") == b"".join(chunks)


def test_all_chunks_of_a_ball_may_be_deleted_at_once(router: Server, bucket: str) -> None:
    count = 16
    router.put_ball(bucket, "ball", [bytes([index]) * 9000 for index in range(count)])
    paths = [f"/buckets/{bucket}/ball_{index}" for index in range(count)]
    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(router.delete, paths))
    assert [answer.status_code for answer in answers] == [200] * count
    assert router.keys(bucket) == []


def test_one_chunk_of_a_ball_is_deleted_and_put_again(router: Server, bucket: str) -> None:
    chunks = [os.urandom(size) for size in (9_000_000, 100_000, 0, 200_000)]
    router.put_ball(bucket, "ball", chunks)
    assert router.delete(f"/buckets/{bucket}/ball_1").json() == {"n_deletes": 2, "key": "ball_1"}
    assert router.get(f"/buckets/{bucket}/ball_1").status_code == 404
    assert router.get(f"/buckets/{bucket}/ball/merge").status_code == 404
    found = router.json(f"/buckets/{bucket}/metadata/ball/chunks")
    assert [chunk["key"] for chunk in found["chunks"]] == ["ball_0", "ball_2", "ball_3"]
    for index in (0, 2, 3):
        assert router.get(f"/buckets/{bucket}/ball_{index}").content == chunks[index]
    router.put_ball(bucket, "ball", chunks, [1])
    assert router.get_ball(bucket, "ball") == b"".join(chunks)
    assert router.get(f"/buckets/{bucket}/ball/merge").content == b"".join(chunks)


def test_delete_by_ball_of_nothing_is_no_error(router: Server, bucket: str) -> None:
    nothing = {"n_deletes": 0, "ball_id": "ball"}
    assert router.delete(f"/buckets/{bucket}/bid/ball").json() == nothing
    router.put_ball(bucket, "ball", [b"0" * 50_000, b"1" * 50_000])
    answer = router.delete(f"/buckets/{bucket}/bid/ball").json()
    assert answer == {"n_deletes": 4, "ball_id": "ball"}
    assert router.keys(bucket) == []
    assert router.delete(f"/buckets/{bucket}/bid/ball").json() == nothing


def unavailable(router: Server) -> set[str]:
    """The peers that are expected; other tests may expect some, too."""
    return {peer["peer_id"] for peer in router.json("/peers")["unavailable"]}


def test_peers_are_listed_and_expected(router: Server) -> None:
    known = router.json("/peers")
    assert set(known) == {"available", "unavailable"}
    assert [set(peer) for peer in known["available"]] == [
        {"peer_id", "ip_addr", "port", "protocol", "api_version"}
    ] * 2
    peer = {"protocol": "http", "peer_id": "later", "hostname": "localhost", "port": 25000}
    assert router.post("/peers", json=peer).status_code == 204
    assert router.post("/xpeers", json=[peer, {**peer, "peer_id": "latest"}]).status_code == 204
    assert {"later", "latest"} <= unavailable(router)
    assert router.delete("/peers/later").status_code == 204
    assert router.delete("/peers/later").status_code == 204
    url = router.url("/xpeers")
    assert router.client.request("DELETE", url, json=["latest"]).status_code == 204
    assert not {"later", "latest"} & unavailable(router)


def test_stats_have_exactly_the_fields_of_the_client(router: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY)
    stats = router.json("/peers/stats", params={"start": 0, "end": 100})
    assert len(stats) == 2
    for peer_id, found in stats.items():
        assert set(found) == PEER_STATS_FIELDS
        assert found["peer_id"] == peer_id
        assert isinstance(found["disk_uf"], float)
        assert found["used_disk"] + found["available_disk"] == found["total_disk"]
        assert found["peers"] == [other for other in stats if other != peer_id]
        assert isinstance(found["balls"], list)


def test_cache_is_filled_told_and_reset(router: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY)
    name = f"{bucket}@k"
    assert name in router.json("/cache")["keys"]
    assert router.delete("/cache/reset").status_code == 204
    assert router.json("/cache") == {"keys": []}
    empty = router.json("/cache/stats")
    assert set(empty) == {"total", "used", "available", "uf"}
    assert (empty["used"], empty["uf"]) == (0, 0.0)
    assert router.get(f"/buckets/{bucket}/k").content == BODY
    assert router.json("/cache")["keys"] == [name]
    assert router.json("/cache/stats")["used"] == len(BODY)
    router.delete(f"/buckets/{bucket}/k")
    assert router.json("/cache")["keys"] == []


def test_tasks_are_told_and_dropped(router: Server, bucket: str) -> None:
    task = router.task(bucket, "k", BODY)
    [found] = [entry for entry in router.json("/tasks") if entry["task_id"] == task]
    assert set(found) == {
        *("group_id", "task_id", "operation", "bucket_id", "key", "peers", "size"),
        "content_type",
    }
    assert (found["operation"], found["key"], found["size"]) == ("PUT", "k", len(BODY))
    assert router.delete("/tasks").status_code == 204
    assert router.json("/tasks") == []
    assert router.send(task, BODY).status_code == 404


def test_health_and_descriptions_are_there_below_the_root_path_too(router: Server) -> None:
    for prefix in ("", "/mictlanx"):
        assert router.client.get(f"{prefix}/health").json() == {"status": "ok"}
        assert router.client.get(f"{prefix}/docs").status_code == 200
        assert router.client.get(f"{prefix}/redoc").status_code == 200
        described = router.client.get(f"{prefix}/openapi.json").json()
        assert "/api/v4/buckets/{bucket_id}/metadata" in described["paths"]
        assert router.client.get(f"{prefix}/api/v4/peers").status_code == 200
    assert "/mictlanx/openapi.json" in router.client.get("/docs").text


def test_requests_are_counted_by_their_templates(router: Server, peer: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY)
    for server in (router, peer):
        server.get(f"/buckets/{bucket}/k")
        # A request is counted when its answer has left.
        wait_until(partial(is_counted, server), "the request is counted")
        assert bucket not in server.client.get("/metrics").text


def is_counted(server: Server) -> bool:
    template = 'handler="/api/v4/buckets/{bucket_id}/{key}"'
    return template in server.client.get("/metrics").text


def test_ranges_and_conditions(router: Server, bucket: str) -> None:
    router.put_ball(bucket, "ball", [BODY, BODY])
    url = router.url(f"/buckets/{bucket}/ball_1")

    def ranged(value: str) -> httpx.Response:
        return router.client.get(url, headers={"Range": value})

    for value, expected in (
        ("bytes=0-9", BODY[:10]),
        ("bytes=299990-", BODY[-10:]),
        ("bytes=-5", BODY[-5:]),
        ("bytes=299999-400000", BODY[-1:]),
    ):
        response = ranged(value)
        assert (response.status_code, response.content) == (206, expected)
        assert response.headers["content-range"].endswith("/300000")
    assert ranged("bytes=300000-").status_code == 416
    assert ranged("bytes=5-1").status_code == 200
    assert ranged("lines=1-2").status_code == 200
    head = router.client.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, "300000")
    etag = head.headers["etag"]
    assert router.client.get(url, headers={"If-None-Match": etag}).status_code == 304


def test_awkward_names_go_the_way_of_the_original(router: Server, bucket: str) -> None:
    router.put(bucket, "metadata", b"m" * 7)
    assert router.json(f"/buckets/{bucket}/metadata")["balls"][0]["key"] == "metadata"
    [size] = router.json(f"/buckets/{bucket}/metadata/size")
    assert (size["key"], size["size"]) == ("metadata", 7)
    router.put("data", f"{bucket}key", b"d")
    assert router.get(f"/buckets/data/{bucket}key").content == b"d"


def test_names_with_slashes_are_paths(router: Server, bucket: str) -> None:
    router.put(bucket, "a/b/c.txt", b"deep")
    assert router.get(f"/buckets/{bucket}/a/b/c.txt").content == b"deep"
    assert router.json(f"/buckets/{bucket}/metadata/a/b/c.txt")["metadata"]["size"] == 4
    assert router.json(f"/buckets/{bucket}/a/b/c.txt/size")[0]["size"] == 4
    assert router.keys(bucket) == ["a/b/c.txt"]
    assert router.delete(f"/buckets/{bucket}/a/b/c.txt").status_code == 200


def test_names_are_found_as_the_client_strips_them(router: Server, bucket: str) -> None:
    chunks = [b"0" * 50_000, b"1" * 50_000]
    router.put_ball(bucket, "my.file", chunks)
    assert router.get_ball(bucket, "myfile") == b"".join(chunks)
    found = router.json(f"/buckets/{bucket}/metadata/myfile/chunks")
    assert [chunk["key"] for chunk in found["chunks"]] == ["my.file_0", "my.file_1"]
    router.put_ball(bucket, "myfile", chunks)
    assert router.json(f"/buckets/{bucket}/metadata/myfile_0")["metadata"]["ball_id"] == "myfile"


def test_stripped_name_of_several_is_a_conflict_with_candidates(
    router: Server, bucket: str
) -> None:
    router.put(bucket, "a.b", b"1")
    router.put(bucket, "a b", b"2")
    response = router.get(f"/buckets/{bucket}/metadata/ab")
    assert response.status_code == 409
    assert response.json()["detail"]["candidates"] == ["a b", "a.b"]


def test_chunks_whose_keys_name_nothing_become_a_ball_and_keep_their_keys(
    router: Server, bucket: str
) -> None:
    chunks = [os.urandom(20_000), os.urandom(20_000)]
    whole = b"".join(chunks)
    for index, chunk in enumerate(chunks):
        tags = chunk_tags(index, 2, whole, len(chunk))
        router.put(bucket, sha256(chunk), chunk, ball="ball", tags=tags)
    assert router.keys(bucket) == [sha256(chunk) for chunk in chunks]
    for chunk in chunks:
        assert router.get(f"/buckets/{bucket}/{sha256(chunk)}").content == chunk
    assert router.get(f"/buckets/{bucket}/ball/merge").content == whole


def test_more_copies_than_the_bucket_has_are_made_on_demand(router: Server, bucket: str) -> None:
    answer = router.put(bucket, "k", b"small", replication_factor=3)
    assert len(answer["peer_ids"]) == 2
    assert len(router.json(f"/buckets/{bucket}/k/size")) == 2
