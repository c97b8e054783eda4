from prometheus_client.parser import text_string_to_metric_families

from mictlanfs.exposition import (
    HISTOGRAM,
    SUMMARY,
    Family,
    counter,
    gauge,
    gauges,
    text_of,
    total,
)
from tests.support.metrics import samples_of

# What follows is read by the library of Prometheus itself.


def test_every_kind_is_read_as_it_was_meant() -> None:
    latency = Family("latency_seconds", "How long.", HISTOGRAM)
    latency.add_histogram((0.1, 1), [2, 0, 3], 4.5, {"handler": "/x"})
    size = Family("size_bytes", "How large.", SUMMARY)
    size.add_summary(2, 100, {})
    families = [gauge("a", "A.", 1.5), total("b_total", "B.", 3), latency, size]
    text = text_of(families)
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert kinds == {
        "a": "gauge",
        "b": "counter",
        "latency_seconds": "histogram",
        "size_bytes": "summary",
    }
    handler = ("handler", "/x")
    assert samples_of(text) == {
        ("a",): 1.5,
        ("b_total",): 3,
        ("latency_seconds_bucket", handler, ("le", "0.1")): 2,
        ("latency_seconds_bucket", handler, ("le", "1.0")): 2,
        ("latency_seconds_bucket", handler, ("le", "+Inf")): 5,
        ("latency_seconds_count", handler): 5,
        ("latency_seconds_sum", handler): 4.5,
        ("size_bytes_count",): 2,
        ("size_bytes_sum",): 100,
    }


def test_labels_may_hold_anything() -> None:
    awkward = 'a"b\\c\nd é'
    text = text_of([gauges("a", 'Help with "quotes",\\ and\nlines.', {awkward: 1}, "label")])
    assert samples_of(text) == {("a", ("label", awkward)): 1}
    [family] = text_string_to_metric_families(text)
    assert family.documentation == 'Help with "quotes",\\ and\nlines.'


def test_large_numbers_lose_nothing() -> None:
    text = text_of([counter("bytes_total", "B.", {"x": 2**53 - 1}, "source")])
    assert samples_of(text) == {("bytes_total", ("source", "x")): 2**53 - 1}


def test_a_truth_is_a_number() -> None:
    assert "a 1.0\n" in text_of([gauge("a", "A.", True)])
