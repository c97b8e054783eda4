"""All metadata as JSON lines, and back: for people, other programs, other databases.

::

    {"mictlanfs-metadata": 1, "schema": 5, "moment": "…", "moment_ns": …, "tables": {"inode":
        {"ino": "INTEGER", …}, …}}                      first: form, version, tables, columns, types
    {"inode": {"ino": 1, "kind": 4, …}}                 then a line for each row, table by table
    {"end": {"rows": 17, "blake3": "…"}}                last: how many, digest of all lines before

Numbers and text are what JSON has for them. Bytes (columns of type BLOB) are a string when they are
printable UTF-8, else `{"hex": "…"}` up to 64 of them and `{"base64": "…"}` beyond. `schema.sql` and
`migrations.py` say what the tables mean.

Streams both ways: no more than a row is in memory. A dump is of one moment, and keeps nobody from
changing the space meanwhile. A load makes a new database at the version of the dump, in one
transaction.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from mictlanfs.checksums import new_hasher
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_server.metadata.migrations import SCHEMA_VERSION, make_empty
from mictlanfs_server.metadata.sqlite_writer import connect, transaction, translated

FORMAT: Final = 1
_FORMAT_KEY: Final = "mictlanfs-metadata"
_HEX_SIZE_BYTES_MAX: Final = 64
# Not of the space: what SQLite and the migrations keep for themselves.
_NO_TABLES: Final = ("sqlite_%", "\\_sqlite\\_%")

Columns = dict[str, str]


def dump(database: Path, now_ns: int) -> Iterator[bytes]:
    """The lines of a dump of `database`, each with its line feed. The space may be in use.

    Raises:
        UsageError: there is no such database, or of another version.
        MictlanError: INTERNAL: the database failed.
    """
    if not database.is_file():
        raise UsageError(f"there is no metadata at {database}")
    try:
        with closing(connect(database, read_only=True)) as connection:
            connection.execute("BEGIN")
            yield from _digested(_lines(connection, database, now_ns))
    except sqlite3.Error as error:
        raise translated(error) from error


def _lines(connection: sqlite3.Connection, database: Path, now_ns: int) -> Iterator[bytes]:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{database} has schema version {version}, this program dumps {SCHEMA_VERSION}: "
            "start its router with this program once"
        )
    tables = _tables(connection)
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_ns // 10**9))
    yield _line(
        {
            _FORMAT_KEY: FORMAT,
            "schema": version,
            "moment": moment,
            "moment_ns": now_ns,
            "tables": tables,
        }
    )
    for table, columns in tables.items():
        names = ", ".join(f'"{column}"' for column in columns)
        for row in connection.execute(f'SELECT {names} FROM "{table}"'):  # noqa: S608
            values = (_to_json(value) for value in row)
            yield _line({table: dict(zip(columns, values, strict=True))})


def _digested(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, and the last one that sums them up."""
    hasher, count = new_hasher(), -1
    for line in lines:
        hasher.update(line)
        count += 1
        yield line
    yield _line({"end": {"rows": count, "blake3": hasher.digest().hex()}})


def _tables(connection: sqlite3.Connection) -> dict[str, Columns]:
    """The tables of the space in order of names, with the types of their columns."""
    names = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE ?1"
        " AND name NOT LIKE ?2 ESCAPE '\\' ORDER BY name",
        _NO_TABLES,
    ).fetchall()
    return {
        name: {row[1]: row[2] for row in connection.execute(f'PRAGMA table_info("{name}")')}
        for (name,) in names
    }


# --- back ----------------------------------------------------------------------------------------


def load(lines: Iterable[bytes], database: Path) -> int:
    """Make the new database `database` of the lines of a dump. Returns the moment of the dump, ns.

    The rows are as they were, of the version they had: `RestoredDatabase` makes it fit to serve.

    Raises:
        MictlanError: CORRUPT: the dump is damaged, cut short, or none; UNSUPPORTED: of a newer
            program; NO_SPACE, INTERNAL.
    """
    rows = _Rows(lines)
    try:
        make_empty(database, rows.schema)
        with closing(connect(database, read_only=False)) as connection:
            _insert(connection, rows)
    except sqlite3.IntegrityError as error:
        raise _damaged(f"line {rows.number}: {error}") from error
    except sqlite3.Error as error:
        raise translated(error) from error
    return rows.moment_ns


