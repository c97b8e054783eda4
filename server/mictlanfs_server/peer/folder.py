"""The data folder of a peer: whose it is, in which form, of which space.

::

    format           name and version of the form, written first
    lock             held with flock(2) while a peer runs; says its process number
    store            token of this store, made with it: who has another one has lost its data
    space            id of the space whose data lies here, once a router told
    peer.json        who the peer was when a router last welcomed it, see `PeerIdentity`
    index.sqlite     see `index.py`
    chunks/ temporary/    see `backends/file.py`

Owns the first four. A folder that is refused is left as it was found.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

import msgspec

from mictlanfs.durable import make_folder, replace_file
from mictlanfs.errors import UsageError
from mictlanfs.identifiers import new_token
from mictlanfs.jsontext import from_json, to_json

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT_NAME: Final = "mictlanfs-peer"
FORMAT_VERSION: Final = 1
INDEX_NAME: Final = "index.sqlite"
_OUR_NAMES: Final = ("chunks", "temporary", INDEX_NAME)
_IDENTITY_NAME: Final = "peer.json"
_TEXT_SIZE_BYTES_MAX: Final = 256


class PeerIdentity(msgspec.Struct, frozen=True):
    """Who a peer is in its space: for a restore that has only its folder.

    Attributes:
        number: stands for it in the metadata.
        url: where it was reached.
    """

    id: str
    number: int
    url: str
    zone: str = ""


class DataFolder:
    """A data folder, locked until `close`.

    Raises:
        UsageError: it cannot be used, another peer runs in it, or a newer program wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            make_folder(path)
            self._refuse_foreign()
            self._lock_fd: int | None = self._lock()
        except OSError as error:
            raise UsageError(f"{path} cannot hold the data of a peer: {error.strerror}") from error
        try:
            self._check_format()
            self._make_token()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another peer have the folder."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @property
    def space_id(self) -> str:
        """The space whose data lies here; empty for a new folder."""
        return read_space(self.path)

    @property
    def store_id(self) -> str:
        """The token of this store, the same as long as its data is there."""
        return self._store_id

    def _make_token(self) -> None:
        self._store_id = read_store(self.path)
        if not self._store_id:
            self._store_id = new_token()
            replace_file(self.path / "store", f"{self._store_id}\n".encode(), is_durable=True)

    def remember_space(self, space_id: str) -> None:
        """Note durably which space the data belongs to."""
        replace_file(self.path / "space", f"{space_id}\n".encode(), is_durable=True)

    def remember_peer(self, identity: PeerIdentity) -> None:
        """Note durably who the peer is, if that is news."""
        if read_identity(self.path) != identity:
            replace_file(self.path / _IDENTITY_NAME, to_json(identity), is_durable=True)

    def _refuse_foreign(self) -> None:
        """Files of somebody else that have our names must not be swept away."""
        if (self.path / "format").exists():
            return
        for name in _OUR_NAMES:
            if (self.path / name).exists():
                raise UsageError(
                    f"{self.path} has {name!r} but no 'format': it is not the data of a peer. "
                    "Choose another folder with --data"
                )

    def _lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.path / "lock", flags, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            os.close(fd)
            owner = _read_text(self.path / "lock") or "unknown"
            raise UsageError(
                f"{self.path} is in use by another peer (process {owner}): "
                "stop it or choose another folder with --data"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_format(self) -> None:
        path = self.path / "format"
        text = _read_text(path)
        if not text and not path.exists():
            replace_file(path, f"{_FORMAT_NAME} {FORMAT_VERSION}\n".encode(), is_durable=True)
            return
        name, _, version = text.partition(" ")
        if name != _FORMAT_NAME or not version.isascii() or not version.isdecimal():
            raise UsageError(f"{self.path} is not the data of a peer: choose another with --data")
        if int(version) > FORMAT_VERSION:
            raise UsageError(
                f"{self.path} was written by a newer MictlanFS (format {version}, this one knows "
                f"{FORMAT_VERSION}): upgrade this program"
            )


def read_identity(folder: Path) -> PeerIdentity | None:
    """Who the peer of a folder was; None when no router has told, or the file is damaged."""
    try:
        return from_json((folder / _IDENTITY_NAME).read_bytes(), PeerIdentity)
    except (FileNotFoundError, ValueError):
        return None


def read_space(folder: Path) -> str:
    """The space whose data lies in the folder of a peer; empty when there is none."""
    return _read_text(folder / "space")


def read_store(folder: Path) -> str:
    """The token of the store in the folder of a peer; empty when there is none."""
    return _read_text(folder / "store")


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_TEXT_SIZE_BYTES_MAX).strip()
    except FileNotFoundError:
        return ""
