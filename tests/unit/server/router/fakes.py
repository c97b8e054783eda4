"""A clock that tests set, and peers that delete chunks without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mictlanfs import wire
from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError
from mictlanfs.model import Buffer, ChunkId

SPACE = "a" * 32


@dataclass
class FakeClock:
    """Two clocks that move together, and only when told to."""

    now_s: float = 100.0

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + int(self.now_s * 1e9)

    def monotonic_s(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def announce(
    number: int = 1,
    *,
    protocol: int = wire.PROTOCOL_VERSION,
    url: str | None = None,
    capacity: int = 1000,
    used: int = 0,
    chunk_count: int = 0,
    is_full: bool = False,
    zone: str = "",
    boot_id: str = "boot",
    space_id: str = SPACE,
    store_id: str = "",
) -> wire.PeerAnnounce:
    return wire.PeerAnnounce(
        protocol,
        f"peer-{number}",
        url or f"http://127.0.0.1:{24000 + number}",
        zone,
        capacity,
        used,
        chunk_count,
        is_full,
        boot_id,
        space_id,
        store_id,
    )


@dataclass(frozen=True)
class FakeResponse:
    status: int
    body: Buffer


@dataclass
class FakePeers:
    """Stands for the transport: every address answers unless it is in `broken`.

    Attributes:
        deleted: (address, chunk) in the order of deletion.
        broken: address -> the error with which it fails.
        refused: chunks that no peer can delete.
        answers_too_few: whether the last result of each answer is missing.
    """

    deleted: list[tuple[str, ChunkId]] = field(default_factory=list)
    broken: dict[str, MictlanError] = field(default_factory=dict)
    refused: set[ChunkId] = field(default_factory=set)
    answers_too_few: bool = False
    request_count: int = 0

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: Buffer | Sequence[Buffer] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> FakeResponse:
        self.request_count += 1
        address, _, path = url.partition("/mictlanfs")
        assert (method, "/mictlanfs" + path) == ("POST", wire.Path.FRAME_DELETE)
        if error := self.broken.get(address):
            if error.kind is Kind.UNAVAILABLE:
                raise error
            return FakeResponse(HTTP_STATUS[error.kind], wire.encode_error(error))
        assert isinstance(body, list)
        results = []
        for chunk_id in wire.unframe(b"".join(body), wire.FrameDelete)[0].ids:
            if chunk_id in self.refused:
                failure = wire.WireError.of(MictlanError(Kind.INTERNAL))
                results.append(wire.FrameResult(error=failure))
            else:
                self.deleted.append((address, chunk_id))
                results.append(wire.FrameResult())
        if self.answers_too_few:
            results.pop()
        return FakeResponse(200, b"".join(wire.frame(wire.FrameAnswer(tuple(results)))))
