"""Where this user's files lie outside the space: configuration, state, cache, runtime directories.

Owns their locations (XDG base directories) and the record of the space that this user made last.
Never reads the environment before it is called. Directories are made on first use, for the user
alone (mode 0700).
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mictlanfs.durable import replace_file
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.jsontext import from_json, to_json
from mictlanfs.oserrors import translated_os_errors

_DIRECTORY_NAME = "mictlanfs"
_PRIVATE_MODE = 0o700
RUNTIME_DIRECTORY_OF_ROOT = Path("/run/mictlanfs")
CONFIGURATION_DIRECTORY_OF_ALL = Path("/etc/mictlanfs")


@dataclass(frozen=True, slots=True)
class LastSpace:
    """The space that `up` or `server start` last made for this user.

    Attributes:
        uri: how to reach it.
        data: its data directory, absolute.
    """

    uri: str
    data: Path


class _LastSpaceRecord(msgspec.Struct, frozen=True):
    """A `LastSpace` as it is kept."""

    uri: str
    data: str


def configuration_dirs() -> list[Path]:
    """Where configuration files are looked for, the first that has one counts; never made.

    `$XDG_CONFIG_HOME/mictlanfs`, by default `~/.config/mictlanfs`, then `/etc/mictlanfs`.
    """
    try:
        return [_xdg("XDG_CONFIG_HOME", ".config"), CONFIGURATION_DIRECTORY_OF_ALL]
    except MictlanError:
        # A service, or mount(8) at boot, may have no home.
        return [CONFIGURATION_DIRECTORY_OF_ALL]


def state_dir() -> Path:
    """Where small things that should survive a reboot are kept; made when missing.

    `$XDG_STATE_HOME/mictlanfs`, by default `~/.local/state/mictlanfs`.

    Raises:
        MictlanError: the directory cannot be made.
    """
    return _made(_xdg("XDG_STATE_HOME", ".local/state"))


def recovery_dir() -> Path:
    """Where mounts keep what they could not commit; made when missing. Raises as `state_dir`."""
    return _made(state_dir() / "recovery")


def cache_dir() -> Path:
    """Where data that can be fetched again is kept; made when missing.

    `$XDG_CACHE_HOME/mictlanfs`, by default `~/.cache/mictlanfs`.

    Raises:
        MictlanError: the directory cannot be made.
    """
    return _made(_xdg("XDG_CACHE_HOME", ".cache"))


def runtime_dir() -> Path:
    """Where sockets and process ids are kept until the machine stops; made when missing.

    `$XDG_RUNTIME_DIR/mictlanfs`; without it `/run/mictlanfs` for root and a directory named by
    the user's number below the temporary directory for others.

    Raises:
        MictlanError: the directory cannot be made, or somebody else made it first.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if base.is_absolute():
        return _made(base / _DIRECTORY_NAME)
    if os.geteuid() == 0:
        return _made(RUNTIME_DIRECTORY_OF_ROOT)
    # Anybody may make directories there, so this one may be a trap.
    directory = Path(tempfile.gettempdir()) / f"{_DIRECTORY_NAME}-{os.geteuid()}"
    return _refuse_if_shared(_made(directory))


def last_space_file() -> Path:
    """The file that names the space this user made last; it need not exist."""
    return state_dir() / "last-space.json"


def record_last_space(uri: str, data: Path) -> None:
    """Remember a space as the one this user made last.

    The file is replaced whole, so that a reader meets the old record or the new one.

    Raises:
        MictlanError: the state directory cannot be written.
    """
    file = last_space_file()
    with translated_os_errors("write", str(file)):
        replace_file(file, to_json(_LastSpaceRecord(uri, str(data.absolute()))))


def read_last_space() -> LastSpace | None:
    """The space this user made last; None when there is none or the record is damaged."""
    try:
        record = from_json(last_space_file().read_bytes(), _LastSpaceRecord)
    except (OSError, MictlanError, ValueError):
        return None
    return LastSpace(record.uri, Path(record.data))


def _xdg(variable: str, default: str) -> Path:
    """A directory below the XDG base directory that `variable` names.

    Source: XDG Base Directory Specification; a relative path there is to be ignored.
    """
    base = Path(os.environ.get(variable, ""))
    if base.is_absolute():
        return base / _DIRECTORY_NAME
    try:
        return Path.home() / default / _DIRECTORY_NAME
    except RuntimeError as error:
        detail = f"no home directory: set HOME or {variable}"
        raise MictlanError(Kind.NOT_FOUND, detail=detail) from error


def _made(directory: Path) -> Path:
    """`directory`, made when missing."""
    with translated_os_errors("make directory", str(directory)):
        directory.mkdir(mode=_PRIVATE_MODE, parents=True, exist_ok=True)
    return directory


def _refuse_if_shared(directory: Path) -> Path:
    """`directory`, unless somebody else made it or can write to it."""
    with translated_os_errors("use", str(directory)):
        found = directory.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if not is_private or found.st_uid != os.geteuid():
        detail = "it is not a private directory of this user: remove it, or set XDG_RUNTIME_DIR"
        raise MictlanError(Kind.ACCESS_DENIED, "use", str(directory), detail)
    return directory
