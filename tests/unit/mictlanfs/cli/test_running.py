from pathlib import Path

import pytest

from mictlanfs.cli.options import SpaceChoice
from mictlanfs.cli.running import run_on_space
from mictlanfs.client.space import SpaceClient
from mictlanfs.errors import Kind, MictlanError
from tests.support.fakespace import URI, FakeSpace

CHOICE = SpaceChoice(URI, 0.0)


def test_the_result_of_the_work_is_returned(space: FakeSpace) -> None:
    async def work(client: SpaceClient) -> int:
        return len(await client.buckets())

    assert run_on_space(CHOICE, "test", work) == 1


def test_errors_of_the_work_are_plain(space: FakeSpace) -> None:
    async def work(client: SpaceClient) -> None:
        await client.stat("none")

    with pytest.raises(MictlanError) as caught:
        run_on_space(CHOICE, "test", work)
    assert caught.value.kind is Kind.NOT_FOUND


def test_a_space_that_does_not_answer_is_named(space: FakeSpace) -> None:
    space.net.servers.clear()

    async def work(client: SpaceClient) -> None:
        await client.buckets()

    with pytest.raises(MictlanError) as caught:
        run_on_space(CHOICE, "test", work)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert str(caught.value) == f"the space at {URI} does not answer: connection refused"


@pytest.mark.parametrize("is_there", [True, False])
def test_the_space_made_last_is_said_to_be_that(
    space: FakeSpace, tmp_path: Path, is_there: bool
) -> None:
    space.net.servers.clear()
    data = tmp_path / "my data"
    if is_there:
        data.mkdir()

    async def work(client: SpaceClient) -> None:
        await client.buckets()

    with pytest.raises(MictlanError) as caught:
        run_on_space(SpaceChoice(URI, 0.0, data), "test", work)
    wanted = f"'mictlanfs up --data '{data}'' starts it again" if is_there else "is gone"
    assert "connection refused. It is the one made last" in str(caught.value)
    assert wanted in str(caught.value)
