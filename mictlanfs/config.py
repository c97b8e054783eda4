"""The options of a mount, each declared once: name, type, default, unit and help.

Owns the text form (`-o a,b=c`, as in fstab) and its parsing. Help texts and documents are derived
from `MOUNT_OPTIONS`. Sizes are binary, as elsewhere in mount options: K, M, G and T are powers of
1024, with or without a following "iB" or "B".
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from mictlanfs.errors import UsageError
from mictlanfs.model import GIB, KIB, MIB

T = TypeVar("T")

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}
_OPTION = "option"
# One that separates options, not one inside a value.
_COMMA = r"(?<!\\),"
_UID_MAX = 2**32 - 2
WRITE_BACK = "write-back"
WRITE_THROUGH = "write-through"


@dataclass(frozen=True, slots=True)
class Option:
    """One mount option as a user writes it.

    Attributes:
        name: as in `name` (a flag) or `name=value`.
        help: one sentence without a full stop.
        parse: gives the value for the text behind `=`; raises ValueError. None: a flag.
        default: as a user would write it; empty when there is none.
        unit: of a plain number; empty where it has none.
        value: of a flag, what its presence sets.
        is_carried: the flag is passed on to the kernel.
        is_ignored: accepted, since mount(8) and fstab pass it, and without effect.
    """

    name: str
    help: str
    parse: Callable[[str], object] | None = None
    default: str = ""
    unit: str = ""
    value: bool = True
    is_carried: bool = False
    is_ignored: bool = False


def parse_size(text: str) -> int:
    """Bytes in a size such as `4096`, `256M`, `1.5G` or `10GiB`; units are powers of 1024.

    Raises:
        ValueError: `text` is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("it is not a size such as 4096, 256M or 1.5G")
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])


