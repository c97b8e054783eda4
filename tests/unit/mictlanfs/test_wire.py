import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mictlanfs import wire
from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError
from mictlanfs.model import InodeNumber, Node, PeerMap, SessionId, Struct
from tests.support.strategies import errors, message_types, operation_types, values_of

FEW = settings(max_examples=20)


@pytest.mark.parametrize(
    "kind",
    [*message_types(), Node, PeerMap, wire.GetRecords, wire.Records],
    ids=lambda kind: str(kind.__name__),
)
@FEW
@given(data=st.data())
def test_every_message_survives_the_wire(kind: type[Struct], data: st.DataObject) -> None:
    message = data.draw(values_of(kind))
    assert wire.decode(wire.encode(message), kind) == message


@pytest.mark.parametrize("kind", operation_types, ids=lambda kind: str(kind.__name__))
@FEW
@given(data=st.data())
def test_operations_keep_their_type_in_a_batch(kind: type[Struct], data: st.DataObject) -> None:
    op = data.draw(values_of(kind))
    batch = wire.Commit(SessionId("s"), 1, 1, (op,), True)
    (decoded,) = wire.decode(wire.encode(batch), wire.Commit).ops
    assert type(decoded) is kind
    assert decoded == op


def test_tags_of_operations_are_those_of_the_protocol() -> None:
    tags = {kind.__struct_config__.tag for kind in operation_types}
    assert tags == {
        "make",
        "link",
        "unlink",
        "rmdir",
        "rename",
        "setattr",
        "setxattr",
        "removexattr",
        "write",
        "release",
        "policy",
        "record",
        "part",
        "restore",
    }


def test_an_older_reader_ignores_a_field_added_at_the_end() -> None:
    class Newer(Struct, frozen=True):
        ino: InodeNumber
        extents_max: int = 0
        inline_max: int = 0
        added: str = "later"

    assert wire.decode(wire.encode(Newer(InodeNumber(7), 3)), wire.GetNode) == wire.GetNode(
        InodeNumber(7), 3
    )


def test_a_newer_reader_takes_a_message_without_the_added_field() -> None:
    class Older(Struct, frozen=True):
        ino: InodeNumber

    decoded = wire.decode(wire.encode(Older(InodeNumber(7))), wire.GetNode)
    assert decoded == wire.GetNode(InodeNumber(7), 0)


@given(st.binary(max_size=100))
def test_garbage_is_a_protocol_error(body: bytes) -> None:
    for kind in (wire.Commit, wire.SessionGrant):
        with pytest.raises(MictlanError) as caught:
            wire.decode(body, kind)
        assert caught.value.kind is Kind.PROTOCOL


def test_a_message_of_another_kind_is_a_protocol_error() -> None:
    with pytest.raises(MictlanError) as caught:
        wire.decode(wire.encode(wire.Done()), wire.Lookup)
    assert caught.value.kind is Kind.PROTOCOL


# --- errors --------------------------------------------------------------------------------------


def fields(error: MictlanError) -> tuple[Kind, str, str, str]:
    return error.kind, error.operation, error.target, error.detail


@given(errors)
def test_errors_survive_the_wire(error: MictlanError) -> None:
    received = wire.decode_error(HTTP_STATUS[error.kind], wire.encode_error(error))
    assert fields(received) == fields(error)


def test_an_error_is_json_that_a_person_can_read() -> None:
    body = wire.encode_error(MictlanError(Kind.NO_SPACE, "put chunk", "ab", "the disk is full"))
    assert json.loads(body) == {
        "kind": "no-space",
        "operation": "put chunk",
        "target": "ab",
        "detail": "the disk is full",
    }


def test_a_kind_from_a_newer_sender_is_internal_and_keeps_its_name() -> None:
    received = wire.decode_error(400, b'{"kind":"quantum","operation":"put"}')
    assert fields(received) == (Kind.INTERNAL, "put", "", "quantum")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (502, Kind.UNAVAILABLE),
        (503, Kind.UNAVAILABLE),
        (504, Kind.UNAVAILABLE),
        (500, Kind.INTERNAL),
        (404, Kind.INTERNAL),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"[]", b'{"detail": "x"}'])
def test_an_error_of_somebody_else_is_told_by_its_status(
    status: int, kind: Kind, body: bytes
) -> None:
    received = wire.decode_error(status, body)
    assert received.kind is kind
    assert str(status) in received.detail


# --- frames --------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_a_frame_comes_apart_as_it_was_put_together(bodies: list[bytes]) -> None:
    header = wire.FrameAnswer(tuple(wire.FrameResult(len(body)) for body in bodies))
    pieces = wire.frame(header, bodies)
    received, rest = wire.unframe(b"".join(pieces), wire.FrameAnswer)
    assert received == header
    assert wire.cut_bodies(rest, [len(body) for body in bodies]) == bodies


def test_a_frame_copies_no_body() -> None:
    body = bytearray(1000)
    assert wire.frame(wire.FrameGet(()), [body])[1] is body


def test_a_frame_that_is_cut_short_is_a_protocol_error() -> None:
    whole = b"".join(wire.frame(wire.FrameGet((b"x" * 16,))))  # type: ignore[arg-type]  # A chunk id.
    for length in range(len(whole)):
        with pytest.raises(MictlanError) as caught:
            wire.unframe(whole[:length], wire.FrameGet)
        assert caught.value.kind is Kind.PROTOCOL


def test_a_frame_with_a_huge_header_is_refused() -> None:
    size = wire.FRAME_HEADER_SIZE_BYTES_MAX + 1
    with pytest.raises(MictlanError) as caught:
        wire.unframe(size.to_bytes(4, "big") + bytes(size), wire.FrameGet)
    assert caught.value.kind is Kind.PROTOCOL


@pytest.mark.parametrize("lengths", [[], [3], [5], [2, 3], [-1, 5]])
def test_bodies_whose_lengths_do_not_add_up_are_a_protocol_error(lengths: list[int]) -> None:
    with pytest.raises(MictlanError) as caught:
        wire.cut_bodies(memoryview(b"four"), lengths)
    assert caught.value.kind is Kind.PROTOCOL
