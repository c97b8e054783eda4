"""Every row of the peer's table, by the exact requests and the exact fields of the answers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.v4.test_router import METADATA_FIELDS, PEER_STATS_FIELDS
from tests.support.v4 import Server, chunk_tags, peers_of, sha256

BODY = os.urandom(300_000)


def put_by_form(peer: Server, bucket: str, key: str, data: bytes) -> None:
    """Both steps as AsyncPeer does them: `is_disable`, no replication factor."""
    body = {
        "key": key,
        "size": len(data),
        "checksum": sha256(data),
        "tags": {"a": "b"},
        "producer_id": "me",
        "content_type": "text/plain",
        "ball_id": key,
        "bucket_id": bucket,
        "is_disable": False,
    }
    response = peer.post(f"/buckets/{bucket}/metadata", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(answer) == {"key", "service_time", "task_id", "node_id"}
    assert isinstance(answer["service_time"], int)
    assert answer["key"] == key
    response = peer.send_form(answer["task_id"], data, key)
    assert response.is_success, response.text


def test_object_put_on_a_peer_is_in_the_space(peer: Server, router: Server, bucket: str) -> None:
    put_by_form(peer, bucket, "k", BODY)
    assert router.get(f"/buckets/{bucket}/k").content == BODY
    found = router.json(f"/buckets/{bucket}/metadata/k")["metadata"]
    assert (found["content_type"], found["tags"]) == ("text/plain", {"a": "b"})


def test_raw_bytes_answer_has_seven_fields_and_the_first_copy_is_here(
    peer: Server, router: Server, bucket: str
) -> None:
    answer = peer.send(peer.task(bucket, "k", BODY), BODY).json()
    assert set(answer) == {
        *("node_id", "combined_key", "bucket_id", "key", "size", "throughput", "service_time"),
    }
    assert isinstance(answer["throughput"], float)
    assert isinstance(answer["service_time"], float)
    assert answer["combined_key"] == f"{bucket}@k"
    holders = [replica["peer_id"] for replica in router.json(f"/buckets/{bucket}/k/size")]
    assert answer["node_id"] in holders


def test_task_id_of_the_caller_is_adopted(peer: Server, bucket: str) -> None:
    headers = {"Task-Id": f"group-{bucket}", "Update": "0"}
    assert peer.task(bucket, "k", BODY, headers=headers) == f"group-{bucket}"
    assert peer.send(f"group-{bucket}", BODY).status_code == 200


def test_router_of_mictlanx_can_send_each_replica_by_itself(
    peer: Server, router: Server, bucket: str
) -> None:
    both = peers_of(router)
    headers = {"Task-Id": f"group-{bucket}"}
    with ThreadPoolExecutor(2) as pool:
        ids = list(pool.map(lambda p: p.task(bucket, "k", BODY, headers=headers), both))
    assert ids == [f"group-{bucket}"] * 2
    for each in both:
        assert each.send(f"group-{bucket}", BODY).status_code == 200
        each.client.close()
    assert peer.get(f"/buckets/{bucket}/k").content == BODY
    response = peer.announce(bucket, "k", b"other", headers=headers)
    assert (response.status_code, response.json()["detail"]["code"]) == (404, 666)
    assert peer.announce(bucket, "k", BODY).status_code == 404


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(9_000_000)])
def test_what_came_by_the_router_is_read_from_a_peer(
    peer: Server, router: Server, bucket: str, data: bytes
) -> None:
    router.put(bucket, "k", data, content_type="text/plain")
    response = peer.get(f"/buckets/{bucket}/k")
    assert (response.status_code, response.content) == (200, data)
    assert response.headers["content-type"] == "text/plain"
    answer = peer.json(f"/buckets/{bucket}/metadata/k")
    assert set(answer) == {"service_time", "peer_id", "local_peer_id", "metadata"}
    assert isinstance(answer["service_time"], int)
    assert set(answer["metadata"]) == METADATA_FIELDS
    assert answer["metadata"]["size"] == len(data)
    size = peer.json(f"/buckets/{bucket}/k/size")
    assert set(size) == {"bucket_id", "key", "peer_id", "size"}
    assert size["size"] == len(data)


def test_listing_and_group(peer: Server, bucket: str) -> None:
    chunks = [b"0" * 50_000, b"1" * 50_000]
    whole = b"".join(chunks)
    for index in (1, 0):
        tags = chunk_tags(index, 2, whole, 50_000)
        task = peer.task(bucket, f"ball_{index}", chunks[index], ball="ball", tags=tags)
        assert peer.send(task, chunks[index]).status_code == 200
    listing = peer.json(f"/buckets/{bucket}/metadata")
    assert isinstance(listing["peer_id"], str)
    assert [ball["key"] for ball in listing["balls"]] == ["ball_0", "ball_1"]
    group = peer.json(f"/buckets/{bucket}/metadata/ball/group")
    assert set(group) == {"bucket_id", "ball_id", "size", "balls"}
    assert (group["bucket_id"], group["ball_id"], group["size"]) == (bucket, "ball", 100_000)
    assert group["balls"] == listing["balls"]
    assert peer.json(f"/buckets/{bucket}/metadata/ball/chunks") == group
    assert peer.get(f"/buckets/{bucket}/metadata/none/group").status_code == 404


def test_deletes_are_counted_in_a_header(peer: Server, bucket: str) -> None:
    for key in ("k", "l"):
        put_by_form(peer, bucket, key, BODY)
    response = peer.delete(f"/buckets/{bucket}/k", headers={"Force": "1"})
    assert (response.is_success, response.headers["n-deletes"]) == (True, "2")
    assert peer.get(f"/buckets/{bucket}/k").status_code == 404
    response = peer.delete(f"/buckets/{bucket}/bid/l")
    assert (response.is_success, response.headers["n-deletes"]) == (True, "2")
    for path in ("k", "bid/l"):
        response = peer.delete(f"/buckets/{bucket}/{path}")
        assert (response.is_success, response.headers["n-deletes"]) == (True, "0")


def test_disable(peer: Server, bucket: str) -> None:
    put_by_form(peer, bucket, "k", BODY)
    assert peer.post(f"/buckets/{bucket}/k/disable").is_success
    assert peer.json(f"/buckets/{bucket}/metadata/k")["metadata"]["is_disabled"] is True


def test_replicate_tells_what_was_copied(peer: Server, router: Server, bucket: str) -> None:
    router.put(bucket, "k", BODY, tags={"a": "b"})
    answer = peer.post(f"/buckets/{bucket}/k/replicate")
    assert answer.status_code == 503, "both peers have it already"
    router.put(bucket, "small", b"inline", tags={"a": "b"})
    response = peer.post(f"/buckets/{bucket}/small/replicate")
    assert response.status_code == 200, response.text
    found = response.json()
    assert set(found) == {
        *("peer_id", "replica_peer_id", "bucket_id", "key", "size", "ok", "response_time"),
    }
    assert (found["ok"], found["size"]) == (True, 6)
    assert isinstance(found["response_time"], int)
    assert len(router.json(f"/buckets/{bucket}/small/size")) == 2
    metadata = router.json(f"/buckets/{bucket}/metadata/small")["metadata"]
    assert (metadata["tags"], metadata["checksum"]) == ({"a": "b"}, sha256(b"inline"))
    assert peer.get(f"/buckets/{bucket}/small").content == b"inline"


def test_statistics(peer: Server, bucket: str) -> None:
    put_by_form(peer, bucket, "k", BODY)
    stats = peer.json("/stats", params={"start": 0})
    assert set(stats) == PEER_STATS_FIELDS
    assert stats["used_disk"] >= len(BODY)
    ufs = peer.json("/stats/ufs")
    assert set(ufs) == {"total_disk", "used_disk", "disk_uf"}
    assert 0 < ufs["disk_uf"] < 1
    row = {"bucket_id": bucket, "key": "k", "size": len(BODY)}
    assert row in peer.json("/xballs", params={"start": 0})
    assert [bucket, "k", len(BODY)] in peer.json("/xballs/size", params={"start": 0})
    assert len(peer.json("/xballs", params={"start": 0, "end": 1})) == 1
    assert peer.json("/balls/len") == {"len": len(peer.json("/xballs"))}
    state = peer.json("/peers/state", params={"start": 0})
    assert {frozenset(node) for node in state["nodes"]} == {
        frozenset({"node_id", "ip_addr", "port"})
    }
    held = state["balls"][f"{bucket}@k"]
    assert held["size"] == len(BODY)
    assert sorted(held["locations"]) == sorted(node["node_id"] for node in state["nodes"])


def test_node_is_answered_as_it_was_sent(peer: Server) -> None:
    node = {
        "id": "p",
        "disk": 10,
        "memory": 20,
        "ip_addr": "127.0.0.1",
        "port": 24003,
        "weight": 1.0,
        "used_disk": 1,
        "used_memory": 2,
    }
    assert peer.post("/nodes", json=node).json() == node


def test_tasks_are_flushed(peer: Server, bucket: str) -> None:
    task = peer.task(bucket, "k", BODY)
    assert peer.delete("/tasks").is_success
    assert peer.send(task, BODY).status_code == 404


def test_health_and_description(peer: Server) -> None:
    assert peer.client.get("/health").is_success
    paths = peer.client.get("/openapi.json").json()["paths"]
    assert "/api/v4/buckets/{bucket_id}/{key}/replicate" in paths
    assert peer.client.get("/docs").status_code == 200


def test_bad_input_is_refused_as_by_the_router(peer: Server, bucket: str) -> None:
    assert peer.send("nothing", BODY).status_code == 404
    for changes in ({"size": 7}, {"checksum": "0" * 64}):
        response = peer.send(peer.task(bucket, "k", BODY, **changes), BODY)
        assert (response.status_code, response.json()["detail"]["code"]) == (400, 400)
    assert peer.announce(bucket, "k", BODY, size="x").status_code == 422
    assert peer.json(f"/buckets/{bucket}/metadata")["balls"] == []
