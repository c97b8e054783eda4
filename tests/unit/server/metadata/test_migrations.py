import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from mictlanfs.errors import UsageError
from mictlanfs_server.metadata import migrations
from mictlanfs_server.metadata.check import find_damage
from mictlanfs_server.metadata.migrations import SCHEMA_VERSION, make_empty, migrate, statements


def values(path: Path) -> dict[str, object]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, value FROM meta").fetchall())


def test_new_database_is_a_sound_empty_space(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    migrate(path, 42)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert find_damage(connection) == []
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        root = connection.execute("SELECT ino, kind, nlink, mtime_ns, parent FROM inode").fetchall()
        assert root == [(1, 4, 2, 42, 1)]


def test_every_space_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = set()
    for name in ("one.db", "two.db"):
        migrate(tmp_path / name, 0)
        names.add(values(tmp_path / name)["space_id"])
    assert len(names) == 2
    assert all(isinstance(name, str) and len(name) == 32 for name in names)


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    migrate(path, 1)
    before = values(path)
    migrate(path, 2)
    assert values(path) == before


def test_migrations_are_recorded_by_name(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    migrate(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        applied = migrations.MIGRATIONS.applied(Database(connection, execute_plugins=False))
        assert [migration.name for migration in applied] == [
            "0001-first-schema",
            "0002-use-of-buckets",
            "0003-inline-chunks",
            "0004-sessions-with-leases",
            "0005-records",
            "0006-copies",
            "0007-coded-chunks",
            "0008-trash-and-snapshots",
            "0009-truth-of-copies",
        ]
        assert len(applied) == SCHEMA_VERSION


def test_database_of_a_newer_version_is_refused_in_one_line_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    migrate(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(UsageError) as raised:
        migrate(path, 1)
    line = str(raised.value)
    assert "\n" not in line
    for part in (
        str(path),
        f"version {SCHEMA_VERSION + 1}",
        f"up to {SCHEMA_VERSION}",
        "newer program",
    ):
        assert part in line
    assert path.read_bytes() == before


@pytest.mark.parametrize("application", [0, 0x12345678])
def test_database_of_another_program_is_refused(tmp_path: Path, application: int) -> None:
    path = tmp_path / "metadata.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {application}")
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(UsageError, match="another program"):
        migrate(path, 1)


def old_space(path: Path, version: int) -> None:
    """A space as the program of that version would have left it."""
    make_empty(path, version)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrations._make_space(connection, 7)


def versions(folder: Path) -> dict[str, int]:
    """The databases of a folder, each with its version."""
    found = {}
    for file in folder.iterdir():
        with closing(sqlite3.connect(file)) as connection:
            (found[file.name],) = connection.execute("PRAGMA user_version").fetchone()
    return found


def test_a_space_of_an_older_version_is_copied_before_it_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    old_space(path, 3)
    before = values(path)
    migrate(path, 1_796_047_509 * 10**9)
    copy = "metadata.db.v3-20261130T140509Z"
    assert versions(tmp_path) == {"metadata.db": SCHEMA_VERSION, copy: 3}
    assert values(tmp_path / copy) == before
    migrate(path, 2 * 10**18)
    assert len(versions(tmp_path)) == 2, "it is up to date"
    # Going back is putting the copy in its place.
    (tmp_path / copy).replace(path)
    migrate(path, 2 * 10**18)
    assert values(path)["space_id"] == before["space_id"]


def test_the_copy_has_what_is_in_the_write_ahead_log_only(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    old_space(path, 3)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("INSERT INTO meta VALUES ('mark', 'here')")
        migrate(path, 10**18)
    (copy,) = tmp_path.glob("*.v3-*Z")
    assert values(copy)["mark"] == "here"


def test_a_new_space_needs_no_copy(tmp_path: Path) -> None:
    migrate(tmp_path / "metadata.db", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.db"]


def test_without_a_copy_nothing_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metadata.db"
    old_space(path, 3)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match="no copy of"):
            migrate(path, 1)
    assert versions(tmp_path) == {"metadata.db": 3}


def test_a_migration_that_fails_leaves_the_copy_and_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metadata.db"
    old_space(path, SCHEMA_VERSION - 1)

    def fail(_: Database) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(migrations.MIGRATIONS._migrations[-1], "fn", fail)
        with pytest.raises(UsageError, match="disk I/O error"):
            migrate(path, 10**18)
    assert sorted(versions(tmp_path).values()) == [SCHEMA_VERSION - 1] * 2
    migrate(path, 2 * 10**18)
    assert versions(tmp_path)["metadata.db"] == SCHEMA_VERSION


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(UsageError, match=r"metadata\.db cannot be used"):
        migrate(path, 1)


def test_too_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 9))
    with pytest.raises(UsageError, match="too old"):
        migrate(tmp_path / "metadata.db", 1)
    assert not (tmp_path / "metadata.db").exists()


def test_first_start_cut_short_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metadata.db"

    def fail() -> str:
        raise OSError("no randomness")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "new_token", fail)
        with pytest.raises(OSError, match="no randomness"):
            migrate(path, 1)
    migrate(path, 2)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert find_damage(connection) == []


def test_start_that_only_made_the_table_of_migrations_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with closing(sqlite3.connect(path)) as connection:
        database = Database(connection, execute_plugins=False)
        migrations.MIGRATIONS.ensure_migrations_table(database)
        connection.commit()
    migrate(path, 1)
    assert "space_id" in values(path)


def test_script_is_cut_into_statements_and_semicolons_in_text_stay() -> None:
    script = "CREATE TABLE a (x); -- one; two\nINSERT INTO a VALUES ('b;c');\n\n"
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in statements(script.replace("; --", ";\n--")):
            connection.execute(statement)
        assert connection.execute("SELECT x FROM a").fetchall() == [("b;c",)]
