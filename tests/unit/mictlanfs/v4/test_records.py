from pathlib import Path

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.router import AsyncRouter
from tests.support.v4router import V4Router
from tests.support.v4space import V4Space
from tests.unit.mictlanfs.v4.making import noise


async def test_a_record_is_written_to_a_file(
    router: V4Router, space: V4Space, tmp_path: Path
) -> None:
    data = noise(200_000)
    space.store("photos", "cat_0", data)
    async with AsyncRouter.at("127.0.0.1", router.port) as ours:
        assert await ours.get_to_file("photos", "cat_0", tmp_path / "cat") == len(data)
        assert (tmp_path / "cat").read_bytes() == data
        router.fail("cut", "GET")
        with pytest.raises(MictlanError) as caught:
            await ours.get_to_file("photos", "cat_0", tmp_path / "cat")
        assert caught.value.kind is Kind.UNAVAILABLE
    assert [path.name for path in tmp_path.iterdir()] == ["cat"]
    assert (tmp_path / "cat").read_bytes() == data
