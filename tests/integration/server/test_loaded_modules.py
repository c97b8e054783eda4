"""What running servers have loaded, whatever they were asked: the interpreter itself reports it."""

from pathlib import Path

import pytest

from tests.support.spaces import LooseServers, free_ports, mictlanfs, wait_until

# Of the loop that the servers are not on, and of the stock transport that they need for TLS only.
NEVER = {"trio", "httpcore", "anyio._backends._trio"}


def loaded(log: Path) -> set[str]:
    """The modules that a process with PYTHONPROFILEIMPORTTIME has reported to `log`."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def chunk_count(folder: Path) -> int:
    chunks = folder / "peer-0" / "chunks"
    return sum(path.is_file() for path in chunks.rglob("*"))


def test_a_router_and_a_peer_at_work_have_loaded_no_other_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = LooseServers(tmp_path)
    router_port, peer_port = free_ports(2)
    source = tmp_path / "source"
    source.write_bytes(bytes(300_000))
    try:
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPROFILEIMPORTTIME", "1")
            servers.start_router(router_port, "--gc-grace", "0")
            servers.start_peer(0, peer_port)
        servers.wait_for_peers(1)
        # The router deletes the chunk from the peer: a request of its own.
        options = ("--uri", servers.uri)
        mictlanfs("bucket", "create", "bucket", "--replicas", "1", *options)
        mictlanfs("put", source, "bucket/ball", *options)
        assert chunk_count(tmp_path) == 1
        mictlanfs("rm", "bucket/ball", *options)
        wait_until(lambda: chunk_count(tmp_path) == 0, "the router deleted the chunk")
    finally:
        servers.stop()
    for name in ("router", "peer-0"):
        modules = loaded(tmp_path / f"{name}.log")
        assert "mictlanfs.client.loops.onasyncio" in modules
        assert not modules & NEVER
