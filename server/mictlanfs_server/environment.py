"""The environment variables of routers, peers and other services of MictlanX, declared once each.

Owns names, defaults and reasons, and says in the log which are set in vain. The settings made of
them belong to those who use them. Variables that are the default of an option are read by that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from mictlanfs.clientvariables import INTERVAL_MAX, LOG_LEVELS, ROTATIONS
from mictlanfs.environment import (
    Variable,
    ineffective,
    log_ineffective,
    one_of,
    path_of,
    switch,
    text_of,
    whole_number,
)

log = logging.getLogger(__name__)

# --- options -------------------------------------------------------------------------------------

ROUTER_HOST = Variable("MICTLANX_ROUTER_HOST", "`--host` of the router", text_of, "127.0.0.1")
ROUTER_PORT = Variable("MICTLANX_ROUTER_PORT", "`--port` of the router", text_of, "60666")
INSECURE = Variable("MICTLANFS_INSECURE", "1: as `--insecure`", switch, "0")
PEER_ID = Variable("NODE_ID", "`--id` of the peer", text_of, "mictlanx-peer-0")
PEER_PORT = Variable(
    "NODE_PORT", "`--port` of the peer; `--peer-port` of `server start` and `up`", text_of, "24000"
)
PEER_HOST = Variable("SERVER_IP_ADDR", "`--host` of the peer", text_of, "127.0.0.1")
PEER_ADDRESS = Variable(
    "IP_ADDRESS",
    "name or address by which others reach the peer, when `--advertise` is not given",
    text_of,
)
PEER_CAPACITY = Variable("NODE_DISK_CAPACITY", "`--capacity` of a peer", text_of, "", "bytes")
PEER_DATA = Variable("DATA_PATH", "`--data` of the peer", text_of)
GC_GRACE = Variable("MICTLANFS_GC_GRACE", "`--gc-grace` of the router", text_of, "600", "seconds")
ORPHAN_AGE = Variable(
    "MICTLANFS_ORPHAN_AGE", "`--orphan-age` of the router", text_of, "24", "hours"
)
HEAL_DELAY = Variable(
    "MICTLANFS_HEAL_DELAY", "`--heal-delay` of the router", text_of, "120", "seconds"
)
HEAL_RATE = Variable(
    "MICTLANFS_HEAL_RATE", "`--heal-rate` of the router", text_of, "0", "bytes a second"
)
POPULAR_READS = Variable(
    "MICTLANFS_POPULAR_READS", "`--popular-reads` of the router", text_of, "120", "reads a minute"
)
EXTRA_COPIES = Variable(
    "MICTLANFS_EXTRA_COPIES", "`--extra-copies` of the router", text_of, "1000", "copies"
)
EXTRA_BYTES = Variable("MICTLANFS_EXTRA_BYTES", "`--extra-bytes` of the router", text_of, "4G")

# --- logs ----------------------------------------------------------------------------------------

_WHEN = f"unit of the interval after which log files are begun anew: {', '.join(ROTATIONS)}"
ROUTER_DEBUG = Variable("MICTLANX_ROUTER_DEBUG", "1: the router logs from DEBUG on", switch, "0")
ROUTER_LOG_LEVEL = Variable(
    "MICTLANX_ROUTER_LOG_LEVEL", "least level that the router logs", one_of(*LOG_LEVELS), "INFO"
)
ROUTER_LOG_PATH = Variable(
    "MICTLANX_ROUTER_LOG_PATH",
    "folder of log files of the router, beside what goes to stderr; none without it",
    path_of,
)
ROUTER_LOG_NAME = Variable(
    "MICTLANX_ROUTER_LOG_NAME", "their name; without it that of the router", text_of
)
ROUTER_LOG_TO_FILE = Variable(
    "MICTLANX_ROUTER_LOG_TO_FILE", "0: no log files of the router", switch, "1"
)
ROUTER_LOG_ERROR_FILE = Variable(
    "MICTLANX_ROUTER_LOG_ERROR_FILE", "1: errors also go to `NAME.error`", switch, "1"
)
ROUTER_LOG_SHOW = Variable(
    "MICTLANX_ROUTER_LOG_SHOW",
    "0: only warnings and errors of the router go to stderr",
    switch,
    "1",
)
ROUTER_LOG_WHEN = Variable("MICTLANX_ROUTER_LOG_WHEN", _WHEN, one_of(*ROTATIONS), "h")
ROUTER_LOG_INTERVAL = Variable(
    "MICTLANX_ROUTER_LOG_INTERVAL", "how many of that unit", whole_number(1, INTERVAL_MAX), "24"
)
ROUTER_LOG_ROTATION_WHEN = Variable(
    "MICTLANX_ROUTER_LOG_ROTATION_WHEN", "wins over `_LOG_WHEN`", one_of(*ROTATIONS)
)
ROUTER_LOG_ROTATION_INTERVAL = Variable(
    "MICTLANX_ROUTER_LOG_ROTATION_INTERVAL",
    "wins over `_LOG_INTERVAL`",
    whole_number(1, INTERVAL_MAX),
)
PEER_LOG_PATH = Variable(
    "LOG_PATH", "folder of log files of peers, named by their ids; none without it", path_of
)

# --- the v4 door ---------------------------------------------------------------------------------

VERIFY_CHECKSUMS = Variable(
    "MICTLANX_VERIFY_CHECKSUMS", "0: as `--no-verify-checksums`", switch, "1"
)
CACHE = (
    Variable("MICTLANX_CACHE", "0: the router caches nothing", switch, "1"),
    Variable(
        "MICTLANX_CACHE_EVICTION_POLICY",
        "what the cache gives up first, and where it is: LRU, LFU or LRU_SM (in shared memory)",
        text_of,
        "LRU_SM",
    ),
    Variable("MICTLANX_CACHE_CAPACITY", "so many values at most", text_of, "100", "values"),
    Variable("MICTLANX_CACHE_CAPACITY_STORAGE", "so large together at most", text_of, "1GB"),
)
CORS_ORIGINS = Variable(
    "MICTLANX_CORS_ALLOW_ORIGINS",
    "the pages whose scripts browsers let in, separated by commas; `*`: all, as MictlanX does "
    "unless told otherwise, which opens a server on this machine to every page its user visits",
    text_of,
)
CORS_METHODS = Variable(
    "MICTLANX_CORS_ALLOW_METHODS", "which methods, separated by commas", text_of, "*"
)
CORS_HEADERS = Variable(
    "MICTLANX_CORS_ALLOW_HEADERS", "which headers, separated by commas", text_of, "*"
)
CORS_CREDENTIALS = Variable(
    "MICTLANX_CORS_ALLOW_CREDENTIALS", "1: with cookies; wins over the next row", switch
)
CORS_CREDENTIALS_AS_SPELLED = Variable(
    "MICTLANX_CORS_ALLOW_CREDENTILAS", "the same, as MictlanX spells it", switch, "1"
)
OPENAPI_TITLE = Variable(
    "MICTLANX_OPEN_API_TITLE", "title of `/docs` and of the schema", text_of, "MictlanX Router"
)
OPENAPI_VERSION = Variable(
    "MICTLANX_OPEN_API_VERSION", "version in the schema; without it that of MictlanFS", text_of
)
OPENAPI_SUMMARY = Variable(
    "MICTLANX_OPEN_API_SUMMARY",
    "a sentence in the schema",
    text_of,
    "Entry point of a Virtual Storage Space.",
)
OPENAPI_DESCRIPTION = Variable(
    "MICTLANX_OPEN_API_DESCRIPTION", "goes before the description of the schema", text_of
)
OPENAPI_LOGO = Variable(
    "MICTLANX_OPEN_API_LOGO", "address of a picture, shown by `/redoc`", text_of
)
OPENAPI_PREFIX = Variable(
    "MICTLANX_ROUTER_OPENAPI_PREFIX",
    "prefix under which everything can be reached as well; wins over the next row",
    text_of,
)
OPENAPI_PREFIX_OLD = Variable("OPENAPI_PREFIX", "the same", text_of, "/mictlanx")

# --- traces --------------------------------------------------------------------------------------

TRACES = Variable(
    "MICTLANX_ROUTER_OPENTELEMETRY",
    "1, with an endpoint: router and peers send traces (`pip install 'mictlanfs[otel]'`)",
    switch,
    "0",
)
TRACES_ENDPOINT = Variable(
    "MICTLANX_JAEGER_ENDPOINT", "where traces go: `/v1/traces` is added", text_of
)
OTLP_ENDPOINT = Variable("OTEL_EXPORTER_OTLP_ENDPOINT", "the same, where that is not set", text_of)
SERVICE_NAME = Variable(
    "MICTLANX_ROUTER_SERVICE_NAME",
    "`service.name` in the router's traces",
    text_of,
    "mictlanx-router",
)

EFFECTIVE: Final[tuple[Variable[object], ...]] = (
    *(ROUTER_HOST, ROUTER_PORT, INSECURE),
    *(GC_GRACE, ORPHAN_AGE),
    *(POPULAR_READS, EXTRA_COPIES, EXTRA_BYTES),
    *(HEAL_DELAY, HEAL_RATE),
    *(PEER_ID, PEER_PORT, PEER_HOST, PEER_ADDRESS, PEER_CAPACITY, PEER_DATA, PEER_LOG_PATH),
    *(ROUTER_DEBUG, ROUTER_LOG_LEVEL, ROUTER_LOG_PATH, ROUTER_LOG_NAME, ROUTER_LOG_TO_FILE),
    *(ROUTER_LOG_ERROR_FILE, ROUTER_LOG_SHOW, ROUTER_LOG_WHEN, ROUTER_LOG_INTERVAL),
    *(ROUTER_LOG_ROTATION_WHEN, ROUTER_LOG_ROTATION_INTERVAL),
    *(*CACHE, VERIFY_CHECKSUMS),
    *(CORS_ORIGINS, CORS_METHODS, CORS_HEADERS, CORS_CREDENTIALS, CORS_CREDENTIALS_AS_SPELLED),
    *(OPENAPI_TITLE, OPENAPI_VERSION, OPENAPI_SUMMARY, OPENAPI_DESCRIPTION, OPENAPI_LOGO),
    *(OPENAPI_PREFIX, OPENAPI_PREFIX_OLD),
    *(TRACES, TRACES_ENDPOINT, OTLP_ENDPOINT, SERVICE_NAME),
)

# --- without effect ------------------------------------------------------------------------------

# What MictlanX has services of their own for.
ELSEWHERE: Final = tuple(
    ineffective(name, "placement, replication, healing and peers are the router's own business")
    for name in (
        "MICTLANX_DAEMON_*",
        "MICTLANX_SUMMONER_*",
        "MICTLANX_SPM_*",
        "MICTLANX_RM_*",
    )
)
_LIMITS_NOTHING = "limits nothing in MictlanX either"
_LOGGED_ONLY = "only logged by MictlanX"
_ONE_PROCESS = "a server is one process: it never waits for a disk or a peer"
_PROFILER = "`py-spy` profiles a running server without stopping it"
_MEMBERSHIP = "peers announce themselves to the router, which tells them how often"
_MANAGER = "was for the replica manager, whose work the router does"

ROUTER_INEFFECTIVE: Final = (
    ineffective("MAX_WORKERS", _ONE_PROCESS, "4"),
    ineffective("MICTLANX_TEST", "addresses are used as they are announced", "0"),
    ineffective("MICTLANX_DEBUG", "not read by MictlanX either"),
    *(
        ineffective(name, _LIMITS_NOTHING, default)
        for name, default in (
            ("MICTLANX_ROUTER_MAX_PEERS", "10"),
            ("MICTLANX_ROUTER_MAX_TTL", "3"),
            ("MICTLANX_ROUTER_MAX_TRIES", "60"),
            ("MICTLANX_ROUTER_MAX_TASKS", "100"),
            ("MICTLANX_ROUTER_MAX_CONCURRENCY", "5"),
            ("MICTLANX_ROUTER_MAX_PEERS_RF", "5"),
        )
    ),
    ineffective("MICTLANX_ROUTER_AVAILABLE_NODES", _LOGGED_ONLY, "0;1;..;10"),
    ineffective("MICTLANX_ROUTER_SHOW_REPLICATOR_LOGS", _LOGGED_ONLY, "1"),
    ineffective("MICTLANX_ROUTER_REPLICATOR_QUEUE_MAXSIZE", _LOGGED_ONLY, "100"),
    ineffective("MICTLANX_ROUTER_SYNC_FAST", _LOGGED_ONLY, "1"),
    ineffective("MICTLANX_ROUTER_NETWORK_ID", "there is no container network to join", "mictlanx"),
    ineffective("MICTLANX_PROCOTOL", _LOGGED_ONLY, "http"),
    ineffective("MICTLANX_PEERS_URI", _MEMBERSHIP),
    ineffective("MICTLANX_TIMEOUT", _LOGGED_ONLY, "3600", "s"),
    ineffective("MICTLANX_ZIPKIN_ENDPOINT", "not read by MictlanX either; traces go by OTLP"),
    ineffective("MICTLANX_ROUTER_PROFILER*", _PROFILER, "0"),
    ineffective("MICTLANX_ROUTER_MEMORY_PROFILER*", _PROFILER, "0"),
    ineffective("GITHUB_ACTIONS", "tests run what users run"),
    ineffective("MICTLANX_IP_ADDR", _MANAGER),
    ineffective("MICTLANX_PORT", _MANAGER, "5555"),
    ineffective("MICTLANX_PEERS", _MANAGER),
    ineffective("MICTLANX_PEERS_PROTOCOL", _MANAGER),
    ineffective("MICTLANX_PEERS_API_VERSION", _MANAGER),
    ineffective("MICTLANX_GC_TIMEOUT", "`--gc-grace` of the router is meant otherwise", "60s"),
    ineffective("PEERS_CONFIG_PATH", _MANAGER),
)
PEER_INEFFECTIVE: Final = (
    ineffective("NODE_MEMORY_CAPACITY", "a peer keeps no data in memory", "1000000000", "bytes"),
    ineffective("BASE_PATH", "everything is below `DATA_PATH`", "/app/mictlanx"),
    ineffective("LOCAL_PATH", "everything is below `DATA_PATH`"),
    ineffective("PEERS", _MEMBERSHIP),
    ineffective("MIN_INTERVAL_TIME", _MEMBERSHIP, "5", "s"),
    ineffective("MAX_INTERVAL_TIME", _MEMBERSHIP, "20", "s"),
    ineffective("WORKERS", _ONE_PROCESS, "2"),
    ineffective("PAYLOAD_LIMIT", "values pass through in pieces", "1000000000", "bytes"),
    ineffective("CLIENT_REQUEST_TIMEOUT", "what counts is that bytes move: 30 s", "300", "s"),
    ineffective("CLIENT_DISCONNECT_TIMEOUT", "what counts is that bytes move: 30 s", "30", "s"),
    ineffective("CLEAN_CACHE", "a peer has no cache"),
    ineffective("ELASTIC", "the router starts and stops peers"),
    ineffective("PROTOCOL", "servers speak HTTP"),
    ineffective("TRAVERSE_AND_CLEAN", "what is not in its index, a peer removes at its start"),
    ineffective("DISK_CHECK_INTERVAL_TIME", "free space is looked up with every write", "60", "s"),
)


def log_router_ineffective(environ: Mapping[str, str]) -> None:
    """Say which variables that a router meets are set in vain."""
    _log_elsewhere(environ)
    log_ineffective(log, ROUTER_INEFFECTIVE, environ)


def log_peer_ineffective(environ: Mapping[str, str]) -> None:
    """Say which variables that a peer meets are set in vain."""
    log_ineffective(log, PEER_INEFFECTIVE, environ)


def _log_elsewhere(environ: Mapping[str, str]) -> None:
    names = [name for variable in ELSEWHERE for name in variable.names_set(environ)]
    if names:
        log.info(
            "what these name is done by the router itself, no such service is asked: %s",
            ", ".join(names),
        )