def _insert(connection: sqlite3.Connection, rows: _Rows) -> None:
    there = _tables(connection)
    if there != rows.tables:
        raise _damaged(f"its tables are not those of schema version {rows.schema}")
    statements = {
        table: f'INSERT INTO "{table}" VALUES ({", ".join("?" * len(columns))})'  # noqa: S608
        for table, columns in there.items()
    }
    with transaction(connection):
        for table in there:
            # What a migration puts into a new database is in the dump as well.
            connection.execute(f'DELETE FROM "{table}"')  # noqa: S608
        for table, values in rows:
            connection.execute(statements[table], values)


class _Rows:
    """The rows of a dump; iterating raises CORRUPT unless it is whole.

    Attributes:
        schema, moment_ns, tables: what the first line says.
        number: of the line read last, from 1.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._hasher = new_hasher()
        self.number = 0
        first = self._next()
        if _FORMAT_KEY not in first:
            raise _damaged("this is not a dump of metadata")
        if first[_FORMAT_KEY] != FORMAT or first.get("schema", 0) > SCHEMA_VERSION:
            detail = (
                f"it has form {first[_FORMAT_KEY]} and schema version {first.get('schema')}, this "
                f"program knows up to {FORMAT} and {SCHEMA_VERSION}: use the program that made it"
            )
            raise MictlanError(Kind.UNSUPPORTED, "load", detail=detail)
        try:
            self.schema = int(first["schema"])
            self.moment_ns = int(first["moment_ns"])
            self.tables: dict[str, Columns] = dict(first["tables"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged("its first line is wrong") from error
        if self.schema < 1:
            raise _damaged("its first line is wrong")

    def _next(self) -> dict[str, Any]:
        line = next(self._lines, None)
        self.number += 1
        if line is None:
            raise _damaged("it is cut short: the last line is missing")
        try:
            found = json.loads(line)
        except ValueError as error:
            raise _damaged(f"line {self.number} is not JSON") from error
        if not isinstance(found, dict):
            raise _damaged(f"line {self.number} is no object")
        if "end" not in found:
            self._hasher.update(line)
        return found

    def __iter__(self) -> Iterator[tuple[str, list[object]]]:
        while True:
            found = self._next()
            if "end" in found:
                self._check_end(found["end"])
                return
            try:
                ((table, row),) = found.items()
                columns = self.tables[table]
                yield table, [_from_json(row[name], kind) for name, kind in columns.items()]
            except (KeyError, TypeError, ValueError) as error:
                raise _damaged(f"line {self.number} is no row: {error!r}") from error

    def _check_end(self, end: object) -> None:
        expected = {"rows": self.number - 2, "blake3": self._hasher.digest().hex()}
        if end != expected:
            raise _damaged("the last line does not fit the others: some are missing or changed")


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _to_json(value: object) -> object:
    if not isinstance(value, bytes):
        return value
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and (text or not value):
        return text
    if len(value) <= _HEX_SIZE_BYTES_MAX:
        return {"hex": value.hex()}
    return {"base64": base64.b64encode(value).decode()}


def _from_json(value: object, kind: str) -> object:
    """Raises ValueError, TypeError, KeyError for what is no value of that column."""
    if isinstance(value, dict):
        ((form, text),) = value.items()
        return bytes.fromhex(text) if form == "hex" else base64.b64decode(text, validate=True)
    if isinstance(value, str) and kind == "BLOB":
        return value.encode()
    if value is None or isinstance(value, int | str):
        return value
    raise TypeError(f"{value!r} is no value of a column")


def _damaged(detail: str) -> MictlanError:
    return MictlanError(Kind.CORRUPT, "load", detail=detail)
