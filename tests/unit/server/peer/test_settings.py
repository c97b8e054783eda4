from pathlib import Path
from typing import Any

import pytest

from mictlanfs.errors import UsageError
from mictlanfs_server.peer.settings import PeerSettings

ROUTERS = "mictlanx://a@10.0.0.1:60666,b@10.0.0.2:60667/?protocol=http"


def settings(**values: Any) -> PeerSettings:
    return PeerSettings(**{"data": Path("/data"), "router": ROUTERS, **values})


def test_defaults_are_those_of_mictlanx() -> None:
    chosen = settings()
    assert (chosen.host, chosen.port, chosen.peer_id) == ("127.0.0.1", 24000, "mictlanx-peer-0")


def test_routers_keep_the_order_of_the_uri() -> None:
    assert settings().router_urls == ("http://10.0.0.1:60666", "http://10.0.0.2:60667")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"router": "http://10.0.0.1"}, "http://10.0.0.1"),
        ({"peer_id": ""}, "peer id"),
        ({"peer_id": "a\nb"}, "peer id"),
        ({"peer_id": "x" * 129}, "peer id"),
        ({"zone": "a\0"}, "zone"),
        ({"port": 65536}, "65536"),
        ({"port": -1}, "-1"),
        ({"capacity": -1}, "capacity"),
        ({"reserve": -1}, "reserve"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        settings(**values)


def test_without_fsync_nothing_is_waited_for() -> None:
    assert settings().is_fsynced
    assert not settings(fsync="never").is_fsynced
