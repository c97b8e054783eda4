import pytest
import trio
from hypothesis import given, settings
from trio.testing import MockClock

from mictlanfs import wire
from mictlanfs.client.retry import NO_RETRY, RetryPolicy
from mictlanfs.client.router import RouterClient
from mictlanfs.client.transport import Response
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import ROOT_INODE, FileKind, InodeNumber, PeerMap, SessionId
from mictlanfs.uri import parse_routers
from tests.support.fakenet import FakeNet, Request
from tests.support.fakerouter import FakeRouter
from tests.support.strategies import values_of

ONE = "mictlanx://r@router:60666/?protocol=http"
THREE = "mictlanx://a@a:1,b@b:1,c@c:1/?protocol=http"


def client(net: FakeNet, uri: str = ONE, deadline_s: float = 30.0) -> RouterClient:
    return RouterClient(parse_routers(uri), net, RetryPolicy(deadline_s=deadline_s))


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def net(router: FakeRouter) -> FakeNet:
    return FakeNet({router.url: router})


def test_a_space_has_at_least_one_router(net: FakeNet) -> None:
    with pytest.raises(ValueError, match="at least one router"):
        RouterClient((), net, NO_RETRY)


async def test_each_verb_asks_its_own_path(net: FakeNet, router: FakeRouter) -> None:
    router.make(FileKind.DIRECTORY, b"b")
    asking = client(net)
    grant = await asking.open_session(wire.OpenSession(1, "host", 1, "label"))
    ref = wire.SessionRef(grant.session, grant.epoch)
    await asking.heartbeat(ref)
    assert (await asking.take_inodes(wire.TakeInodes(*ref_fields(ref), 5))).count == 5
    assert (
        await asking.commit(wire.Commit(*ref_fields(ref), 1, (), False), NO_RETRY)
    ).results == ()
    assert len(await asking.resolve(wire.Resolve((b"b", b"none")))) == 2
    assert [
        entry.name for entry in (await asking.list(wire.ListDirectory(ROOT_INODE))).entries
    ] == [b"b"]
    assert [bucket.name for bucket in await asking.buckets()] == [b"b"]
    assert (await asking.peer_map()).version == 1
    await asking.close_session(ref)
    assert asking.request_count == len(net.requests) == 9
    assert {request.headers["content-type"] for request in net.requests} == {wire.MSGPACK}


def ref_fields(ref: wire.SessionRef) -> tuple[SessionId, int]:
    return ref.session, ref.epoch


async def test_the_error_that_a_router_answers_is_raised(net: FakeNet) -> None:
    with pytest.raises(MictlanError) as caught:
        await client(net).extents(wire.GetExtents(InodeNumber(99), 0))
    assert caught.value.kind is Kind.NOT_FOUND
    assert len(net.requests) == 1


async def test_a_request_that_is_lost_is_repeated(net: FakeNet, autojump_clock: MockClock) -> None:
    net.fail(wire.Path.BUCKETS, Kind.TIMED_OUT, count=3)
    assert await client(net).buckets() == ()
    assert len(net.requests) == 4


async def test_routers_are_tried_in_turn_and_the_one_that_answers_is_kept(
    router: FakeRouter, autojump_clock: MockClock
) -> None:
    net = FakeNet({"http://c:1": router})
    asking = client(net, THREE)
    for _ in range(3):
        await asking.buckets()
    assert [request.url[:10] for request in net.requests] == [
        "http://a:1",
        "http://b:1",
        *["http://c:1"] * 3,
    ]


async def test_an_error_of_the_request_does_not_change_the_router(
    router: FakeRouter,
) -> None:
    net = FakeNet({"http://a:1": router, "http://b:1": router})
    asking = client(net, THREE)
    with pytest.raises(MictlanError):
        await asking.extents(wire.GetExtents(InodeNumber(99), 0))
    await asking.buckets()
    assert {request.url[:10] for request in net.requests} == {"http://a:1"}


