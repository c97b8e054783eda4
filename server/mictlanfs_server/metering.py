"""What a server counts of its requests, at the price of a microsecond each.

::

    request -> Meters.app -> application
                  | status, sizes, duration
                  v
            RequestMeter, one for each pair of method and route -> families(), when somebody asks

Owns the numbers and the names of metrics, which are those of MictlanX (the defaults of its
instrumentator); `exposition` writes them. The handler of a series is always the template of a
route, never a path, so that there are as many series as routes. All happens in the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from time import perf_counter
from typing import Any, Final

from msgspec import Struct

from mictlanfs.exposition import COUNTER, HISTOGRAM, SUMMARY, Family

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# Buckets of MictlanX's metric with few labels, and of the one with many.
FINE_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5),
    *(3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),
)
COARSE_S: Final = (0.1, 0.5, 1)
# Ours reach lower: most requests take less than the least of those. They contain both.
BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, *FINE_S)
NO_HANDLER: Final = "none"
# What a request is counted as that ends without an answer: its client hung up.
_NO_ANSWER: Final = 499
_LENGTH: Final = b"content-length"


class RequestMeter:
    """The numbers of one route and method.

    Attributes:
        statuses: answers by the hundreds of their status.
        durations: requests by bucket of `BOUNDS_S`; one more for those above.
        duration_s: of all together.
        received_bytes, sent_bytes: bodies, as far as they were announced and sent.
    """

    __slots__ = ("duration_s", "durations", "received_bytes", "sent_bytes", "statuses")

    def __init__(self) -> None:
        self.statuses = [0] * 10
        self.durations = [0] * (len(BOUNDS_S) + 1)
        self.duration_s = 0.0
        self.received_bytes = 0
        self.sent_bytes = 0

    def count(self, status: int, duration_s: float, received: int, sent: int) -> None:
        """Take note of a request. `status` below 1000, sizes in bytes."""
        self.statuses[status // 100] += 1
        self.durations[bisect_left(BOUNDS_S, duration_s)] += 1
        self.duration_s += duration_s
        self.received_bytes += received
        self.sent_bytes += sent


class Meters:
    """All requests of one server."""

    def __init__(self) -> None:
        self._meters: dict[str, dict[str, RequestMeter]] = {}

    def of(self, method: str, template: str) -> RequestMeter:
        """The meter of a route."""
        try:
            return self._meters[method][template]
        except KeyError:
            meter = self._meters.setdefault(method, {})[template] = RequestMeter()
            return meter

    async def run(
        self, app: Application, template: str | None, scope: Message, receive: Receive, send: Send
    ) -> None:
        """Let `app` answer an HTTP request, and count it.

        Args:
            app: the application.
            template: of the route; None: that of the one which the framework finds.
            scope: of the request. The framework adds `route` to it, this `template`: for who looks
                at the request afterwards. This and the rest as in ASGI.
            receive: gives the request.
            send: takes the answer.
        """
        started_s = perf_counter()
        sent = _Sent(send)
        try:
            await app(scope, receive, sent)
        finally:
            if template is None:
                template = getattr(scope.get("route"), "path", NO_HANDLER)
            scope["template"] = template
            self.of(scope["method"], template).count(
                sent.status, perf_counter() - started_s, _announced(scope), sent.size
            )

    def families(self) -> list[Family]:
        """The metrics as they are now."""
        return [*self._counts(), *self._durations()]

    def answered(self, method: str, handler: str) -> int:
        """How many requests of a route had success."""
        return self.of(method, handler).statuses[2]

    def _all(self) -> Iterator[tuple[str, str, RequestMeter]]:
        for method, meters in self._meters.items():
            for handler, meter in meters.items():
                # One that was only asked for is no series.
                if any(meter.statuses):
                    yield method, handler, meter

    def _counts(self) -> Iterable[Family]:
        requests = Family(
            "http_requests_total",
            "Total number of requests by method, status and handler.",
            COUNTER,
        )
        sizes: dict[str, list[int]] = {}
        for method, handler, meter in self._all():
            for hundreds, count in enumerate(meter.statuses):
                if count:
                    labels = {"handler": handler, "method": method, "status": f"{hundreds}xx"}
                    requests.add(count, labels)
            of_handler = sizes.setdefault(handler, [0, 0, 0])
            of_handler[0] += sum(meter.statuses)
            of_handler[1] += meter.received_bytes
            of_handler[2] += meter.sent_bytes
        received = Family(
            "http_request_size_bytes", "Content length of requests by handler.", SUMMARY
        )
        sent = Family("http_response_size_bytes", "Bytes of answers by handler.", SUMMARY)
        for handler, (count, taken, given) in sizes.items():
            received.add_summary(count, taken, {"handler": handler})
            sent.add_summary(count, given, {"handler": handler})
        return requests, received, sent

    def _durations(self) -> Iterable[Family]:
        by_route = Family(
            "http_request_duration_seconds", "Latency by handler and method.", HISTOGRAM
        )
        ours = Family(
            "mictlanfs_request_duration_seconds",
            "Latency by handler and method, in buckets for short requests.",
            HISTOGRAM,
        )
        counts, seconds = [0] * (len(BOUNDS_S) + 1), 0.0
        for method, handler, meter in self._all():
            labels = {"handler": handler, "method": method}
            seconds += meter.duration_s
            counts = [a + b for a, b in zip(counts, meter.durations, strict=True)]
            coarse = regrouped(meter.durations, COARSE_S)
            by_route.add_histogram(COARSE_S, coarse, meter.duration_s, labels)
            ours.add_histogram(BOUNDS_S, meter.durations, meter.duration_s, labels)
        together = Family(
            "http_request_duration_highr_seconds", "Latency of all requests.", HISTOGRAM
        )
        together.add_histogram(FINE_S, regrouped(counts, FINE_S), seconds, {})
        return by_route, together, ours


def regrouped(counts: list[int], bounds: tuple[float, ...]) -> list[int]:
    """Counts by bucket of `BOUNDS_S` as those by bucket of `bounds`, which are among these."""
    grouped = [0] * (len(bounds) + 1)
    for bound, count in zip((*BOUNDS_S, float("inf")), counts, strict=True):
        grouped[bisect_left(bounds, bound)] += count
    return grouped


class _Sent(Struct):
    """Passes on what an application sends, and looks at it.

    Attributes:
        send: takes it.
        status: of the answer.
        size: bytes of its body so far.
    """

    send: Send
    status: int = _NO_ANSWER
    size: int = 0

    # Not a coroutine of its own: that would be one more to wait in for each message.
    def __call__(self, message: Message) -> Awaitable[None]:
        """Send."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.size += len(message.get("body", b""))
        return self.send(message)


def _announced(scope: Message) -> int:
    """The length of the request's body, 0 when the client does not say."""
    for name, value in scope["headers"]:
        if name == _LENGTH:
            return int(value) if value.isdigit() else 0
    return 0
