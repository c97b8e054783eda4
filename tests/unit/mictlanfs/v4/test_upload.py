from collections.abc import Callable

import pytest
import trio

from mictlanfs.client.retry import NO_RETRY
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4 import upload
from mictlanfs.v4.client import AsyncClient
from mictlanfs.v4.upload import PutOptions
from tests.support.v4router import V4Router
from tests.support.v4server import Request, uri_of
from tests.support.v4space import V4Space, public_get
from tests.unit.mictlanfs.v4.making import noise

DATA = noise(25_000)
FIRST_STEP = "POST .*/buckets/photos/metadata$"
SECOND_STEP = "POST .*/chunked$"


async def put(client: AsyncClient) -> None:
    await client.put("photos", "cat", DATA, chunk_size=5_000)


# --- what another attempt mends ------------------------------------------------------------------


@pytest.mark.parametrize("step", [FIRST_STEP, SECOND_STEP])
@pytest.mark.parametrize("what", ["status", "drop", "lose", "cut"])
@pytest.mark.parametrize("is_taking_copies", [True, False])
async def test_a_step_that_fails_is_done_again(
    client: AsyncClient,
    router: V4Router,
    space: V4Space,
    step: str,
    what: str,
    is_taking_copies: bool,
) -> None:
    router.is_taking_copies = is_taking_copies
    router.fail(what, step, count=3)
    await put(client)
    assert public_get(space, "photos", "cat") == DATA
    # Ten would have been enough.
    assert len(router.asked("POST")) >= 13
    assert bytes((await client.get("photos", "cat")).data) == DATA


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, {"detail": "the peer hung up"}),
        (500, {"detail": {"msg": "x", "code": 500}}),
        (502, None),
        (503, {"detail": {"msg": "x", "code": 1000}}),
        (404, {"detail": {"msg": "No available peers.", "code": 666, "replicas": []}}),
        (429, None),
    ],
)
async def test_a_server_in_trouble_is_asked_again(
    client: AsyncClient, router: V4Router, space: V4Space, status: int, content: object
) -> None:
    router.fail("status", FIRST_STEP, count=4, status=status, content=content)
    await put(client)
    assert public_get(space, "photos", "cat") == DATA


async def test_a_new_attempt_makes_a_new_task(client: AsyncClient, router: V4Router) -> None:
    router.fail("status", SECOND_STEP)
    await client.put("photos", "cat", b"meow")
    first, second = router.asked(SECOND_STEP)
    assert first != second
    assert len(router.asked(FIRST_STEP)) == 2


async def test_bytes_that_no_peer_took_are_sent_again(
    client: AsyncClient, router: V4Router, space: V4Space
) -> None:
    space.failing_peers = set(space.peers)

    def mend(request: Request) -> None:
        if len(router.asked(SECOND_STEP)) == 3:
            space.failing_peers.clear()

    router.on_request = mend
    await client.put("photos", "cat", b"meow")
    assert public_get(space, "photos", "cat") == b"meow"


async def test_a_record_without_its_bytes_is_put_anew(
    client: AsyncClient, router: V4Router, space: V4Space
) -> None:
    router.is_taking_copies = False

    def spoil(request: Request) -> None:
        # The answer to the upload is lost, and so is half of what it brought.
        if len(router.asked(FIRST_STEP)) == 2 and (found := space.record("photos", "cat_0")):
            found.data = found.data[:2]
            router.on_request = lambda request: None

    router.on_request = spoil
    router.fail("lose", SECOND_STEP)
    await client.put("photos", "cat", b"meow")
    assert public_get(space, "photos", "cat") == b"meow"
    assert len(router.asked("DELETE")) == 1


