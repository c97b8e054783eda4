"""Metrics of the process itself: memory, processor time, descriptors, garbage collection.

The only module that knows the Prometheus library, which takes longer to load than a server to
start: it is loaded by the first call.
"""

from __future__ import annotations


def text() -> str:
    """The metrics of this process as text. Blocks for some milliseconds; safe in any thread."""
    from prometheus_client import (
        CollectorRegistry,
        GCCollector,
        PlatformCollector,
        ProcessCollector,
        generate_latest,
    )

    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return generate_latest(registry).decode()
