import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest

from mictlanfs.exposition import text_of
from mictlanfs_server import processmetrics
from mictlanfs_server.metering import BOUNDS_S, COARSE_S, FINE_S, Meters, RequestMeter, regrouped
from tests.support.metrics import samples_of


def scope_of(method: str = "GET", length: bytes | None = None) -> dict[str, Any]:
    headers = [(b"host", b"a")]
    if length is not None:
        headers.append((b"content-length", length))
    return {"type": "http", "method": method, "path": "/raw/path", "headers": headers}


class App:
    """Answers with `status` and a body in two parts."""

    def __init__(self, status: int = 200, route: object = None) -> None:
        self.status = status
        self.route = route

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.route is not None:
            scope["route"] = self.route
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await send({"type": "http.response.body", "body": b"de"})


class Route:
    path = "/template/{x}"


async def nothing(*_: Any) -> dict[str, Any]:
    return {}


async def drop(_: Any) -> None:
    return None


def run(meters: Meters, app: Any, handler: str | None, scope: dict[str, Any]) -> None:
    asyncio.run(meters.run(app, handler, scope, nothing, drop))


def samples(meters: Meters) -> Mapping[tuple[str | tuple[str, str], ...], float]:
    return samples_of(text_of(meters.families()))


def test_requests_are_counted_with_the_names_of_mictlanx() -> None:
    meters = Meters()
    run(meters, App(), "/a", scope_of("POST", b"10"))
    run(meters, App(201), "/a", scope_of("POST"))
    run(meters, App(404), "/a", scope_of("GET", b"x"))
    found = samples(meters)
    handler = ("handler", "/a")
    get, post = ("method", "GET"), ("method", "POST")
    assert found["http_requests_total", handler, post, ("status", "2xx")] == 2
    assert found["http_requests_total", handler, get, ("status", "4xx")] == 1
    assert found["http_request_size_bytes_count", handler] == 3
    assert found["http_request_size_bytes_sum", handler] == 10
    assert found["http_response_size_bytes_sum", handler] == 15
    assert found["http_request_duration_seconds_count", handler, post] == 2
    assert found["http_request_duration_seconds_bucket", handler, ("le", "+Inf"), post] == 2
    assert found[("http_request_duration_highr_seconds_count",)] == 3
    assert meters.answered("POST", "/a") == 2
    assert meters.answered("GET", "/a") == meters.answered("GET", "/b") == 0
    bounds = {
        dict(key[1:])["le"]  # type: ignore[arg-type]  # Pairs, behind the name.
        for key in found
        if key[0] == "http_request_duration_highr_seconds_bucket"
    }
    assert bounds == {*(str(float(bound)) for bound in FINE_S), "+Inf"}


def test_a_series_is_named_by_the_template_that_the_framework_found() -> None:
    meters = Meters()
    run(meters, App(route=Route()), None, scope_of())
    run(meters, App(404), None, scope_of())
    handlers = {
        dict(key[1:])["handler"]  # type: ignore[arg-type]  # As above.
        for key in samples(meters)
        if key[0] == "http_requests_total"
    }
    assert handlers == {"/template/{x}", "none"}


def test_a_client_that_hangs_up_is_counted_as_its_own_fault() -> None:
    async def silent(*_: Any) -> None:
        return None

    meters = Meters()
    run(meters, silent, "/a", scope_of())
    key = ("http_requests_total", ("handler", "/a"), ("method", "GET"), ("status", "4xx"))
    assert samples(meters)[key] == 1


def test_what_fails_is_counted_and_fails_all_the_same() -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    meters = Meters()
    with pytest.raises(ZeroDivisionError):
        run(meters, broken, "/a", scope_of())
    assert samples(meters)["http_request_size_bytes_count", ("handler", "/a")] == 1


def test_durations_go_into_the_bucket_whose_bound_they_do_not_pass() -> None:
    meter = RequestMeter()
    for duration_s in (0.0, BOUNDS_S[0], 0.1, 0.3, 100.0):
        meter.count(200, duration_s, 0, 0)
    assert meter.durations[0] == 2
    assert meter.durations[-1] == 1
    assert regrouped(meter.durations, COARSE_S) == [3, 1, 0, 1]
    assert sum(regrouped(meter.durations, FINE_S)) == 5
    assert set(COARSE_S) | set(FINE_S) <= set(BOUNDS_S)


def test_counting_costs_microseconds() -> None:
    """Two, on the machine of the authors; here only that nobody makes it ten times as much."""

    async def spent_s(count: int) -> float:
        meters, app = Meters(), App()
        scope = scope_of("POST", b"10")
        started_s = time.process_time()
        for _ in range(count):
            await meters.run(app, "/a", scope, nothing, drop)
        metered_s = time.process_time() - started_s
        started_s = time.process_time()
        for _ in range(count):
            await app(scope, nothing, drop)
        return (metered_s - (time.process_time() - started_s)) / count

    assert min(asyncio.run(spent_s(2000)) for _ in range(5)) < 20e-6


def test_the_process_tells_its_memory_and_time() -> None:
    found = {key[0] for key in samples_of(processmetrics.text())}
    assert {
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_start_time_seconds",
        "python_info",
    } <= found