def format_size(size_bytes: float) -> str:
    """A size for people, such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size_bytes) < 1024 or unit == "TiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"


def _parse_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _UID_MAX):
        raise ValueError(f"it is not a whole number from 0 to {_UID_MAX}")
    return int(text)


def _parse_octal(text: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", text):
        raise ValueError("it is not an octal mode such as 022")
    return int(text, 8)


def _parse_seconds(text: str) -> float:
    # Neither inf nor nan: float() would take them.
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError("it is not a number of seconds such as 30 or 0.5")
    return float(text)


def _parse_text(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("it is empty or not a text")
    return text


def _parse_directory(text: str) -> Path:
    directory = Path(_parse_text(text)).expanduser()
    if not directory.is_absolute():
        raise ValueError("it is not an absolute path")
    return directory


def _parse_subdir(text: str) -> str:
    names = [name for name in _parse_text(text).split("/") if name not in {"", "."}]
    if not names or ".." in names:
        raise ValueError("it is not a path such as BUCKET/a/b")
    return "/".join(names)


def _parse_metadata(text: str) -> str:
    if text not in {WRITE_BACK, WRITE_THROUGH}:
        raise ValueError(f"it is neither {WRITE_BACK} nor {WRITE_THROUGH}")
    return text


def _flag(*options: Option, default: bool = False) -> bool:
    """A field that flags set; the last one given wins."""
    return dataclasses.field(default=default, metadata={_OPTION: options})


def _value(name: str, text: str, parse: Callable[[str], T], default: str = "", unit: str = "") -> T:
    """A field with a value behind `=`; without a default it is None when the option is absent."""
    option = Option(name, text, parse, default, unit)
    value = parse(default) if default else None
    return cast("T", dataclasses.field(default=value, metadata={_OPTION: (option,)}))


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `-o` says of a mount. Sizes in bytes unless the name says otherwise.

    Attributes:
        uid, gid: owner shown for everything; None: as stored.
        umask: permission bits hidden from everything; None: none.
        subdir: `BUCKET/a/b` that is mounted in the place of the whole space.
        cache_dir: where the disk cache lies; None: the user's cache directory.
        memory: budget of buffers and the memory cache together.
        inline_size_max: writes of at most this are kept in the router's metadata; 0: none.
        attr_timeout_s: how long the kernel may trust attributes and names.
        read_ahead_kib: of the kernel, per open file.
        deadline_s: after which a request to a space that does not answer fails.
        leases: whether what the space tells is kept for as long as a lease covers it.
        metadata: when the router is told of changes of names and attributes.
        short_circuit: whether chunks of peers on this machine are read from their files.
        spin: whether `mictlanfs_mount.requestloop` waits for requests.
        fsname: shown as the source in /proc/mounts; None: the URI.
        sync, dirsync: as in mount(8); `sync` implies the other.
        carried: flags for the kernel, in the order given, each once and none with its contrary.
    """

    read_only: bool = _flag(
        Option("ro", "refuse every change"), Option("rw", "allow changes (default)", value=False)
    )
    allow_other: bool = _flag(Option("allow_other", "let other users in"))
    default_permissions: bool = _flag(
        Option("default_permissions", "let the kernel check permissions; always on"), default=True
    )
    uid: int | None = _value("uid", "show this user as owner", _parse_number)
    gid: int | None = _value("gid", "show this group as owner", _parse_number)
    umask: int | None = _value("umask", "hide these permission bits", _parse_octal, unit="octal")
    subdir: str | None = _value("subdir", "mount only BUCKET/a/b of the space", _parse_subdir)
    cache_dir: Path | None = _value(  # noqa: RUF009  # It returns a field, not a mutable default.
        "cache_dir", "directory of the disk cache", _parse_directory
    )
    cache_size: int = _value("cache_size", "limit of the disk cache", parse_size, "10G", "bytes")
    memory: int = _value(
        "memory", "budget of buffers and memory cache", parse_size, "256M", "bytes"
    )
    inline_size_max: int = _value(
        "inline", "keep files and writes of at most this in the metadata", parse_size, "8K", "bytes"
    )
    attr_timeout_s: float = _value(
        "attr_timeout", "trust attributes and names this long", _parse_seconds, "1", "seconds"
    )
    read_ahead_kib: int = _value(
        "read_ahead", "read-ahead of the kernel", _parse_number, "4096", "KiB"
    )
    deadline_s: float = _value(
        "deadline", "fail requests that take longer than this", _parse_seconds, "30", "seconds"
    )
    sync_on_close: bool = _flag(
        Option("sync_on_close", "close returns when the file is durable, and reports errors")
    )
    sync: bool = _flag(
        Option("sync", "every write and every change of names returns when it is durable"),
        Option("async", "changes become durable soon, or by fsync (default)", value=False),
    )
    dirsync: bool = _flag(
        Option("dirsync", "every change of names and attributes returns when it is durable")
    )
    leases: bool = _flag(
        Option("leases", "keep what is known until another mount changes it (default)"),
        Option(
            "noleases",
            "ask the space again after attr_timeout, and change nothing ahead of it",
            value=False,
        ),
        default=True,
    )
    metadata: str = _value(
        "metadata",
        "tell the router of changes soon (write-back) or before a call returns (write-through)",
        _parse_metadata,
        WRITE_BACK,
    )
    short_circuit: bool = _flag(
        Option("short_circuit", "read files of peers on this machine themselves (default)"),
        Option("noshort_circuit", "get every chunk through the network", value=False),
        default=True,
    )
    spin: bool = _flag(
        Option("spin", "look for the next request before sleeping, which is quicker (default)"),
        Option("nospin", "sleep between requests, which takes a little less CPU", value=False),
        default=True,
    )
    fsname: str | None = _value("fsname", "source shown in /proc/mounts", _parse_text)
    carried: tuple[str, ...] = ()


_ACCESS_TIME_OPTIONS = ("atime", "relatime", "norelatime", "strictatime", "nostrictatime")
# mount(8) may say who it was: user=NAME.
_USER = "user"
_MOUNT_8_OPTIONS = (
    "_netdev",
    "auto",
    "noauto",
    _USER,
    "nouser",
    "users",
    "owner",
    "group",
    "defaults",
    "nofail",
)


