from pathlib import Path

import pytest

from mictlanfs.v4.digests import (
    INLINE_SIZE_BYTES_MAX,
    new_hasher,
    sha256_of,
    sha256_of_file,
    update_hasher,
)
from tests.support.v4space import sha256
from tests.unit.mictlanfs.v4.making import noise


@pytest.mark.parametrize("size", [0, 1, INLINE_SIZE_BYTES_MAX, INLINE_SIZE_BYTES_MAX + 1])
async def test_a_checksum_is_that_of_the_standard_library(size: int, tmp_path: Path) -> None:
    data = noise(size)
    assert await sha256_of(data) == sha256(data)
    (tmp_path / "f").write_bytes(data)
    assert sha256_of_file(tmp_path / "f") == sha256(data)
    hasher = new_hasher()
    for _ in range(3):
        await update_hasher(hasher, memoryview(data))
    assert hasher.hexdigest() == sha256(3 * data)
