from pathlib import Path

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_server.router.settings import RouterSettings


def test_defaults_are_those_of_the_reference() -> None:
    settings = RouterSettings(Path("data"))
    assert (settings.host, settings.port) == ("127.0.0.1", 60666)
    assert settings.router_id == "mictlanx-router-0"
    assert settings.insecure is False


@pytest.mark.parametrize(
    "changes",
    [
        {"gc_grace_s": -1},
        {"snapshot_interval_s": -1},
        {"heartbeat_s": 30},
        {"heartbeat_s": 0},
        {"session_ttl_s": 1},
        {"lease_ttl_s": 0},
        {"lease_ttl_s": 30},
        {"peer_heartbeat_s": 3},
        {"peer_heartbeat_s": 0},
        {"peer_suspect_s": 11},
        {"peer_down_s": 2},
        {"popular_reads_per_min": 0},
        {"extra_copies_max": -1},
        {"extra_bytes_max": -1},
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RouterSettings(Path("data"), **changes)  # type: ignore[arg-type] # all are numbers


def test_chunks_may_be_deleted_at_once() -> None:
    assert RouterSettings(Path("data"), gc_grace_s=0).gc_grace_s == 0
