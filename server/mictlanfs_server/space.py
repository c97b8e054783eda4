"""The data directory of a space on one machine: its layout, its owner, what is recorded of it.

::

    DIR/space.json   how the space is set up, and which processes serve it now
    DIR/control      socket on which the supervisor takes requests
    DIR/lock         held (flock) by the supervisor for as long as it lives; names it
    DIR/log/         one file for each process
    DIR/sharers      how many peers run, for these
    DIR/router/      data of the router
    DIR/peer-0/ ...  data of the peers

Owns `space.json` and `lock`; never looks into the folders of router and peers. Invariants: only the
holder of the lock writes; `space.json` is replaced whole, so that a reader finds the old or the new
one; a process is recorded with its start, so that a number used again is never taken for it. The
lock ends with its holder, so a record that names a supervisor may be stale and the lock never is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mictlanfs.durable import replace_file, sync_folder
from mictlanfs.errors import UsageError
from mictlanfs.jsontext import from_json, to_json
from mictlanfs.processes import ProcessIdentity, current_process, is_running

FORMAT = 1

_OUR_ENTRIES = re.compile(r"router|peer-\d+|log|lock|control|sharers(\.\d+)?|space\.json(\.\d+)?")
_PEER_ENTRY = re.compile(r"peer-(\d+)")
# What mkfs leaves in the root of a new file system does not make it somebody's.
_IGNORED_ENTRIES = frozenset({"lost+found"})


class MountRecord(msgspec.Struct, frozen=True):
    """Where the space is mounted by its supervisor.

    Attributes:
        mountpoint: absolute path.
        is_made: the supervisor made the directory and has to remove it.
    """

    mountpoint: str
    is_made: bool


class SpaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `space.json` holds.

    Attributes:
        uri: of the space.
        host: address that router and peers listen on.
        port: of the router.
        peer_ports: of the peers, by index; their number is the number of peers.
        stopped_peers: indices of those that are not to run, in order.
        capacity: bytes that each peer may hold; None: as much as its disk.
        insecure: whether the servers may listen beyond this machine without TLS and tokens.
        supervisor: None when the last one ended in order.
        children: name ("router", "peer-0", "mount") -> process; those of a supervisor that was
            killed may be stale.
    """

    format: int = FORMAT
    uri: str
    host: str
    port: int
    peer_ports: tuple[int, ...]
    stopped_peers: tuple[int, ...] = ()
    capacity: int | None = None
    insecure: bool = False
    supervisor: ProcessIdentity | None = None
    children: dict[str, ProcessIdentity] = {}
    mount: MountRecord | None = None

    @property
    def running_peers(self) -> list[int]:
        """Indices of the peers that are to run."""
        return [index for index in range(len(self.peer_ports)) if index not in self.stopped_peers]

    @property
    def processes(self) -> list[ProcessIdentity]:
        """Everything recorded as running, the supervisor first."""
        supervisor = [self.supervisor] if self.supervisor else []
        return [*supervisor, *self.children.values()]


class _Versioned(msgspec.Struct, frozen=True):
    format: int


@dataclass(frozen=True, slots=True)
class SpaceDirectory:
    """The paths of one space. `path` is absolute and need not exist."""

    path: Path

    @property
    def router(self) -> Path:
        """Data of the router."""
        return self.path / "router"

    def peer(self, index: int) -> Path:
        """Data of the peer `index`."""
        return self.path / f"peer-{index}"

    def log_of(self, name: str) -> Path:
        """The log file of the process `name`."""
        return self.path / "log" / f"{name}.log"

    @property
    def control_path(self) -> Path:
        """The socket on which the supervisor takes requests."""
        return self.path / "control"

    @property
    def sharers_path(self) -> Path:
        """The file that tells the peers how many of them share the disk."""
        return self.path / "sharers"

    @property
    def lock_path(self) -> Path:
        """The file that the supervisor holds locked."""
        return self.path / "lock"

    @property
    def record_path(self) -> Path:
        """The file that holds the `SpaceRecord`."""
        return self.path / "space.json"

    def peer_count(self) -> int:
        """How many peers have, or had, data here, whatever is recorded."""
        matches = (_PEER_ENTRY.fullmatch(name) for name in _entries(self.path))
        return max((int(match[1]) + 1 for match in matches if match), default=0)

    def read_record(self) -> SpaceRecord | None:
        """What is recorded; None when nothing is.

        Raises:
            UsageError: the record cannot be read, is damaged, or a newer version wrote it.
        """
        try:
            text = self.record_path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _refusal(self.record_path, error) from error
        try:
            if (found := from_json(text, _Versioned).format) > FORMAT:
                raise UsageError(
                    f"{self.path} was written by a newer MictlanFS (format {found}, "
                    f"known up to {FORMAT}): install that version"
                )
            return from_json(text, SpaceRecord)
        except ValueError as error:
            raise UsageError(
                f"{self.record_path} is damaged ({error}): remove this file, the data is elsewhere"
            ) from error

    def owner(self) -> ProcessIdentity | None:
        """The process that serves the space; None when it has ended or there is none.

        Asks the lock file and not the lock: to try a lock is to hold it, and a supervisor that
        starts at that moment would be refused.
        """
        try:
            process = from_json(self.lock_path.read_bytes(), ProcessIdentity)
        except (OSError, ValueError):
            return None
        return process if is_running(process) else None

    def is_served(self) -> bool:
        """Whether a supervisor runs, or one was killed and left something to clean up."""
        if self.owner() is not None:
            return True
        record = self.read_record()
        return record is not None and bool(record.processes)


