"""Records of mounts: which process serves which mountpoint, and how it ended.

One small file for each mountpoint below the user's runtime directory, written when the mount
answers and removed when it has ended well. A mount that ended with something lost leaves its record
with the reason, for `mictlanfs umount` to tell. A record is a hint and never a promise: one whose
process has ended, or that somebody removed, does no harm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from mictlanfs import paths
from mictlanfs.config import MountOptions
from mictlanfs.durable import replace_file
from mictlanfs.errors import MictlanError
from mictlanfs.identifiers import boot_id
from mictlanfs.jsontext import from_json, to_json
from mictlanfs.oserrors import translated_os_errors
from mictlanfs.processes import ProcessIdentity, current_process

_FOLDER = "mounts"


class MountRecord(msgspec.Struct, frozen=True):
    """A mount and the process that serves it.

    Attributes:
        process: the one that serves it, which may have ended.
        mountpoint: absolute and without symlinks.
        uri: of the space.
        log_path: of the process; empty in the foreground.
        error: why the mount ended badly; empty while it runs.
        options: the fields of `MountOptions` as texts, to be compared only.
    """

    process: ProcessIdentity
    mountpoint: str
    uri: str
    log_path: str = ""
    error: str = ""
    options: dict[str, str] = {}  # msgspec copies it.


def record_of_this_process(
    mountpoint: Path, uri: str, log_path: Path | None, options: MountOptions | None = None
) -> MountRecord:
    """A record that says that this process serves `mountpoint`."""
    texts = {} if options is None else option_texts(dataclasses.asdict(options))
    return MountRecord(current_process(), str(mountpoint), uri, str(log_path or ""), options=texts)


def option_texts(options: Mapping[str, object]) -> dict[str, str]:
    """Fields of `MountOptions` in the form in which they are recorded."""
    return {field: str(value) for field, value in options.items()}


def write_record(record: MountRecord) -> None:
    """Write a record, in the place of any older one of the mountpoint.

    Raises:
        MictlanError: the runtime directory cannot be written.
    """
    file = _file_of(Path(record.mountpoint))
    with translated_os_errors("write", str(file)):
        file.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(file, to_json(record))


def read_record(mountpoint: Path) -> MountRecord | None:
    """The record of a mountpoint; None when there is none of this boot, or it is damaged."""
    try:
        record = from_json(_file_of(mountpoint).read_bytes(), MountRecord)
    except (OSError, MictlanError, ValueError):
        return None
    is_right = record.mountpoint == str(mountpoint) and record.process.boot_id == boot_id()
    return record if is_right else None


def remove_record(record: MountRecord) -> None:
    """Remove a record, unless that of another process has taken its place."""
    mountpoint = Path(record.mountpoint)
    found = read_record(mountpoint)
    if found is not None and found.process == record.process:
        with suppress(OSError):
            _file_of(mountpoint).unlink(missing_ok=True)


def _file_of(mountpoint: Path) -> Path:
    # A path may be longer than a name may be.
    name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]
    return paths.runtime_dir() / _FOLDER / f"{name}.json"