# --- what nothing mends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"), [(422, Kind.INVALID), (403, Kind.ACCESS_DENIED), (507, Kind.NO_SPACE)]
)
async def test_a_put_that_is_refused_is_not_tried_again(
    client: AsyncClient, router: V4Router, space: V4Space, status: int, kind: Kind
) -> None:
    router.fail("status", FIRST_STEP, status=status)
    with pytest.raises(MictlanError) as caught:
        await client.put("photos", "cat", b"meow")
    assert caught.value.kind is kind
    assert len(router.asked(FIRST_STEP)) == 1


@pytest.mark.parametrize("step", [FIRST_STEP, SECOND_STEP])
async def test_of_a_put_that_fails_nothing_is_left(
    client: AsyncClient, router: V4Router, space: V4Space, step: str
) -> None:
    router.fail("status", step, skip=3, count=1e9, status=422)
    with pytest.raises(MictlanError):
        await put(client)
    assert space.keys("photos") == []


async def test_of_a_put_that_is_cancelled_nothing_is_left(
    client: AsyncClient, router: V4Router, space: V4Space
) -> None:
    router.fail("stall", SECOND_STEP, skip=3)
    with trio.move_on_after(0.3) as scope:
        await put(client)
    assert scope.cancelled_caught
    assert space.keys("photos") == []


async def test_chunks_of_somebody_else_are_left_alone(
    client: AsyncClient, router: V4Router, space: V4Space
) -> None:
    router.is_taking_copies = False

    def put_another(request: Request) -> None:
        # In between: after we saw that there is no such ball.
        if request.method == "POST":
            space.store("photos", "cat_3", b"another", ball="cat")
            router.on_request = lambda request: None

    router.on_request = put_another
    with pytest.raises(MictlanError) as caught:
        await put(client)
    assert caught.value.kind is Kind.EXISTS
    assert space.keys("photos") == ["cat_3"]


async def test_another_record_in_the_place_of_a_lost_one_is_noticed(
    client: AsyncClient, router: V4Router, space: V4Space
) -> None:
    router.is_taking_copies = False

    def put_another(request: Request) -> None:
        if len(router.asked(FIRST_STEP)) == 2:
            space.store("photos", "cat_0", b"another", ball="cat")

    router.on_request = put_another
    router.fail("status", SECOND_STEP)
    with pytest.raises(MictlanError) as caught:
        await client.put("photos", "cat", b"meow")
    assert caught.value.kind is Kind.EXISTS


async def test_a_router_that_accepts_without_a_task_speaks_another_protocol(
    client: AsyncClient, router: V4Router
) -> None:
    router.fail("status", FIRST_STEP, status=200, content={"key": "cat_0", "tasks_ids": []})
    with pytest.raises(MictlanError, match="no task") as caught:
        await client.put("photos", "cat", b"meow")
    assert caught.value.kind is Kind.PROTOCOL


async def test_what_cannot_be_cleaned_up_is_said(
    router: V4Router, space: V4Space, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncClient(uri_of(router), retry=NO_RETRY) as client:
        router.fail("status", SECOND_STEP, skip=4, status=422)
        router.fail("status", "DELETE", count=1e9)
        with pytest.raises(MictlanError):
            await put(client)
    assert "cat_0: left over by a failed put" in caplog.text


async def test_cleaning_up_takes_only_so_long(
    client: AsyncClient,
    router: V4Router,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(upload, "CLEAN_UP_S", 0.05)
    router.fail("status", SECOND_STEP, skip=4, status=422)
    router.fail("stall", "DELETE", count=1e9)
    with trio.fail_after(5), pytest.raises(MictlanError):
        await put(client)
    assert "may be left over" in caplog.text


@pytest.mark.parametrize(
    "make",
    [
        lambda: PutOptions(replication_factor=0),
        lambda: PutOptions(concurrency_max=0),
        lambda: PutOptions(tags={"a": 1}),  # type: ignore[dict-item]
    ],
)
def test_options_that_cannot_be_are_refused(make: Callable[[], PutOptions]) -> None:
    with pytest.raises(MictlanError) as caught:
        make()
    assert caught.value.kind is Kind.INVALID
