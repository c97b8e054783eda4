"""How servers log, from their options and the environment."""

from __future__ import annotations

from collections.abc import Mapping

from mictlanfs.logsetup import LogFiles, LogSettings
from mictlanfs_server import environment as variables


def router_logs(environ: Mapping[str, str], form: str, router_id: str) -> LogSettings:
    """The settings of a router; `form` as an option gave it, or empty.

    Raises:
        UsageError: a variable means nothing.
    """
    level = variables.ROUTER_LOG_LEVEL.value(environ)
    if variables.ROUTER_DEBUG.value(environ):
        level = "DEBUG"
    when = variables.ROUTER_LOG_ROTATION_WHEN.read(environ)
    interval = variables.ROUTER_LOG_ROTATION_INTERVAL.read(environ)
    folder = variables.ROUTER_LOG_PATH.read(environ)
    files = None
    if folder is not None and variables.ROUTER_LOG_TO_FILE.value(environ):
        files = LogFiles(
            folder / (variables.ROUTER_LOG_NAME.read(environ) or router_id),
            when or variables.ROUTER_LOG_WHEN.value(environ),
            interval or variables.ROUTER_LOG_INTERVAL.value(environ),
            variables.ROUTER_LOG_ERROR_FILE.value(environ),
        )
    return LogSettings(level, form, variables.ROUTER_LOG_SHOW.value(environ), files)


def peer_logs(environ: Mapping[str, str], form: str, peer_id: str) -> LogSettings:
    """The settings of a peer. Arguments and errors as those of `router_logs`."""
    folder = variables.PEER_LOG_PATH.read(environ)
    return LogSettings(form=form, files=None if folder is None else LogFiles(folder / peer_id))