async def test_without_any_router_it_fails_after_the_deadline(
    autojump_clock: MockClock,
) -> None:
    start = trio.current_time()
    with pytest.raises(MictlanError) as caught:
        await client(FakeNet(), THREE, deadline_s=10.0).buckets()
    assert caught.value.kind is Kind.UNAVAILABLE
    assert 5.0 < trio.current_time() - start <= 10.0


async def test_versions_of_the_peer_map_are_passed_on(net: FakeNet, router: FakeRouter) -> None:
    versions: list[int] = []
    asking = RouterClient(parse_routers(ONE), net, NO_RETRY, on_peer_map_version=versions.append)
    router.peer_map_version = 7
    await asking.buckets()
    assert versions == [7]


class Odd:
    """A server that answers what it was told to."""

    def __init__(self, response: Response) -> None:
        self.response = response

    def handle(self, request: Request) -> Response:
        return self.response


@pytest.mark.parametrize("version", ["", "x", "-1", "1.5"])
async def test_a_header_that_is_no_version_is_ignored(version: str) -> None:
    headers = {wire.HEADER_PEER_MAP: version}
    net = FakeNet({"http://router:60666": Odd(Response(200, headers, wire.encode(PeerMap(1, ()))))})
    versions: list[int] = []
    asking = RouterClient(parse_routers(ONE), net, NO_RETRY, on_peer_map_version=versions.append)
    await asking.peer_map()
    assert not versions


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"not msgpack", Kind.PROTOCOL),
        (204, b"", Kind.INTERNAL),
        (404, b"<html>", Kind.INTERNAL),
        (502, b"<html>Bad Gateway</html>", Kind.UNAVAILABLE),
    ],
)
async def test_a_stranger_at_the_address_is_an_error(status: int, body: bytes, kind: Kind) -> None:
    net = FakeNet({"http://router:60666": Odd(Response(status, {}, body))})
    with pytest.raises(MictlanError) as caught:
        await client(net, deadline_s=0.0).peer_map()
    assert caught.value.kind is kind


@settings(max_examples=20)
@given(values_of(wire.SpaceStatus))
def test_a_status_is_read(status: wire.SpaceStatus) -> None:
    router = FakeRouter(status=status)

    async def ask() -> wire.SpaceStatus:
        return await client(FakeNet({router.url: router})).status()

    assert trio.run(ask) == status


async def test_a_status_that_is_none_is_a_protocol_error() -> None:
    net = FakeNet({"http://router:60666": Odd(Response(200, {}, b"{}"))})
    with pytest.raises(MictlanError) as caught:
        await client(net).status()
    assert caught.value.kind is Kind.PROTOCOL


class Recorder:
    """A router that knows records, and answers at most two at a time."""

    def __init__(self, answered_max: int = 2) -> None:
        self.answered_max = answered_max

    def handle(self, request: Request) -> Response:
        wanted = wire.decode(request.body, wire.GetRecords).inodes
        found = [record_of(ino) for ino in wanted[: self.answered_max]]
        return Response(200, {}, wire.encode(wire.Records(tuple(found))))


def record_of(ino: int) -> wire.FileRecord:
    return wire.FileRecord(ino, (wire.RecordPiece(1, b"%d" % ino),))


async def test_records_that_did_not_fit_are_asked_for_again() -> None:
    net = FakeNet({"http://router:60666": Recorder()})
    inodes = [InodeNumber(number) for number in range(1, 6)]
    assert await client(net).records(inodes) == tuple(map(record_of, inodes))
    assert len(net.requests) == 3
    assert await client(net).records([]) == ()
    assert len(net.requests) == 3


async def test_records_are_asked_for_as_many_as_may_be() -> None:
    net = FakeNet({"http://router:60666": Recorder(wire.RECORDS_COUNT_MAX)})
    inodes = [InodeNumber(number) for number in range(1, wire.RECORDS_COUNT_MAX + 2)]
    assert await client(net).records(inodes) == tuple(map(record_of, inodes))
    assert len(net.requests) == 2


