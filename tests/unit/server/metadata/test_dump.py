import io
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mictlanfs import wire
from mictlanfs.checksums import digest_of
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.model import ROOT_INODE, FileKind
from mictlanfs_server.metadata import migrations
from mictlanfs_server.metadata.dump import dump, load
from mictlanfs_server.metadata.migrations import SCHEMA_VERSION, make_empty, migrate
from mictlanfs_server.metadata.restored import RestoredDatabase
from tests.support.strategies import names
from tests.unit.server.metadata.space import Space, SpaceMaker, new_chunk, open_space

NOW_NS = 1_796_047_509_000_000_000

KINDS = st.sampled_from([FileKind.DIRECTORY, FileKind.FILE, FileKind.SYMLINK, FileKind.FIFO])
# Where below those made before, name, kind, inline content, chunks, extended attributes.
NODES = st.lists(
    st.tuples(
        *(st.integers(0, 99), names, KINDS, st.binary(max_size=300), st.integers(0, 2)),
        st.dictionaries(names, st.binary(max_size=90), max_size=2),
    ),
    max_size=12,
)


Nodes = list[tuple[int, bytes, FileKind, bytes, int, dict[bytes, bytes]]]


ONE_OF_EACH: Nodes = [
    (0, b"file", FileKind.FILE, b"body", 2, {}),
    (0, b"kept", FileKind.FILE, b"", 1, {b"x": b"\xff" * 80}),
]


def plant(space: Space, nodes: Nodes) -> None:
    """Grow a tree; what has a name already is left out."""
    folders = [space.bucket()]
    for pick, name, kind, body, chunk_count, xattrs in nodes:
        parent = folders[pick % len(folders)]
        if space.lookup(parent, name) is not None:
            continue
        target = name if kind is FileKind.SYMLINK else b""
        ino = space.make(parent, name, kind, target)
        if kind is FileKind.DIRECTORY:
            folders.append(ino)
        for attribute, value in xattrs.items():
            space.do(wire.SetXattr(ino, b"user." + attribute[:200], value, space.tick()))
        if kind is FileKind.FILE:
            for index in range(chunk_count):
                space.write(ino, 4096 * index, new_chunk())
            if body:
                space.write_inline(ino, 10_000, body)


def rows_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '%sqlite%'"
        ).fetchall()
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
            for (table,) in tables
        }


def dumped(path: Path) -> list[bytes]:
    return list(dump(path, NOW_NS))


def signed(lines: list[bytes]) -> list[bytes]:
    """The same with a right last line."""
    end = {"rows": len(lines) - 2, "blake3": digest_of(lines[:-1]).hex()}
    return [*lines[:-1], json.dumps({"end": end}).encode() + b"\n"]


@pytest.fixture
def planted(space_maker: SpaceMaker) -> Path:
    """A database with one of everything."""
    path = space_maker.new_database()
    with open_space(path) as space:
        plant(space, ONE_OF_EACH)
        space.unlink(space.names(ROOT_INODE)[b"bucket"], b"file")
        plant_more(space)
    return path


def plant_more(space: Space) -> None:
    bucket = space.names(ROOT_INODE)[b"bucket"]
    file = space.make(bucket, b"odd \xff\n")
    space.write(file, 0, new_chunk())
    space.write_inline(file, 10_000, b"inline")
    space.unlink(bucket, b"odd \xff\n", sustain=True)
    record = (wire.RecordPiece(0, b"{}"),)
    space.do(wire.SetRecord(space.make(bucket, b"ball"), 1, record))


