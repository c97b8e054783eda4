"""Metrics as text, read by the library of Prometheus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str | tuple[str, str], ...]


def samples_of(text: str) -> dict[Key, float]:
    """Every sample: name, then pairs of labels by name -> value."""
    found: dict[Key, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key: Key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found
