"""A router of the v4 API in memory, as the public one answers.

Written from the interface reference, with the quirks that a client meets: data without a length,
500 around a 404, copies listed twice, empty records left out of listings, a second put of a key
taken as another copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.support.v4server import (
    Answer,
    RefusalError,
    Request,
    V4Server,
    checked_metadata,
    form_field,
)
from tests.support.v4space import Record, Task, V4Space, stats_of


class V4Router(V4Server):
    """A router over a space; several may share one.

    Attributes:
        is_taking_copies: a second put of a key goes to a peer that has not got it, as in the
            public router; otherwise it is refused.
        has_cache: keep what is put, and give it out without a look at the peers.
    """

    def __init__(self, space: V4Space) -> None:
        super().__init__(space)
        self.is_taking_copies = True
        self.has_cache = False

    def routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        buckets = "/api/v4/buckets"
        return [
            ("POST", f"{buckets}/data/([^/]+)/chunked", self.put_chunked),
            ("POST", f"{buckets}/([^/]+)/metadata", self.put_metadata),
            ("POST", f"{buckets}/data/([^/]+)", self.put_data),
            ("POST", f"{buckets}/([^/]+)/([^/]+)/disable", self.disable),
            ("POST", "/api/v4/u/buckets/([^/]+)/([^/]+)", self.update),
            ("GET", f"{buckets}/([^/]+)/metadata", self.list_bucket),
            ("GET", f"{buckets}/([^/]+)/metadata/([^/]+)", self.get_metadata),
            ("GET", f"{buckets}/([^/]+)/metadata/([^/]+)/chunks", self.get_chunks),
            ("GET", f"{buckets}/([^/]+)/([^/]+)", self.get),
            ("GET", f"{buckets}/([^/]+)/([^/]+)/merge", self.merge),
            ("GET", f"{buckets}/([^/]+)/([^/]+)/size", self.get_size),
            ("DELETE", f"{buckets}/([^/]+)/([^/]+)", self.delete),
            ("DELETE", f"{buckets}/([^/]+)/bid/([^/]+)", self.delete_ball),
            ("GET", "/api/v4/peers", self.get_peers),
            ("POST", "/api/v4/xpeers", self.add_peers),
            ("DELETE", "/api/v4/xpeers", self.delete_peers),
            ("GET", "/api/v4/peers/stats", self.get_stats),
            ("GET", "/api/v4/cache", self.get_cache),
            ("GET", "/api/v4/cache/stats", self.get_cache_stats),
            ("DELETE", "/api/v4/cache/reset", self.reset_cache),
        ]

    def put_metadata(self, request: Request, bucket: str) -> Answer:
        metadata = checked_metadata(request, flag="is_disabled")
        if metadata["bucket_id"] != bucket:
            raise RefusalError(400, "bucket mismatch")
        key = metadata["key"]
        holders = self.space.holders(bucket, key)
        free = [peer for peer in self.space.peers if peer not in holders]
        if not free or (holders and not self.is_taking_copies):
            raise RefusalError(
                404,
                {
                    "msg": "No available peers.",
                    "suggestion": "Add a peer.",
                    "bucket_id": bucket,
                    "key": key,
                    "replicas": holders,
                    "code": 666,
                },
            )
        chosen = free[: metadata.pop("replication_factor", 1)]
        task = f"task{next(self.space.numbers)}"
        self.space.tasks[task] = Task(metadata, chosen)
        return Answer(
            content={
                "key": key,
                "service_time": 0.001,
                "tasks_ids": [task],
                "bucket_id": bucket,
                "replicas": chosen,
                "extra": {},
            }
        )

    def _store(self, task_id: str, data: bytes) -> tuple[Task, list[str]]:
        task = self.space.tasks.pop(task_id)
        bucket, key = task.metadata["bucket_id"], task.metadata["key"]
        taken = [peer for peer in task.peer_ids if peer not in self.space.failing_peers]
        for peer in taken:
            self.space.peers[peer][bucket, key] = Record(task.metadata, data)
        if self.has_cache:
            self.space.router_cache[bucket, key] = data
        return task, taken

    def put_chunked(self, request: Request, task_id: str) -> Answer:
        if task_id not in self.space.tasks:
            raise RefusalError(500, f"404: no task {task_id}")
        task, taken = self._store(task_id, request.body)
        bucket, key = task.metadata["bucket_id"], task.metadata["key"]
        return Answer(
            content={
                "peer_ids": taken,
                "combined_key": f"{bucket}@{key}",
                "bucket_id": bucket,
                "key": key,
                "size": task.metadata["size"],
            }
        )

    def put_data(self, request: Request, task_id: str) -> Answer:
        if task_id not in self.space.tasks:
            raise RefusalError(404, f"no task {task_id}")
        data = form_field(request, "data")
        if len(data) != self.space.tasks[task_id].metadata["size"]:
            raise RefusalError(400, "wrong size")
        self._store(task_id, data)
        return Answer(201)

    def disable(self, request: Request, bucket: str, key: str) -> Answer:
        for peer in self.space.holders(bucket, key):
            self.space.peers[peer][bucket, key].metadata["is_disabled"] = True
        return Answer(204)

    def update(self, request: Request, bucket: str, key: str) -> Answer:
        metadata = checked_metadata(request, flag="is_disabled")
        for peer in self.space.holders(bucket, key):
            self.space.peers[peer][bucket, key].metadata = metadata
        return Answer(204)

    def list_bucket(self, request: Request, bucket: str) -> Answer:
        rows = [
            record.metadata
            for (found, _), records in self.space.records().items()
            for record in records
            if found == bucket and record.metadata["size"] > 0
        ]
        return Answer(
            content={"bucket_id": bucket, "peers_ids": [*self.space.peers], "balls": rows}
        )

    def _found(self, bucket: str, key: str) -> Record:
        record = self.space.record(bucket, key)
        if record is None:
            raise RefusalError(404, f"no {bucket}@{key}")
        return record

    def get_metadata(self, request: Request, bucket: str, key: str) -> Answer:
        if self.space.record(bucket, key) is None:
            # The public router wraps its own 404.
            raise RefusalError(500, f"404: no {bucket}@{key}")
        peer = self.space.holders(bucket, key)[0]
        metadata = self._found(bucket, key).metadata
        return Answer(
            content={
                "service_time": 1,
                "peer_id": peer,
                "local_peer_id": peer,
                "metadata": metadata,
            }
        )

    def get_chunks(self, request: Request, bucket: str, ball: str) -> Answer:
        rows = [
            record.metadata
            for (found, _), records in self.space.records().items()
            for record in records
            if found == bucket and record.metadata["ball_id"] == ball
        ]
        if not rows:
            raise RefusalError(404, f"no {bucket}@{ball}")
        rows.sort(key=lambda row: int(row["tags"].get("updated_at", "0")))
        size = sum({row["key"]: row["size"] for row in rows}.values())
        return Answer(
            content={
                "bucket_id": bucket,
                "ball_id": ball,
                "size": f"{size} bytes",
                "size_bytes": size,
                "checksum": rows[0]["tags"].get("full_checksum", ""),
                "chunks": rows,
            }
        )

    def get(self, request: Request, bucket: str, key: str) -> Answer:
        record = self._found(bucket, key)
        cached = self.space.router_cache.get((bucket, key))
        if cached is not None and request.headers.get("force-get", "0") != "1":
            return Answer(data=cached)
        return Answer(data=record.data)

    def merge(self, request: Request, bucket: str, ball: str) -> Answer:
        first = self._found(bucket, f"{ball}_0")
        count = int(first.metadata["tags"]["num_chunks"])
        parts = [self._found(bucket, f"{ball}_{i}").data for i in range(count)]
        return Answer(data=b"".join(parts))

    def get_size(self, request: Request, bucket: str, key: str) -> Answer:
        size = self._found(bucket, key).metadata["size"]
        return Answer(
            content=[
                {"bucket_id": bucket, "key": key, "peer_id": peer, "size": size}
                for peer in self.space.holders(bucket, key)
            ]
        )

    def delete(self, request: Request, bucket: str, key: str) -> Answer:
        holders = self.space.holders(bucket, key)
        if not holders:
            raise RefusalError(404, f"no {bucket}@{key}")
        for peer in holders:
            del self.space.peers[peer][bucket, key]
        return Answer(content={"n_deletes": len(holders), "key": key})

    def delete_ball(self, request: Request, bucket: str, ball: str) -> Answer:
        count = 0
        for records in self.space.peers.values():
            for name, record in list(records.items()):
                if name[0] == bucket and record.metadata["ball_id"] == ball:
                    del records[name]
                    count += 1
        return Answer(content={"n_deletes": count, "ball_id": ball})

    def get_peers(self, request: Request) -> Answer:
        peers = [
            {"peer_id": peer, "ip_addr": peer, "port": 24000, "protocol": "http", "api_version": 4}
            for peer in self.space.peers
        ]
        return Answer(content={"available": peers, "unavailable": []})

    def add_peers(self, request: Request) -> Answer:
        for peer in json.loads(request.body):
            assert peer.keys() == {"protocol", "peer_id", "hostname", "port"}
            self.space.peers[peer["peer_id"]] = {}
        return Answer(204)

    def delete_peers(self, request: Request) -> Answer:
        for peer in json.loads(request.body):
            self.space.peers.pop(peer, None)
        return Answer(204)

    def get_stats(self, request: Request) -> Answer:
        return Answer(content={peer: stats_of(self.space, peer) for peer in self.space.peers})

    def get_cache(self, request: Request) -> Answer:
        if not self.has_cache:
            return Answer(content={"keys": None})
        return Answer(content={"keys": ["@".join(name) for name in self.space.router_cache]})

    def get_cache_stats(self, request: Request) -> Answer:
        used = sum(map(len, self.space.router_cache.values()))
        return Answer(content={"total": 1000, "used": used, "available": 1000 - used, "uf": 0.5})

    def reset_cache(self, request: Request) -> Answer:
        self.space.router_cache.clear()
        return Answer(204)
