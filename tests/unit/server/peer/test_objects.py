import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError
from mictlanfs.wireobjects import OBJECT_SIZE_BYTES_MAX, ListObjects, ObjectPage
from mictlanfs_server.peer import objects
from mictlanfs_server.peer.objecthandlers import ObjectHandlers
from mictlanfs_server.peer.objects import ObjectStore
from tests.support.objectpeers import call
from tests.unit.server.peer.making import on_asyncio, open_store

OBJECT = wire.Path.OBJECT


async def put(kept: ObjectStore, name: str, body: bytes) -> bool:
    return await kept.put(name, body, digest_of([body]))


@on_asyncio
async def test_an_object_is_kept_over_a_restart(tmp_path: Path) -> None:
    kept = ObjectStore(tmp_path)
    assert await put(kept, "meta-1", b"one")
    kept.close()
    again = ObjectStore(tmp_path)
    assert await again.get("meta-1") == b"one"
    again.close()


@on_asyncio
async def test_the_same_bytes_are_no_news_and_others_take_their_place(tmp_path: Path) -> None:
    kept = ObjectStore(tmp_path)
    assert await put(kept, "a", b"one")
    assert not await put(kept, "a", b"one")
    # As when the disk damaged it.
    (tmp_path / "objects" / "a").write_bytes(b"oXe")
    assert await put(kept, "a", b"one")
    assert await kept.get("a") == b"one"
    kept.close()


@on_asyncio
async def test_bytes_that_are_not_those_of_the_digest_are_refused(tmp_path: Path) -> None:
    kept = ObjectStore(tmp_path)
    with pytest.raises(MictlanError) as raised:
        await kept.put("a", b"one", digest_of([b"two"]))
    assert raised.value.kind is Kind.CORRUPT
    assert list((tmp_path / "objects").iterdir()) == []
    kept.close()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".0", "A", "a" * 129, "a.b", "a\n"])
@on_asyncio
async def test_what_is_no_name_never_reaches_the_disk(tmp_path: Path, name: str) -> None:
    kept = ObjectStore(tmp_path)
    for work in (put(kept, name, b"x"), kept.get(name), kept.delete(name)):
        with pytest.raises(MictlanError) as raised:
            await work
        assert raised.value.kind is Kind.INVALID
    kept.close()


@on_asyncio
async def test_what_a_crash_left_is_swept_and_not_listed(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / ".7").write_bytes(b"half")
    kept = ObjectStore(tmp_path)
    assert await kept.list_behind("", "") == []
    assert not (tmp_path / "objects" / ".7").exists()
    kept.close()


@on_asyncio
async def test_a_full_disk_refuses_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ObjectStore(tmp_path)
    status = namedtuple("status", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda _: status(objects.RESERVE_BYTES // 4096, 4096))
    with pytest.raises(MictlanError) as raised:
        await put(kept, "a", b"one")
    assert raised.value.kind is Kind.NO_SPACE
    assert list((tmp_path / "objects").iterdir()) == []
    kept.close()


@on_asyncio
async def test_a_folder_that_went_away_is_an_error_and_no_crash(tmp_path: Path) -> None:
    kept = ObjectStore(tmp_path)
    shutil.rmtree(tmp_path / "objects")
    with pytest.raises(MictlanError):
        await put(kept, "a", b"one")
    kept.close()


@on_asyncio
async def test_objects_are_put_listed_and_deleted_over_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "OBJECTS_PAGE_MAX", 2)
    kept = ObjectStore(tmp_path)
    with open_store(tmp_path) as chunks:
        handlers = ObjectHandlers(kept, chunks)
        for name in ("piece-1", "meta-1", "meta-3", "meta-2"):
            assert (await call(handlers, "PUT", OBJECT + name, name.encode())).status == 201
        assert (await call(handlers, "PUT", OBJECT + "meta-1", b"meta-1")).status == 200

        async def page(after: str) -> list[str]:
            body = wire.encode(ListObjects("meta-", after))
            answer = await call(handlers, "POST", wire.Path.OBJECT_LIST, body)
            return [found.name for found in wire.decode(answer.body, ObjectPage).objects]

        assert [await page(after) for after in ("", "meta-2", "meta-3")] == [
            ["meta-1", "meta-2"],
            ["meta-3"],
            [],
        ]
        assert (await call(handlers, "GET", OBJECT + "meta-2")).body == b"meta-2"
        for _ in range(2):
            assert (await call(handlers, "DELETE", OBJECT + "meta-2")).status == 204
        answer = await call(handlers, "GET", OBJECT + "meta-2")
        assert answer.status == HTTP_STATUS[Kind.NOT_FOUND]
        assert wire.decode_error(answer.status, answer.body).kind is Kind.NOT_FOUND
        # No chunk came of any of it.
        assert chunks.chunk_count == 0
    kept.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "kind"),
    [
        ("PUT", OBJECT + "a", bytes(OBJECT_SIZE_BYTES_MAX + 1), Kind.TOO_LARGE),
        ("PATCH", OBJECT + "a", b"", Kind.UNSUPPORTED),
        ("GET", wire.Path.OBJECT_LIST, b"", Kind.UNSUPPORTED),
        ("POST", wire.Path.OBJECT_LIST, b"\xff", Kind.PROTOCOL),
        ("POST", wire.Path.OBJECT_LIST, bytes(5000), Kind.TOO_LARGE),
    ],
)
@on_asyncio
async def test_wrong_requests_are_refused(
    tmp_path: Path, method: str, path: str, body: bytes, kind: Kind
) -> None:
    kept = ObjectStore(tmp_path)
    with open_store(tmp_path) as chunks:
        answer = await call(ObjectHandlers(kept, chunks), method, path, body)
    assert wire.decode_error(answer.status, answer.body).kind is kind
    kept.close()
