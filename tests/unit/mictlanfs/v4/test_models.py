import json
from typing import Any

import pytest

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.v4.models import (
    BucketListing,
    FoundMetadata,
    Metadata,
    PutAccepted,
    PutMetadata,
    PutMetadataToPeer,
    decode,
    encode,
)

RECORD = {
    "key": "cat_0",
    "size": 3,
    "checksum": "ab",
    "tags": {"index": "0"},
    "content_type": "image/jpeg",
    "producer_id": "c",
    "ball_id": "cat",
}


def test_a_record_has_the_fields_of_the_reference() -> None:
    metadata = decode(json.dumps(RECORD).encode(), Metadata, "get", "k")
    assert json.loads(encode(metadata)) == RECORD | {"bucket_id": "", "is_disabled": False}


def test_decoding_is_as_lax_as_the_public_client() -> None:
    lax = RECORD | {"size": "3", "is_disabled": "true", "unknown": [1, 2]}
    metadata = decode(json.dumps(lax).encode(), Metadata, "get", "k")
    assert (metadata.size, metadata.is_disabled) == (3, True)


def test_a_whole_number_of_seconds_stays_one_on_the_wire() -> None:
    record = decode(json.dumps(RECORD).encode(), Metadata, "get", "k")
    found = FoundMetadata(service_time=7, peer_id="p", local_peer_id="p", metadata=record)
    assert '"service_time":7,' in encode(found).decode()
    assert decode(b'{"key": "k", "service_time": 0.25}', PutAccepted, "", "").service_time == 0.25


@pytest.mark.parametrize("name", ["size", "key", "tags", "checksum", "ball_id"])
def test_a_record_without_a_required_field_is_refused(name: str) -> None:
    body = json.dumps({n: v for n, v in RECORD.items() if n != name}).encode()
    with pytest.raises(MictlanError, match=name) as caught:
        decode(body, Metadata, "get metadata", "b@k")
    assert caught.value.kind is Kind.PROTOCOL


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"\xff", b'{"tags": {"index": 0}}'])
def test_an_answer_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(MictlanError) as caught:
        decode(body, Metadata, "get metadata", "b@k")
    assert caught.value.kind is Kind.PROTOCOL


def test_a_peer_is_told_is_disable_and_no_number_of_copies() -> None:
    common: dict[str, Any] = dict.fromkeys(
        ("bucket_id", "key", "ball_id", "checksum", "producer_id"), "x"
    )
    for_router = json.loads(encode(PutMetadata(**common, size=1)))
    for_peer = json.loads(encode(PutMetadataToPeer(**common, size=1)))
    assert for_router.keys() - for_peer.keys() == {"is_disabled", "replication_factor"}
    assert for_peer.keys() - for_router.keys() == {"is_disable"}


def test_a_listing_may_name_its_peers_in_either_way() -> None:
    for name in ("peer_ids", "peers_ids"):
        listing = decode(
            json.dumps({"bucket_id": "b", name: ["p"]}).encode(), BucketListing, "", ""
        )
        assert [*listing.peer_ids, *listing.peers_ids] == ["p"]
