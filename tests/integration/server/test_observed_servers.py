"""What real servers tell: metrics, traces, log files, from a file of variables."""

import json

import httpx

from mictlanfs import wire
from tests.support.localspaces import LocalSpace
from tests.support.metrics import samples_of
from tests.support.otlp import receiving

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_space_configured_by_a_file_is_counted_traced_and_logged(space: LocalSpace) -> None:
    with receiving() as receiver:
        (space.folder / ".env.local").write_text(
            "MICTLANX_ROUTER_OPENTELEMETRY=1\n"
            f"MICTLANX_JAEGER_ENDPOINT={receiver.url}\n"
            "MICTLANX_ROUTER_SERVICE_NAME=my-router\n"
            f"MICTLANX_ROUTER_LOG_PATH={space.folder}/logs\n"
            f"LOG_PATH={space.folder}/logs\n"
            "MICTLANX_SUMMONER_MODE=docker\n"
            "ELASTIC=true\n"
        )
        space.start("--peers", "1")
        router, peer = (
            f"http://127.0.0.1:{port}" for port in (space.record().port, *space.record().peer_ports)
        )
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        assert httpx.get(router + "/mictlanx" + wire.Path.STATUS, headers=headers).is_success
        assert httpx.get(peer + wire.Path.STATUS, headers=headers).is_success
        assert httpx.get(router + "/api/v4/peers/stats").is_success
        assert httpx.delete(router + "/api/v4/buckets/cats/bid/tom").is_success
        of_router = samples_of(httpx.get(router + "/metrics").text)
        of_peer = samples_of(httpx.get(peer + "/metrics").text)
        space.run("server", "stop")
    announced = ("handler", wire.Path.PEER_ANNOUNCE), ("method", "POST"), ("status", "2xx")
    assert of_router["http_requests_total", *announced] >= 1
    door = ("handler", "/api/v4/peers/stats"), ("method", "GET"), ("status", "2xx")
    assert of_router["http_requests_total", *door] == 1
    status = ("handler", wire.Path.STATUS), ("method", "GET"), ("status", "2xx")
    assert of_router["http_requests_total", *status] >= 1
    assert of_router["mictlanfs_peers", ("state", "up")] == 1
    assert of_peer["http_requests_total", *status] == 1
    assert of_peer[("mictlanfs_peer_registered",)] == 1

    followed = {span.service: span for span in receiver.spans if span.trace == TRACE}
    assert {span.name for span in followed.values()} == {f"GET {wire.Path.STATUS}"}
    assert set(followed) == {"my-router", "mictlanx-peer"}
    assert followed["my-router"].instance == "mictlanx-router-0"
    assert followed["mictlanx-peer"].instance == "mictlanx-peer-0"
    assert receiver.named(f"POST {wire.Path.PEER_ANNOUNCE}")
    [stats] = receiver.named("peer.stats")
    assert receiver.named("GET /api/v4/peers/stats")[0].trace == stats.trace

    said = {
        name: [json.loads(line) for line in (space.folder / "logs" / name).read_text().splitlines()]
        for name in ("mictlanx-router-0", "mictlanx-peer-0")
    }
    assert all(line["server"] == name for name, lines in said.items() for line in lines)
    assert any("MICTLANX_SUMMONER_MODE" in line["message"] for line in said["mictlanx-router-0"])
    events = {line["event"]: line for line in said["mictlanx-router-0"]}
    assert {"SERVICE.STARTUP", "SERVICE.SHUTDOWN"} <= set(events)
    deleted = events["DELETED.BY.BALL_ID"]
    assert (deleted["bucket_id"], deleted["ball_id"], deleted["n_deletes"]) == ("cats", "tom", 0)
    assert deleted["response_time"] >= 0
    assert any("ELASTIC" in line["message"] for line in said["mictlanx-peer-0"])
    assert (space.folder / "logs" / "mictlanx-router-0.error").read_text() == ""
