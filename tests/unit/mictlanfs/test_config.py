import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mictlanfs.config import (
    MOUNT_OPTIONS,
    MountOptions,
    Option,
    format_size,
    given_fields,
    option_names,
    parse_mount_options,
    parse_size,
    without_options,
)
from mictlanfs.errors import UsageError
from mictlanfs.model import GIB, KIB, MIB

# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1K", KIB),
        ("256M", 256 * MIB),
        ("256m", 256 * MIB),
        ("1.5G", 3 * GIB // 2),
        ("10GiB", 10 * GIB),
        ("10GB", 10 * GIB),
        ("2T", 2048 * GIB),
        ("7B", 7),
        (" 1 M ", MIB),
    ],
)
def test_a_size_is_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1e9", "1.", ".5", "1X", "1 MM", "nan", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (3 * MIB // 2, "1.5 MiB"),
        (5000 * GIB, "4.9 TiB"),
    ],
)
def test_a_size_is_shown_with_the_unit_that_suits_it(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**60))
def test_a_size_shown_is_a_size_read_but_for_rounding(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= 0.051 * max(size, 1)


# --- options -------------------------------------------------------------------------------------


def test_no_options_are_the_documented_defaults() -> None:
    options = parse_mount_options("")
    assert options == MountOptions()
    assert options == parse_mount_options("defaults")
    assert (options.cache_size, options.memory) == (10 * GIB, 256 * MIB)
    assert (options.attr_timeout_s, options.read_ahead_kib, options.deadline_s) == (1.0, 4096, 30.0)
    assert not options.read_only
    assert not options.allow_other
    assert not options.sync_on_close


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("ro", "read_only", True),
        ("ro,rw", "read_only", False),
        ("rw,ro", "read_only", True),
        ("allow_other", "allow_other", True),
        ("default_permissions", "default_permissions", True),
        ("uid=1000", "uid", 1000),
        ("gid=0", "gid", 0),
        ("umask=027", "umask", 0o027),
        ("subdir=b/a", "subdir", "b/a"),
        ("subdir=/b//a/./", "subdir", "b/a"),
        ("cache_dir=/var/cache", "cache_dir", Path("/var/cache")),
        ("cache_dir=~/cache", "cache_dir", Path("~/cache").expanduser()),
        ("cache_size=1.5G", "cache_size", 3 * GIB // 2),
        ("memory=64M", "memory", 64 * MIB),
        ("attr_timeout=0.5", "attr_timeout_s", 0.5),
        ("read_ahead=128", "read_ahead_kib", 128),
        ("deadline=5", "deadline_s", 5.0),
        ("sync_on_close", "sync_on_close", True),
        ("sync", "sync", True),
        ("sync,async", "sync", False),
        ("dirsync", "dirsync", True),
        ("fsname=data", "fsname", "data"),
        ("fsname=a=b", "fsname", "a=b"),
        (r"fsname=a\,b", "fsname", "a,b"),
        ("uid=1,uid=2", "uid", 2),
        (" ro , ,", "read_only", True),
    ],
)
def test_an_option_sets_its_field_and_no_other(text: str, field: str, value: object) -> None:
    changed = dataclasses.asdict(parse_mount_options(text))
    assert changed.pop(field) == value
    untouched = dataclasses.asdict(MountOptions())
    untouched.pop(field)
    assert changed == untouched


def test_flags_of_the_kernel_are_carried_in_order_and_once() -> None:
    options = parse_mount_options("nodev,suid,noatime,nodev,nosuid")
    assert options.carried == ("noatime", "nodev", "nosuid")


@pytest.mark.parametrize(
    ("text", "carried"),
    [
        ("suid,nosuid", ("nosuid",)),
        ("nosuid,suid", ("suid",)),
        ("nodev,dev,nodev", ("nodev",)),
        ("exec,noexec,suid", ("noexec", "suid")),
        ("noatime,relatime", ("noatime",)),
    ],
)
def test_of_two_contrary_flags_the_last_is_carried(text: str, carried: tuple[str, ...]) -> None:
    assert parse_mount_options(text).carried == carried


def test_only_the_fields_that_options_name_are_given() -> None:
    assert given_fields("ro,uid=5,suid,_netdev,x-a") == {"read_only": True, "uid": 5}
    assert given_fields("") == {}


def test_the_options_of_a_field_are_named_for_people() -> None:
    assert option_names("read_only") == "ro/rw"
    assert option_names("attr_timeout_s") == "attr_timeout"


def test_options_are_taken_out_of_a_text_by_their_names() -> None:
    text = r"ro,fsname=a\,remount,uid=5,remount"
    assert without_options(text, lambda name: name == "remount") == r"ro,fsname=a\,remount,uid=5"


@pytest.mark.parametrize(
    "text",
    [
        "_netdev,auto,noauto",
        "user,nouser,users",
        "nofail,defaults,user=me,relatime",
        "x-systemd.automount,x-a=b",
    ],
)
def test_what_mount_and_fstab_pass_is_accepted_without_effect(text: str) -> None:
    assert parse_mount_options(text) == MountOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cash_size=1G", "unknown mount option 'cash_size'; did you mean cache_size?"),
        ("writeback", "unknown mount option 'writeback'"),
        ("=1", "unknown mount option ''"),
        ("ro=1", "mount option 'ro' takes no value"),
        ("nodev=1", "mount option 'nodev' takes no value"),
        ("_netdev=", "mount option '_netdev' takes no value"),
        ("uid", "mount option 'uid' needs a value: uid="),
        ("memory", "mount option 'memory' needs a value: memory=256M"),
        ("uid=root", "mount option uid=root: it is not a whole number"),
        ("uid=-1", "mount option uid=-1: it is not a whole number"),
        ("uid=4294967295", "mount option uid=4294967295: it is not a whole number"),
        ("umask=9", "mount option umask=9: it is not an octal mode"),
        ("umask=00000", "mount option umask=00000: it is not an octal mode"),
        ("memory=lots", "mount option memory=lots: it is not a size"),
        ("deadline=inf", "mount option deadline=inf: it is not a number of seconds"),
        ("attr_timeout=-1", "mount option attr_timeout=-1: it is not a number of seconds"),
        ("cache_dir=here", "mount option cache_dir=here: it is not an absolute path"),
        ("cache_dir=", "mount option cache_dir=: it is empty"),
        ("subdir=../x", "mount option subdir=../x: it is not a path such as"),
        ("subdir=/", "mount option subdir=/: it is not a path such as"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount_options("ro," + text)
    assert str(caught.value).startswith(message)


@given(st.text(max_size=30))
def test_no_text_raises_anything_but_a_usage_error(text: str) -> None:
    try:
        options = parse_mount_options(text)
    except UsageError:
        return
    assert isinstance(options, MountOptions)


@pytest.mark.parametrize("option", MOUNT_OPTIONS, ids=lambda option: str(option.name))
def test_every_option_is_documented_and_its_default_is_a_value_of_it(option: Option) -> None:
    assert option.help
    assert not option.help.endswith(".")
    if option.default:
        assert option.parse is not None
        assert parse_mount_options(f"{option.name}={option.default}") == MountOptions()


def test_every_option_is_declared_once() -> None:
    names = [option.name for option in MOUNT_OPTIONS]
    assert len(names) == len(set(names))