def _carried_options() -> Iterator[Option]:
    for name, text in (
        ("dev", "device nodes work"),
        ("nodev", "device nodes do not work"),
        ("suid", "set-user-id bits work"),
        ("nosuid", "set-user-id bits do not work"),
        ("exec", "programs may be run"),
        ("noexec", "no program may be run"),
        ("noatime", "shown in /proc/mounts; reading never changes access times anyway"),
    ):
        yield Option(name, text, is_carried=True)


def _ignored_options() -> Iterator[Option]:
    for name in _ACCESS_TIME_OPTIONS:
        yield Option(name, "no effect: reading never changes access times", is_ignored=True)
    for name in _MOUNT_8_OPTIONS:
        yield Option(name, "for mount(8); no effect here", is_ignored=True)


def _declared() -> Iterator[tuple[Option, str]]:
    """Every option and the field it sets; an empty text where it sets none."""
    for field in dataclasses.fields(MountOptions):
        for option in field.metadata.get(_OPTION, ()):
            yield option, field.name
    for option in (*_carried_options(), *_ignored_options()):
        yield option, ""


_FIELDS: dict[str, tuple[Option, str]] = {option.name: (option, f) for option, f in _declared()}
MOUNT_OPTIONS: tuple[Option, ...] = tuple(option for option, _ in _FIELDS.values())


def parse_mount_options(text: str) -> MountOptions:
    r"""The options in `a,b=c`; `\,` stands for a comma inside a value. The last of two wins.

    Raises:
        UsageError: an option is unknown or its value bad; names it and the nearest known ones.
    """
    values, carried = _given(text)
    return MountOptions(**values, carried=carried)  # type: ignore[arg-type]  # parsed there


def given_fields(text: str) -> dict[str, object]:
    """The fields of `MountOptions` that options set, with their values; no others.

    Raises:
        UsageError: as `parse_mount_options`.
    """
    return _given(text)[0]


def option_names(field: str) -> str:
    """How a user writes the options that set a field, for messages."""
    return "/".join(option.name for option, of in _FIELDS.values() if of == field)


def without_options(text: str, is_unwanted: Callable[[str], bool]) -> str:
    """Options in their text form, without those whose name is unwanted."""
    items = re.split(_COMMA, text)
    return ",".join(item for item in items if not is_unwanted(item.partition("=")[0].strip()))


def _given(text: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """Fields with their values, and flags for the kernel."""
    values: dict[str, object] = {}
    carried: dict[str, None] = {}
    for name, value in _items(text):
        if name.startswith("x-"):
            # Comments of other programs, such as x-systemd.automount: mount(8).
            continue
        option, field = _known(name)
        if field:
            values[field] = _parsed(option, value)
        elif value is not None and name != _USER:
            raise UsageError(f"mount option {name!r} takes no value")
        elif option.is_carried:
            # Of contrary flags the last one wins.
            for earlier in (name, f"no{name}", name.removeprefix("no")):
                carried.pop(earlier, None)
            carried[name] = None
    return values, tuple(carried)


def _items(text: str) -> Iterable[tuple[str, str | None]]:
    for item in re.split(_COMMA, text):
        name, equals, value = item.replace("\\,", ",").partition("=")
        if name.strip() or equals:
            yield name.strip(), value if equals else None


def _known(name: str) -> tuple[Option, str]:
    known = _FIELDS.get(name)
    if known is not None:
        return known
    near = difflib.get_close_matches(name, _FIELDS, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"unknown mount option {name!r}{hint}")


def _parsed(option: Option, value: str | None) -> object:
    if option.parse is None:
        if value is not None:
            raise UsageError(f"mount option {option.name!r} takes no value")
        return option.value
    if value is None:
        example = option.default or "…"
        raise UsageError(f"mount option {option.name!r} needs a value: {option.name}={example}")
    try:
        return option.parse(value)
    except ValueError as error:
        raise UsageError(f"mount option {option.name}={value}: {error}") from error