async def test_a_router_that_answers_no_record_does_not_know_them() -> None:
    net = FakeNet({"http://router:60666": Recorder(0)})
    with pytest.raises(MictlanError) as caught:
        await client(net).records([InodeNumber(1)])
    assert caught.value.kind is Kind.PROTOCOL


# --- reads that bring leases ---------------------------------------------------------------------


class Leaser:
    """A router that answers every read with what a test put there, and a session that wants it."""

    def __init__(self, *answers: Response | MictlanError) -> None:
        self.answers = list(answers)
        self.headers: list[str] = []
        self.epoch = 1
        self.grants: list[wire.Grants] = []

    def handle(self, request: Request) -> Response:
        self.headers.append(request.headers[wire.HEADER_SESSION])
        answer = self.answers.pop(0)
        if isinstance(answer, MictlanError):
            raise answer
        return answer

    @property
    def ref(self) -> wire.SessionRef:
        return wire.SessionRef(SessionId("s"), self.epoch)

    def on_grants(self, grants: wire.Grants) -> None:
        self.grants.append(grants)

    async def replace(self, fenced: wire.SessionRef) -> None:
        assert fenced == self.ref
        self.epoch += 1

    def client(self) -> RouterClient:
        asking = client(FakeNet({FakeRouter().url: self}))
        asking.lessee = self
        return asking


GRANTS = wire.Grants((InodeNumber(5),), 9)


def framed(answer: wire.Xattrs | MictlanError) -> Response:
    if isinstance(answer, MictlanError):
        status, body = 404, wire.encode_error(answer)
    else:
        status, body = 200, wire.encode(answer)
    return Response(status, {wire.HEADER_GRANTS: "1"}, b"".join(wire.frame(GRANTS, [body])))


async def test_leases_come_before_the_answer_is_given() -> None:
    leaser = Leaser(framed(wire.Xattrs({b"user.a": b"1"})))
    assert await leaser.client().xattrs(InodeNumber(5)) == {b"user.a": b"1"}
    assert (leaser.headers, leaser.grants) == (["s:1"], [GRANTS])


async def test_an_error_brings_leases_too() -> None:
    leaser = Leaser(*[framed(MictlanError(Kind.NOT_FOUND, "lookup"))] * 2)
    request = wire.GetXattrs(InodeNumber(5))
    leased = await leaser.client().leased(wire.Path.XATTRS, request, wire.Xattrs)
    assert isinstance(leased.answer, MictlanError)
    assert (leased.answer.kind, leased.grants) == (Kind.NOT_FOUND, GRANTS)
    with pytest.raises(MictlanError) as caught:
        await leaser.client().xattrs(InodeNumber(5))
    assert caught.value.kind is Kind.NOT_FOUND
    assert leaser.grants == [GRANTS, GRANTS]


async def test_a_read_of_a_fenced_session_is_asked_again_under_the_next() -> None:
    leaser = Leaser(MictlanError(Kind.FENCED), framed(wire.Xattrs({})))
    assert await leaser.client().xattrs(InodeNumber(5)) == {}
    assert (leaser.headers, leaser.grants) == (["s:1", "s:2"], [GRANTS])


async def test_a_read_that_is_fenced_twice_fails() -> None:
    leaser = Leaser(MictlanError(Kind.FENCED), MictlanError(Kind.FENCED))
    with pytest.raises(MictlanError) as caught:
        await leaser.client().xattrs(InodeNumber(5))
    assert (caught.value.kind, leaser.grants) == (Kind.FENCED, [])


async def test_leases_of_a_session_that_was_replaced_meanwhile_are_nobodys() -> None:
    leaser = Leaser()

    def handle(request: Request) -> Response:
        leaser.epoch += 1
        return framed(wire.Xattrs({}))

    leaser.handle = handle  # type: ignore[method-assign]
    assert await leaser.client().xattrs(InodeNumber(5)) == {}
    assert leaser.grants == []