@dataclass(slots=True)
class Claim:
    """The right to serve a space, held inside the block of `claimed`.

    Attributes:
        is_fresh: the directory held nothing before.
        keep: whether a fresh directory stays when the claim ends; set it as soon as somebody may
            have stored something.
    """

    directory: SpaceDirectory
    is_fresh: bool
    keep: bool = False
    _lock: int = -1

    def is_valid(self) -> bool:
        """Whether the directory is still there, and still the one that was claimed."""
        try:
            return _is_named(self.directory.lock_path, self._lock)
        except OSError:
            # A disk that fails for a moment is no reason to give up what it holds.
            return True

    def write_record(self, record: SpaceRecord) -> None:
        """Replace what `space.json` holds; it is durable on return.

        Raises:
            OSError: the old record still stands, if the directory does.
        """
        path = self.directory.record_path
        if not self.is_valid():
            raise FileNotFoundError(errno.ENOENT, "the directory was removed or replaced", path)
        replace_file(path, to_json(record, indent=2), is_durable=True)


@contextmanager
def claimed(directory: SpaceDirectory) -> Iterator[Claim]:
    """Make `directory` if it is missing and hold its lock inside the block.

    A directory that held nothing before is as it was after the block, unless `keep` was set.

    Raises:
        UsageError: it is not a directory, holds something else, cannot be written to, or is
            served by another process.
    """
    made: list[Path] = []
    try:
        _check_content(directory.path)
        made = make_directories(directory.path, mode=0o700)
        is_fresh = not (_entries(directory.path) - {"lock"})
        lock = _locked(directory)
    except (OSError, UsageError) as error:
        remove_directories(made)
        if isinstance(error, UsageError):
            raise
        raise _refusal(directory.path, error) from error
    claim = Claim(directory, is_fresh, _lock=lock)
    try:
        yield claim
    finally:
        if claim.is_fresh and not claim.keep and claim.is_valid():
            _remove_ours(directory.path)
            remove_directories(made)
        # Who held the lock may live on, and must not be taken for the one who holds it.
        os.ftruncate(lock, 0)
        os.close(lock)


def make_directories(path: Path, mode: int = 0o777) -> list[Path]:
    """Make `path` and the directories above it that are missing; those made, outermost first.

    Their names survive a power cut.

    Raises:
        OSError: nothing was made.
    """
    missing: list[Path] = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            # Somebody else may make it at the same moment; then it is theirs.
            with suppress(FileExistsError):
                folder.mkdir(mode)
                made.append(folder)
                sync_folder(folder.parent)
    except OSError:
        remove_directories(made)
        raise
    return made


def remove_directories(made: list[Path]) -> None:
    """Remove what `make_directories` made, as far as it is empty."""
    for folder in reversed(made):
        with suppress(OSError):
            folder.rmdir()


def _entries(path: Path) -> set[str]:
    try:
        return {entry.name for entry in path.iterdir()} - _IGNORED_ENTRIES
    except OSError:
        return set()


def _check_content(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is not a directory: choose another place for the data")
    strangers = {name for name in _entries(path) if not _OUR_ENTRIES.fullmatch(name)}
    if strangers and not (path / "space.json").exists():
        raise UsageError(
            f"{path} holds other things ({min(strangers)}): choose an empty or a new directory"
        )


def _locked(directory: SpaceDirectory) -> int:
    """A descriptor that holds the lock."""
    while True:
        lock = os.open(directory.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file just before: then this lock guards nothing.
            if _is_named(directory.lock_path, lock):
                os.ftruncate(lock, 0)
                os.write(lock, to_json(current_process()))
                return lock
        except BlockingIOError:
            os.close(lock)
            raise _already_served(directory) from None
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _already_served(directory: SpaceDirectory) -> UsageError:
    process = directory.owner()
    owner = f"process {process.pid}" if process else "another process"
    return UsageError(
        f"{directory.path} is served by {owner} already: "
        f"stop it with `mictlanfs server stop --data {directory.path}` or choose another --data"
    )


def _refusal(path: Path, error: OSError) -> UsageError:
    reason = error.strerror or str(error)
    return UsageError(f"cannot keep data in {path}: {reason.lower()}")


def _remove_ours(path: Path) -> None:
    # The lock last: who makes a new one must not lose to us what it puts beside it.
    ours = [name for name in _entries(path) if _OUR_ENTRIES.fullmatch(name)]
    for name in sorted(ours, key=lambda name: name == "lock"):
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()
