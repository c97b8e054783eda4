"""Readers that meet a bad copy read another one, and complain."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mictlanfs.client.chunks import open_chunk_store
from mictlanfs.client.complaints import REPEAT_S_MIN
from mictlanfs.client.peermap import PeerDirectory
from mictlanfs.client.peers import PeerClient
from mictlanfs.client.retry import RetryPolicy
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import BucketPolicy, PeerMap
from mictlanfs.wireverify import ReportCopy
from tests.support.fakenet import FakeNet
from tests.support.fakepeer import FakePeer

TWO = BucketPolicy(replicas=2)
BODIES = (b"small", bytes(range(256)) * 1024)


class Rig:
    """Two peers, a store of chunks over them, and a router that takes complaints."""

    def __init__(self) -> None:
        self.net = FakeNet()
        self.peers = [FakePeer(1), FakePeer(2)]
        self.net.servers.update({peer.url: peer for peer in self.peers})
        self.reports: list[ReportCopy] = []
        self.failure: MictlanError | None = None

    async def map(self) -> PeerMap:
        return PeerMap(1, tuple(peer.info() for peer in self.peers))

    async def take(self, report: ReportCopy) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        self.reports.append(report)

    def store(self) -> object:
        directory = PeerDirectory(trio.current_time)
        return open_chunk_store(
            PeerClient(self.net), directory, self.map, RetryPolicy(), send_complaint=self.take
        )


async def test_damaged_and_missing_copies_are_complained_of_and_another_is_read(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with rig.store() as store:  # type: ignore[attr-defined]
        for body in BODIES:
            chunk = await store.store([body], TWO)
            for peer in rig.peers:
                rig.reports.clear()
                good = peer.chunks[chunk.id]
                peer.damage(chunk.id)
                assert bytes(await store.fetch(chunk, 0, len(body))) == body
                [found] = await store.fetch_many([chunk])
                assert found is None or bytes(found) == body
                del peer.chunks[chunk.id]
                await trio.sleep(REPEAT_S_MIN)
                assert bytes(await store.fetch(chunk, 0, len(body))) == body
                await wait_all_tasks_blocked()
                assert {report.chunk for report in rig.reports} <= {chunk.id}
                assert {report.peer for report in rig.reports} <= {peer.number}
                peer.chunks[chunk.id] = good
        # Of each pair one is the first to be read.
        assert store.complaints.sent_count >= len(BODIES)


async def test_the_same_copy_is_complained_of_once_in_a_while(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.store() as store:  # type: ignore[attr-defined]
        chunk = await store.store([BODIES[1]], TWO)
        for _ in range(3):
            store.complaints.note(chunk.id, rig.peers[0].number)
        await wait_all_tasks_blocked()
        assert rig.reports == [ReportCopy(chunk.id, rig.peers[0].number)]
        await trio.sleep(REPEAT_S_MIN)
        store.complaints.note(chunk.id, rig.peers[0].number)
        await wait_all_tasks_blocked()
        assert len(rig.reports) == 2


async def test_a_router_that_takes_no_complaint_fails_nobody(autojump_clock: MockClock) -> None:
    rig = Rig()
    rig.failure = MictlanError(Kind.UNAVAILABLE)
    async with rig.store() as store:  # type: ignore[attr-defined]
        chunk = await store.store([BODIES[1]], TWO)
        store.complaints.note(chunk.id, rig.peers[0].number)
        await wait_all_tasks_blocked()
        assert store.complaints.sent_count == 0