@given(nodes=NODES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_tree_comes_back_row_by_row(space_maker: SpaceMaker, nodes: Nodes) -> None:
    path = space_maker.new_database()
    with open_space(path) as space:
        plant(space, nodes)
    copy = path.with_suffix(".copy")
    assert load(dumped(path), copy) == NOW_NS
    assert rows_of(copy) == rows_of(path)
    assert dumped(copy) == dumped(path)


def test_every_line_is_json_and_the_first_one_tells_all_columns(planted: Path) -> None:
    first, *rows, last = [json.loads(line) for line in dumped(planted)]
    assert first["mictlanfs-metadata"] == 1
    assert first["schema"] == SCHEMA_VERSION
    assert first["moment"] == "2026-11-30T14:05:09Z"
    for row in rows:
        ((table, columns),) = row.items()
        assert list(columns) == list(first["tables"][table])
    assert last["end"]["rows"] == len(rows)


def test_names_are_readable_where_they_can_be_and_exact_where_not(planted: Path) -> None:
    text = b"".join(dumped(planted)).decode()
    assert '"name":"bucket"' in text
    assert '{"base64":"//////' in text


def test_what_was_loaded_is_served_after_it_was_revived(planted: Path) -> None:
    copy = planted.with_suffix(".copy")
    moment_ns = load(io.BytesIO(b"".join(dumped(planted))), copy)
    with RestoredDatabase(copy, NOW_NS) as database:
        database.revive(moment_ns, NOW_NS + 5)
        assert database.damage() == []
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM session WHERE is_ended = 0").fetchone() == (
            1,
        )
    assert not copy.with_name(copy.name + "-wal").exists()


def test_a_dump_is_of_one_moment_while_the_space_changes(space_maker: SpaceMaker) -> None:
    path = space_maker.new_database()
    with open_space(path) as space:
        plant(space, [])
        lines = dump(path, NOW_NS)
        got = [next(lines)]
        for index in range(50):
            space.make(space.names(ROOT_INODE)[b"bucket"], b"%d" % index)
        got += lines
    copy = path.with_suffix(".copy")
    load(got, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        assert connection.execute("SELECT count(*) FROM dentry").fetchone() == (1,)


# --- what is refused ---


def changed(lines: list[bytes], old: bytes, new: bytes) -> list[bytes]:
    return [line.replace(old, new, 1) for line in lines]


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "empty": lambda _: [],
    "cut short": lambda lines: lines[:-1],
    "a row is missing": lambda lines: [*lines[:3], *lines[4:]],
    "a row came twice": lambda lines: [*lines[:4], *lines[3:]],
    "a value was changed": lambda lines: changed(lines, b'"mode":420', b'"mode":421'),
    "no JSON": lambda lines: [*lines[:3], b"{\n", *lines[3:]],
    "no object": lambda lines: [*lines[:3], b"7\n", *lines[3:]],
    "no dump": lambda lines: lines[1:],
    "another table": lambda lines: signed(changed(lines, b'{"dentry":{', b'{"strange":{')),
    "a column is missing": lambda lines: signed(changed(lines, b'"kind":8,', b"")),
    "a wrong type": lambda lines: signed(changed(lines, b'"kind":8', b'"kind":"x"')),
    "a wrong value": lambda lines: signed(changed(lines, b'"kind":8', b'"kind":[8]')),
    "the same row twice": lambda lines: signed([*lines[:-1], lines[-2], lines[-1]]),
    "other tables": lambda lines: signed(changed(lines, b'"ino":"INTEGER"', b'"ino":"TEXT"')),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_dump_that_is_not_whole_is_refused(planted: Path, damage: str) -> None:
    lines = DAMAGE[damage](dumped(planted))
    with pytest.raises(MictlanError) as raised:
        load(lines, planted.with_suffix(f".{damage.replace(' ', '')}"))
    assert raised.value.kind is Kind.CORRUPT
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"mictlanfs-metadata":1', b'"mictlanfs-metadata":2'), (b'"schema":', b'"schema":9')],
)
def test_a_dump_of_a_newer_program_is_refused(planted: Path, old: bytes, new: bytes) -> None:
    lines = signed(changed(dumped(planted), old, new))
    with pytest.raises(MictlanError) as raised:
        load(lines, planted.with_suffix(".newer"))
    assert raised.value.kind is Kind.UNSUPPORTED


def test_a_dump_of_an_older_program_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the program of version 3 would have written it."""
    old, copy = tmp_path / "old.db", tmp_path / "copy.db"
    make_empty(old, 3)
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        migrations._make_space(connection, 7)
    with monkeypatch.context() as patch:
        patch.setattr("mictlanfs_server.metadata.dump.SCHEMA_VERSION", 3)
        lines = dumped(old)
    load(lines, copy)
    with RestoredDatabase(copy, NOW_NS) as database:
        assert database.damage() == []
        assert database.counts() == (1, 0)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_database_of_another_version_is_not_dumped(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with pytest.raises(UsageError, match="no metadata"):
        dumped(path)
    migrate(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(UsageError, match="schema version 2"):
        dumped(path)
