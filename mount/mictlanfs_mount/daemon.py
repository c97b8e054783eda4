"""The life of a mount process, seen from the commands that start and end it.

::

    mictlanfs mount                        mount process (own session)
    starts it, waits --------------------> reaches the space, mounts
    returns       <---- report: ready ---- answers; record written; goes on
    one line      <---- report: error ---- nothing is mounted; ends

    mictlanfs umount
    unmounts ----------------------------> notices, stores what is dirty, removes the record
    returns       <----------------------- ends

Owns the report between the two and the clean-up after a start that failed. Invariants: `launch`
returns only when the mount answers, and leaves neither process nor mount behind when it raises;
a mount process whose launcher is gone before it was ready ends.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from mictlanfs import logfiles
from mictlanfs.config import given_fields, option_names, parse_mount_options
from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs.jsontext import from_json, to_json
from mictlanfs.lastwords import last_words
from mictlanfs.launching import Daemon, describe_status, launched, module_command
from mictlanfs.mounts.pulse import Pulse, pulse_of
from mictlanfs.mounts.remounting import remount
from mictlanfs.mounts.table import Mount, find_mount, mount_around, resolved
from mictlanfs.mounts.unmounting import unmount, unmount_if_dead
from mictlanfs.mounts.users import serving_process
from mictlanfs.oserrors import translated_os_errors
from mictlanfs.processes import ProcessIdentity, is_running, wait_ended
from mictlanfs.taskerrors import single_error
from mictlanfs.wire import WireError
from mictlanfs_mount import logfile, record
from mictlanfs_mount.settings import MountSettings

log = logging.getLogger(__name__)

# Above the time a mount waits for a router that does not answer.
START_TIMEOUT_S = 30.0
# How long a mount process that has nothing to store may take to end.
_END_TIMEOUT_S = 5.0
# How long a new mount waits for the process of the last one, which umount(8) did not wait for. One
# that was taken out of the tree lazily may live as long as programs use it.
PREDECESSOR_TIMEOUT_S = 15.0
PROGRAM = module_command("mictlanfs_mount")


class Report(msgspec.Struct, frozen=True):
    """What a mount process tells its launcher, as one line of JSON.

    Attributes:
        error: None: the mount is ready.
        is_usage: the error is a `UsageError`.
    """

    error: WireError | None = None
    is_usage: bool = False

    def to_line(self) -> bytes:
        """The line that travels."""
        return to_json(self)

    @classmethod
    def of_line(cls, line: bytes) -> Report:
        """What a line says. ValueError when it is none."""
        return from_json(line, cls)

    def raise_error(self) -> None:
        """Raise the error, if there is one.

        Raises:
            MictlanError: the error.
        """
        if self.error is None:
            return
        if self.is_usage:
            raise UsageError(self.error.detail)
        raise self.error.to_error()


# --- the launcher --------------------------------------------------------------------------------


def launch(
    uri: str,
    where: Path,
    options: str,
    *,
    program: Sequence[str] = PROGRAM,
    timeout_s: float = START_TIMEOUT_S,
) -> None:
    """Start a mount process and return when its mount answers.

    Args:
        uri: of the space.
        where: the mountpoint, checked before.
        options: as behind `-o`.
        program: the command that runs `mictlanfs_mount`.
        timeout_s: after which the attempt is ended.

    Raises:
        MictlanError: what the mount process reported, or TIMED_OUT, or INTERNAL when it died.
    """
    _await_predecessor(where)
    log_path = logfile.log_path_of(where)
    with translated_os_errors("open", str(log_path)):
        log_fd = logfiles.open_log(log_path)
    log_offset = os.fstat(log_fd).st_size

    def command(report_fd: int) -> list[str]:
        own = ("--report-fd", str(report_fd), "--log", str(log_path))
        return [*program, *own, "-o", options, "--", uri, str(where)]

    try:
        with launched(command, end_timeout_s=_END_TIMEOUT_S, output=log_fd) as mount:
            _await_ready(mount, timeout_s, log_path, log_offset)
    except BaseException:
        # What is mounted there and answers is another's.
        with suppress(MictlanError):
            unmount_if_dead(where)
        raise
    finally:
        os.close(log_fd)


def _await_predecessor(where: Path) -> None:
    """Let a mount that umount(8) has just ended store the rest, and free its disk cache."""
    known = record.read_record(where)
    if known is not None and find_mount(where) is None:
        wait_ended([known.process], PREDECESSOR_TIMEOUT_S)


def _await_ready(mount: Daemon, timeout_s: float, log_path: Path, log_offset: int) -> None:
    line = mount.read_report(timeout_s)
    if line is None:
        detail = f"it was not ready within {timeout_s:g} s (see {log_path})"
        raise MictlanError(Kind.TIMED_OUT, "mount", "", detail)
    try:
        report = Report.of_line(line)
    except ValueError:
        how = _how_it_ended(mount.process)
        said = last_words(log_path, log_offset)
        detail = f"its process {how} before it was ready: {said or 'no reason given'}"
        raise MictlanError(Kind.INTERNAL, "mount", "", f"{detail} (see {log_path})") from None
    report.raise_error()


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        return f"ended ({describe_status(process.wait(_END_TIMEOUT_S))})"
    except subprocess.TimeoutExpired:
        return "said nothing"


# --- the mount process ---------------------------------------------------------------------------

RunMount = Callable[[MountSettings, Callable[[], None]], None]


def run_session(settings: MountSettings, notify_ready: Callable[[], None]) -> None:
    """`session.run_mount`, imported now: it needs pyfuse3."""
    from mictlanfs_mount.session import run_mount

    run_mount(settings, notify_ready)


def serve(
    settings: MountSettings,
    notify_ready: Callable[[], None],
    *,
    log_path: Path | None = None,
    run_mount: RunMount = run_session,
) -> None:
    """Mount a space and serve it in this process until it is unmounted, with a record of it.

    Args:
        settings: what to mount where.
        notify_ready: called once, when the mount answers and its record is written.
        log_path: of this process, for the record; None in the foreground.
        run_mount: mounts and serves.

    Raises:
        MictlanError: the space could not be mounted, or the mount ended with something lost.
    """
    own = record.record_of_this_process(
        settings.mountpoint, settings.uri, log_path, settings.options
    )
    is_ready = False

    def on_ready() -> None:
        nonlocal is_ready
        try:
            record.write_record(own)
        except MictlanError as error:
            # `umount` then finds this process another way, or says that it cannot wait for it.
            log.warning("no record of this mount: %s", error)
        notify_ready()
        is_ready = True

    try:
        run_mount(settings, on_ready)
    except Exception as error:
        if is_ready:
            with suppress(MictlanError):
                record.write_record(msgspec.structs.replace(own, error=str(error)))
        else:
            record.remove_record(own)
        raise
    record.remove_record(own)


def serve_and_report(
    settings: MountSettings,
    report_fd: int,
    log_path: Path,
    *,
    run_mount: RunMount = run_session,
) -> None:
    """`serve` in the background: reports to the launcher, logs to a file. Takes `report_fd` over.

    Raises:
        MictlanError: as `serve`; the launcher was told when it still waited.
    """
    pending = [report_fd]

    def report(what: Report) -> None:
        fd = pending.pop()
        try:
            os.write(fd, what.to_line())
        except BrokenPipeError:
            detail = "the command that started this mount is gone: not mounting"
            raise MictlanError(Kind.UNAVAILABLE, detail=detail) from None
        finally:
            os.close(fd)

    try:
        logfile.log_to_file(log_path)
        # Not to keep the directory busy that the command was called in.
        os.chdir("/")
        serve(settings, lambda: report(Report()), log_path=log_path, run_mount=run_mount)
    except BaseException as raised:
        error = _as_mictlan_error(single_error(raised))
        if pending:
            with suppress(MictlanError):
                is_usage = isinstance(error, UsageError)
                report(Report(WireError.of(error), is_usage))
        raise error from raised


def _as_mictlan_error(error: BaseException) -> MictlanError:
    """What to tell of `error`; a defect of the program goes to the log with its traceback."""
    if isinstance(error, MictlanError):
        log.error("%s", error)
        return error
    log.critical("the mount ends for a defect", exc_info=error)
    return MictlanError(Kind.INTERNAL, detail=f"internal error: {type(error).__name__}: {error}")


# --- changing a mount -----------------------------------------------------------------------------


def change_mount(path: Path, options: str) -> None:
    """Change the mount at `path` while programs use it, as `mount -o remount` asks.

    Args:
        path: the mountpoint, in any form.
        options: as behind `-o`; those not given stay as they are.

    Raises:
        UsageError: no space is mounted there, or an option is wrong or fixed while it is mounted.
        MictlanError: as `remount`.
    """
    where = resolved(path)
    mount = find_mount(where)
    if mount is None or not mount.is_ours:
        raise UsageError(f"no space is mounted at {where}, so it cannot be mounted anew")
    parsed = parse_mount_options(options)
    given = given_fields(options)
    is_read_only = given.pop("read_only", None)
    known = record.read_record(where)
    for field, text in record.option_texts(given).items():
        if known is not None and known.options.get(field, text) != text:
            raise UsageError(
                f"option {option_names(field)} cannot be changed while {where} is mounted: "
                f"unmount it and mount it again"
            )
    access = [] if is_read_only is None else ["ro" if is_read_only else "rw"]
    remount(mount, [*access, *parsed.carried])


# --- ending a mount ------------------------------------------------------------------------------


def end_mount(path: Path, *, is_lazy: bool, timeout_s: float, say: Callable[[str], None]) -> None:
    """Unmount the space at `path` and wait until its process has ended, so all is durable.

    Args:
        path: the mountpoint, in any form.
        is_lazy: take it out of the tree although programs use it, and wait for nothing.
        timeout_s: how long to wait.
        say: told what the user should know besides.

    Raises:
        UsageError: what is mounted there is no space.
        MictlanError: NOT_FOUND when nothing is; BUSY; TIMED_OUT when the process still stores
            data; the error that the mount ended with.
    """
    where = resolved(path)
    mount = find_mount(where)
    known = record.read_record(where)
    if mount is None:
        process = known.process if known is not None else None
        if process is None or not is_running(process):
            raise _not_mounted(where, known)
    elif not mount.is_ours:
        raise UsageError(
            f"{where} is a mount of another kind ({mount.type}, {mount.source}): "
            f"use 'umount {where}'"
        )
    elif pulse_of(where) is Pulse.DEAD:
        unmount(where, lazy=True)
        if known is not None:
            record.remove_record(known)
        say(f"the mount at {where} had lost its process: what it had not stored is lost")
        return
    else:
        # Looked up before it is unmounted: afterwards nothing leads there.
        process = _serving(mount, known)
        unmount(where, lazy=is_lazy)
    if not is_lazy:
        _await_end(where, process, timeout_s, say)


def _serving(mount: Mount, known: record.MountRecord | None) -> ProcessIdentity | None:
    if known is not None and is_running(known.process):
        return known.process
    return serving_process(mount)


def _not_mounted(where: Path, known: record.MountRecord | None) -> MictlanError:
    if known is not None and known.error:
        detail = f"nothing is mounted there; its last mount ended badly: {known.error}"
        record.remove_record(known)
    elif (around := mount_around(where)) is not None:
        detail = f"it is no mountpoint, but lies in the space mounted at {around.mountpoint}"
    else:
        detail = "nothing is mounted there"
    return MictlanError(Kind.NOT_FOUND, "unmount", str(where), detail)


def _await_end(
    where: Path, process: ProcessIdentity | None, timeout_s: float, say: Callable[[str], None]
) -> None:
    if process is None:
        say(f"unmounted {where}, but its process is not known: it may still store data")
        return
    if wait_ended([process], timeout_s):
        known = record.read_record(where)
        see = f" (see {known.log_path})" if known is not None and known.log_path else ""
        detail = f"done, but its process (pid {process.pid}) still stores data{see}"
        raise MictlanError(Kind.TIMED_OUT, "unmount", str(where), detail)
    known = record.read_record(where)
    if known is not None and known.process == process:
        record.remove_record(known)
        if known.error:
            detail = f"done, but something was lost: {known.error}"
            raise MictlanError(Kind.INTERNAL, "unmount", str(where), detail)
