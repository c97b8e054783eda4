"""Requests of the MictlanX v4 interface for tests, exactly as its public client sends them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from mictlanfs.uri import parse_routers

PIECE_SIZE_BYTES = 256_000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def in_pieces(data: bytes) -> Iterator[bytes]:
    """A body of unknown length, as an async generator of the client gives it."""
    for start in range(0, len(data), PIECE_SIZE_BYTES):
        yield data[start : start + PIECE_SIZE_BYTES]


def chunk_tags(index: int, count: int, whole: bytes, size: int) -> dict[str, str]:
    """The tags of a chunk of a ball."""
    return {
        "index": str(index),
        "num_chunks": str(count),
        "full_checksum": sha256(whole),
        "chunk_size": str(size),
        "group_id": "ball",
    }


@dataclass
class Server:
    """A router, or a peer, that speaks the interface."""

    client: httpx.Client

    def url(self, path: str) -> str:
        return f"/api/v4{path}"

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(self.url(path), **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.client.post(self.url(path), **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self.client.delete(self.url(path), **options)

    def json(self, path: str, **options: Any) -> Any:
        """The JSON answer of a GET that succeeds."""
        response = self.get(path, **options)
        assert response.status_code == 200, f"{path}: {response.status_code} {response.text}"
        return response.json()

    def announce(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        ball: str = "",
        tags: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> httpx.Response:
        """The first step of a put; `changes` replace fields of its body."""
        body = {
            "bucket_id": bucket,
            "key": key,
            "ball_id": ball or key,
            "checksum": sha256(data),
            "producer_id": "client-1",
            "size": len(data),
            "tags": dict(tags or {}),
            "content_type": "application/octet-stream",
            "is_disabled": False,
            "replication_factor": 1,
            **changes,
        }
        return self.post(f"/buckets/{bucket}/metadata", json=body, headers=headers)

    def task(self, bucket: str, key: str, data: bytes, **more: Any) -> str:
        """The task of a first step that succeeds."""
        response = self.announce(bucket, key, data, **more)
        assert response.status_code == 200, response.text
        answer = response.json()
        return str(answer["tasks_ids"][0] if "tasks_ids" in answer else answer["task_id"])

    def send(self, task: str, data: bytes) -> httpx.Response:
        """The second step, as AsyncClient does it."""
        headers = {"Content-Type": "application/octet-stream", "Chunk-Size": "256kb"}
        return self.post(f"/buckets/data/{task}/chunked", content=in_pieces(data), headers=headers)

    def send_form(self, task: str, data: bytes, key: str = "key") -> httpx.Response:
        """The second step as a form."""
        return self.post(
            f"/buckets/data/{task}", files={"data": (key, data, "application/octet-stream")}
        )

    def put(self, bucket: str, key: str, data: bytes, **more: Any) -> Any:
        """Both steps; the answer of the second."""
        response = self.send(self.task(bucket, key, data, **more), data)
        assert response.status_code == 200, response.text
        return response.json()

    def put_ball(
        self, bucket: str, ball: str, chunks: Sequence[bytes], order: Sequence[int] | None = None
    ) -> None:
        """All chunks of a ball, in `order`."""
        whole = b"".join(chunks)
        for index in order if order is not None else range(len(chunks)):
            tags = chunk_tags(index, len(chunks), whole, len(chunks[index]))
            self.put(bucket, f"{ball}_{index}", chunks[index], ball=ball, tags=tags)

    def get_ball(self, bucket: str, ball: str) -> bytes:
        """The bytes of a ball, as AsyncClient.get fetches and verifies them."""
        first = self.json(f"/buckets/{bucket}/metadata/{ball}_0")["metadata"]
        pieces = {}
        for number in range(int(first["tags"]["num_chunks"])):
            found = self.json(f"/buckets/{bucket}/metadata/{ball}_{number}")["metadata"]
            headers = {"Chunk-Size": "256kb", "Accept-Encoding": "identity", "Force-Get": "0"}
            response = self.get(f"/buckets/{bucket}/{ball}_{number}", headers=headers)
            assert response.status_code == 200, response.text
            assert len(response.content) == found["size"]
            assert sha256(response.content) == found["checksum"]
            pieces[int(found["tags"]["index"])] = response.content
        whole = b"".join(pieces[index] for index in sorted(pieces))
        assert sha256(whole) == first["tags"]["full_checksum"]
        return whole

    def keys(self, bucket: str) -> list[str]:
        """The keys of a bucket."""
        return [ball["key"] for ball in self.json(f"/buckets/{bucket}/metadata")["balls"]]


def router_of(uri: str) -> Server:
    """The router of a space; its client is to be closed."""
    url = parse_routers(uri)[0].base_url
    return Server(httpx.Client(base_url=url, timeout=60, trust_env=False))


def peers_of(router: Server) -> list[Server]:
    """The peers of a space in order of their ids; their clients are to be closed."""
    peers = sorted(router.json("/peers")["available"], key=lambda peer: str(peer["peer_id"]))
    return [
        Server(
            httpx.Client(
                base_url=f"{peer['protocol']}://{peer['ip_addr']}:{peer['port']}",
                timeout=60,
                trust_env=False,
            )
        )
        for peer in peers
    ]
