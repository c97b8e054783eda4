"""The environment variables of clients, mounts and commands, of MictlanX and our own.

Declarations only. Options of commands name the variable that is their default themselves.
"""

from __future__ import annotations

from typing import Final

from mictlanfs.environment import (
    Variable,
    ineffective,
    one_of,
    path_of,
    switch,
    text_of,
    whole_number,
)

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
LOG_FORMATS: Final = ("json", "text")
# As the rotating handler of the standard library knows them.
ROTATIONS: Final = ("s", "m", "h", "d", "midnight", *(f"w{day}" for day in range(7)))
INTERVAL_MAX: Final = 100_000

URI = Variable("MICTLANX_CLIENT_URI", "the space, for commands and peers without one", text_of)
LOG_LEVEL = Variable(
    "MICTLANFS_LOG_LEVEL",
    f"least level that any process logs: {', '.join(LOG_LEVELS)}; wins over those below",
    one_of(*LOG_LEVELS),
)
LOG_FORMAT = Variable(
    "MICTLANFS_LOG_FORMAT",
    "form of log lines, `json` or `text`; without it servers write JSON except to a terminal, "
    "mounts and the supervisor text",
    one_of(*LOG_FORMATS),
)
DEBUG = Variable("MICTLANFS_DEBUG", "set to anything: commands show tracebacks", text_of)
ENV_FILE = Variable(
    "ENV_FILE_PATH",
    "file of variables, read first; what the environment has itself wins",
    path_of,
    ".env.local",
)
MICTLANX_ENV_FILE = Variable("MICTLANX_ENV_FILE", "the same, where that is not set", path_of)

MOUNT_LOG_LEVEL = Variable(
    "MICTLANX_LOG_LEVEL", "least level that a mount logs", one_of(*LOG_LEVELS), "INFO"
)
MOUNT_LOG_PATH = Variable(
    "MICTLANX_LOG_PATH", "folder of further log files of mounts, see `_TO_FILE`", path_of
)
MOUNT_LOG_TO_FILE = Variable(
    "MICTLANX_LOG_TO_FILE",
    "1: a mount also logs to a file of JSON lines in `MICTLANX_LOG_PATH`",
    switch,
    "0",
)
MOUNT_LOG_ERROR_FILE = Variable(
    "MICTLANX_LOG_ERROR_FILE", "1: errors also go to a file of their own, `NAME.error`", switch, "0"
)
MOUNT_LOG_ROTATION_WHEN = Variable(
    "MICTLANX_LOG_ROTATION_WHEN",
    f"unit of the interval after which such a file is begun anew: {', '.join(ROTATIONS)}",
    one_of(*ROTATIONS),
    "m",
)
MOUNT_LOG_ROTATION_INTERVAL = Variable(
    "MICTLANX_LOG_ROTATION_INTERVAL",
    "how many of that unit",
    whole_number(1, INTERVAL_MAX),
    "10",
)

EFFECTIVE: Final[tuple[Variable[object], ...]] = (
    *(URI, ENV_FILE, MICTLANX_ENV_FILE, LOG_LEVEL, LOG_FORMAT, DEBUG),
    *(MOUNT_LOG_LEVEL, MOUNT_LOG_PATH, MOUNT_LOG_TO_FILE, MOUNT_LOG_ERROR_FILE),
    *(MOUNT_LOG_ROTATION_WHEN, MOUNT_LOG_ROTATION_INTERVAL),
)

_ARGUMENT = "give it to the constructor of the client"
_LIBRARY = "a library leaves logging to its program; mounts and servers have their own variables"
_TESTS = "read by tests of MictlanX only"
INEFFECTIVE: Final = (
    ineffective("MICTLANX_CLIENT_ID", _ARGUMENT),
    ineffective("MICTLANX_CLIENT_DEBUG", _LIBRARY, "1"),
    ineffective("MICTLANX_CLIENT_MAX_WORKERS", _ARGUMENT, "12"),
    ineffective("MICTLANX_CLIENT_EVICTION_POLICY", _ARGUMENT, "LFU"),
    ineffective("MICTLANX_CLIENT_CAPACITY_STORAGE", _ARGUMENT, "1GB"),
    ineffective("MICTLANX_CLIENT_CACHE_DEFAULT", _ARGUMENT, "0"),
    ineffective("MICTLANX_CLIENT_HALF_LIFE", "nothing cached grows old: it is validated", "10m"),
    ineffective("MICTLANX_CLIENT_VERIFY", "there is no TLS to verify yet", "0"),
    ineffective("MICTLANX_LOG_DISABLED", _LIBRARY, "0"),
    ineffective("MICTLANX_LOG_RICH", _LIBRARY, "0"),
    ineffective("MICTLANX_LOG_JSON_INDENT", "a record is always one line", "0"),
    ineffective("MICTLANX_LOG_CONSOLE_LEVEL", "there is one level: `MICTLANX_LOG_LEVEL`", "DEBUG"),
    ineffective("MICTLANX_LOG_FILE_LEVEL", "there is one level: `MICTLANX_LOG_LEVEL`", "INFO"),
    ineffective("MICTLANX_PROTOCOL", "servers speak HTTP", "tcp"),
    ineffective("MICTLANX_MAX_WORKERS", "not read by MictlanX either"),
    ineffective("MICTLANX_API_VERSION", "the door is version 4", "4"),
    ineffective("MICTLANX_URI", _TESTS),
    ineffective("CLIENT_ID", _TESTS),
    ineffective("MICTLANX_TEST_PEER_PORT", _TESTS),
    ineffective("MICTLANX_TEST_BUCKET", _TESTS),
)
