"""Metrics in the text format of Prometheus, from plain values.

Owns the format only: who counts keeps numbers and makes families of them when somebody asks.
Source: the text-based exposition format, version 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE, HISTOGRAM, SUMMARY = "counter", "gauge", "histogram", "summary"

Labels = Mapping[str, str]
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Family:
    """A metric with all its series.

    Attributes:
        name: with the unit at its end; of a counter, `_total` behind that.
        help: one sentence.
        kind: `counter`, `gauge`, `histogram` or `summary`.
        lines: one series each: suffix behind the name, labels, value.
    """

    def __init__(
        self, name: str, text: str, kind: str, lines: Iterable[tuple[str, Labels, float]] = ()
    ) -> None:
        self.name = name
        self.help = text
        self.kind = kind
        self.lines = list(lines)

    def add(self, value: float, labels: Labels | None = None) -> None:
        """A series of a counter or gauge."""
        self.lines.append(("", labels or {}, value))

    def add_summary(self, count: int, total: float, labels: Labels) -> None:
        """A series of a summary without quantiles."""
        self.lines.extend([("_count", labels, count), ("_sum", labels, total)])

    def add_histogram(
        self, bounds: Sequence[float], counts: Sequence[int], total: float, labels: Labels
    ) -> None:
        """A series of a histogram.

        Args:
            bounds: upper bounds of the buckets but the last, rising.
            counts: of values in each bucket, not added up; one more than `bounds`.
            total: the sum of all values.
            labels: of the series.
        """
        assert len(counts) == len(bounds) + 1
        below = 0
        for bound, count in zip((*map(str, map(float, bounds)), "+Inf"), counts, strict=True):
            below += count
            self.lines.append(("_bucket", {**labels, "le": bound}, below))
        self.lines.extend([("_count", labels, below), ("_sum", labels, total)])


def counter(name: str, text: str, values: Mapping[str, float], label: str) -> Family:
    """A counter with one label."""
    return _labelled(name, text, COUNTER, values, label)


def gauges(name: str, text: str, values: Mapping[str, float], label: str) -> Family:
    """A gauge with one label."""
    return _labelled(name, text, GAUGE, values, label)


def gauge(name: str, text: str, value: float) -> Family:
    """A gauge without labels."""
    return Family(name, text, GAUGE, [("", {}, value)])


def total(name: str, text: str, value: float) -> Family:
    """A counter without labels."""
    return Family(name, text, COUNTER, [("", {}, value)])


def _labelled(name: str, text: str, kind: str, values: Mapping[str, float], label: str) -> Family:
    return Family(name, text, kind, [("", {label: key}, values[key]) for key in values])


def text_of(families: Iterable[Family]) -> str:
    """The metrics as text; each line ends with a line feed."""
    parts: list[str] = []
    for family in families:
        text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        parts.append(f"# HELP {family.name} {text}\n# TYPE {family.name} {family.kind}\n")
        parts += [
            f"{family.name}{suffix}{_labels(labels)} {_number(value)}\n"
            for suffix, labels, value in family.lines
        ]
    return "".join(parts)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}"


def _number(value: float) -> str:
    return repr(float(value)) if value != int(value) else f"{int(value)}.0"
