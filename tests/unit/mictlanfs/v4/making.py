"""Values that several tests of the v4 client need."""

import random

from mictlanfs.client.retry import RetryPolicy
from mictlanfs.v4.models import Metadata
from tests.support.v4space import sha256

# Tests wait for back-off; a real policy would make them slow.
QUICK = RetryPolicy(deadline_s=2.0, delay_s_first=0.001, delay_s_max=0.01)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def record(key: str, data: bytes = b"", *, ball: str = "cat", **tags: str) -> Metadata:
    return Metadata(
        key=key,
        size=len(data),
        checksum=sha256(data),
        tags=tags,
        content_type="application/octet-stream",
        producer_id="tester",
        ball_id=ball,
        bucket_id="photos",
    )
