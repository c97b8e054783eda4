"""A space of `server start` whose router lost its directory, restored from those of its peers."""

import json
import os
import shutil
from pathlib import Path

from tests.support.localspaces import local_space


def test_a_space_is_restored_from_folders_and_starts_again(tmp_path: Path) -> None:
    small, large = os.urandom(900), os.urandom(300_000)
    (tmp_path / "small").write_bytes(small)
    (tmp_path / "large").write_bytes(large)
    with local_space(tmp_path) as space:
        space.start("--peers", "2")
        space.run("bucket", "create", "b")
        space.run("put", "small", "large", "b/")
        space.run("meta", "snapshot")
        space.run("put", "small", "b/later")
        space.run("server", "stop", "--data", "data")
        # With the router's directory there it is refused.
        folders = sorted(space.data.glob("peer-*"))
        restore: tuple[str | Path, ...] = (
            "server",
            "restore",
            "--data",
            "data/router",
            "--from-data",
            *folders,
        )
        assert "not empty" in space.run(*restore, status=2)
        shutil.rmtree(space.data / "router")
        assert "is as it was at 20" in space.run(*restore)

        # Nothing is changed before the lease time is over.
        space.start("--lease-ttl", "1")
        assert space.run("ls", "b").split() == ["large", "small"]
        (tmp_path / "back").mkdir()
        space.run("get", "b/small", "b/large", "back")
        assert (tmp_path / "back" / "small").read_bytes() == small
        assert (tmp_path / "back" / "large").read_bytes() == large
        space.run("put", "small", "b/new")
        status = json.loads(space.run("status", "--json"))
        assert status["problems"] == []
        space.run("meta", "dump", "--data", "data", "dump.jsonl")
        assert '"name":"new"' in (tmp_path / "dump.jsonl").read_text()
