"""A storage peer of the v4 API in memory."""

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
from tests.support.v4space import Json, Record, Task, V4Space, stats_of


class V4Peer(V4Server):
    """The peer `peer_id` of a space."""

    def __init__(self, space: V4Space, peer_id: str) -> None:
        super().__init__(space)
        self.peer_id = peer_id

    @property
    def records(self) -> dict[tuple[str, str], Record]:
        return self.space.peers[self.peer_id]

    def routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        buckets = "/api/v4/buckets"
        return [
            ("POST", f"{buckets}/data/([^/]+)/chunked", self.put_chunked),
            ("POST", f"{buckets}/([^/]+)/metadata", self.put_metadata),
            ("POST", f"{buckets}/data/([^/]+)", self.put_data),
            ("POST", f"{buckets}/([^/]+)/([^/]+)/disable", self.disable),
            ("POST", f"{buckets}/([^/]+)/([^/]+)/replicate", self.replicate),
            ("GET", f"{buckets}/([^/]+)/metadata", self.list_bucket),
            ("GET", f"{buckets}/([^/]+)/metadata/([^/]+)", self.get_metadata),
            ("GET", f"{buckets}/([^/]+)/metadata/([^/]+)/group", self.get_group),
            ("GET", f"{buckets}/([^/]+)/([^/]+)", self.get),
            ("GET", f"{buckets}/([^/]+)/([^/]+)/size", self.get_size),
            ("DELETE", f"{buckets}/([^/]+)/([^/]+)", self.delete),
            ("DELETE", f"{buckets}/([^/]+)/bid/([^/]+)", self.delete_ball),
            ("GET", "/api/v4/stats", self.get_stats),
            ("GET", "/api/v4/stats/ufs", self.get_ufs),
            ("GET", "/api/v4/xballs", self.get_balls),
            ("GET", "/api/v4/xballs/size", self.get_ball_sizes),
            ("GET", "/api/v4/balls/len", self.get_len),
            ("GET", "/api/v4/peers/state", self.get_state),
            ("POST", "/api/v4/nodes", self.add_node),
            ("DELETE", "/api/v4/tasks", self.flush),
        ]

    def put_metadata(self, request: Request, bucket: str) -> Answer:
        metadata = checked_metadata(request, flag="is_disable")
        key = metadata["key"]
        task = request.headers.get("task-id") or f"task{next(self.space.numbers)}"
        self.space.tasks[task] = Task(metadata, [self.peer_id])
        content = {"key": key, "service_time": 1, "task_id": task, "node_id": self.peer_id}
        return Answer(content=content)

    def _store(self, task_id: str, data: bytes) -> Task:
        if task_id not in self.space.tasks:
            raise RefusalError(404, f"no task {task_id}")
        task = self.space.tasks.pop(task_id)
        self.records[task.metadata["bucket_id"], task.metadata["key"]] = Record(task.metadata, data)
        return task

    def put_chunked(self, request: Request, task_id: str) -> Answer:
        metadata = self._store(task_id, request.body).metadata
        bucket, key = metadata["bucket_id"], metadata["key"]
        return Answer(
            content={
                "node_id": self.peer_id,
                "combined_key": f"{bucket}@{key}",
                "bucket_id": bucket,
                "key": key,
                "size": metadata["size"],
                "throughput": 1e6,
                "service_time": 0.5,
            }
        )

    def put_data(self, request: Request, task_id: str) -> Answer:
        self._store(task_id, form_field(request, "data"))
        return Answer(200)

    def _found(self, bucket: str, key: str) -> Record:
        if (bucket, key) not in self.records:
            raise RefusalError(404, {"msg": f"no {bucket}@{key}", "code": 404})
        return self.records[bucket, key]

    def disable(self, request: Request, bucket: str, key: str) -> Answer:
        self._found(bucket, key).metadata["is_disabled"] = True
        return Answer(204)

    def replicate(self, request: Request, bucket: str, key: str) -> Answer:
        record = self._found(bucket, key)
        other = next(peer for peer in self.space.peers if peer != self.peer_id)
        self.space.peers[other][bucket, key] = record
        return Answer(
            content={
                "peer_id": self.peer_id,
                "replica_peer_id": other,
                "bucket_id": bucket,
                "key": key,
                "size": record.metadata["size"],
                "ok": True,
                "response_time": 3,
            }
        )

    def _rows(self, accepts: Callable[[dict[str, Json]], bool]) -> list[dict[str, Json]]:
        return [r.metadata for r in self.records.values() if accepts(r.metadata)]

    def list_bucket(self, request: Request, bucket: str) -> Answer:
        rows = self._rows(lambda metadata: bool(metadata["bucket_id"] == bucket))
        return Answer(content={"peer_id": self.peer_id, "balls": rows})

    def get_metadata(self, request: Request, bucket: str, key: str) -> Answer:
        return Answer(
            content={
                "service_time": 1,
                "peer_id": self.peer_id,
                "local_peer_id": self.peer_id,
                "metadata": self._found(bucket, key).metadata,
            }
        )

    def get_group(self, request: Request, bucket: str, ball: str) -> Answer:
        rows = self._rows(lambda m: bool(m["bucket_id"] == bucket and m["ball_id"] == ball))
        size = sum(row["size"] for row in rows)
        return Answer(content={"bucket_id": bucket, "ball_id": ball, "size": size, "balls": rows})

    def get(self, request: Request, bucket: str, key: str) -> Answer:
        return Answer(data=self._found(bucket, key).data)

    def get_size(self, request: Request, bucket: str, key: str) -> Answer:
        size = self._found(bucket, key).metadata["size"]
        content = {"bucket_id": bucket, "key": key, "peer_id": self.peer_id, "size": size}
        return Answer(content=content)

    def delete(self, request: Request, bucket: str, key: str) -> Answer:
        self._found(bucket, key)
        del self.records[bucket, key]
        return Answer(204, headers={"n-deletes": "1"})

    def delete_ball(self, request: Request, bucket: str, ball: str) -> Answer:
        rows = self._rows(lambda m: bool(m["bucket_id"] == bucket and m["ball_id"] == ball))
        for row in rows:
            del self.records[bucket, row["key"]]
        # The router reads a header that is not there as -1.
        return Answer(204, headers={"n-deletes": str(len(rows))} if rows else {})

    def _page(self, request: Request) -> list[dict[str, Json]]:
        rows = self._rows(lambda _: True)
        end = request.query.get("end")
        return rows[int(request.query["start"]) : None if end is None else int(end)]

    def get_stats(self, request: Request) -> Answer:
        return Answer(content=stats_of(self.space, self.peer_id))

    def get_ufs(self, request: Request) -> Answer:
        return Answer(content={"total_disk": 100, "used_disk": 25, "disk_uf": 0.25})

    def get_balls(self, request: Request) -> Answer:
        fields = ("bucket_id", "key", "size")
        return Answer(content=[{name: row[name] for name in fields} for row in self._page(request)])

    def get_ball_sizes(self, request: Request) -> Answer:
        rows = self._page(request)
        return Answer(content=[[row["bucket_id"], row["key"], row["size"]] for row in rows])

    def get_len(self, request: Request) -> Answer:
        return Answer(content={"len": len(self.records)})

    def get_state(self, request: Request) -> Answer:
        nodes = [{"node_id": p, "ip_addr": "127.0.0.1", "port": 24000} for p in self.space.peers]
        balls = {
            row["key"]: {"locations": [self.peer_id], "size": row["size"]}
            for row in self._page(request)
        }
        return Answer(content={"nodes": nodes, "balls": balls})

    def add_node(self, request: Request) -> Answer:
        return Answer(content=json.loads(request.body))

    def flush(self, request: Request) -> Answer:
        self.space.tasks.clear()
        return Answer(204)
