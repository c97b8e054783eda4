"""Log records that tell of an event by its name and its fields, as `PUT.DATA bucket_id=b size=5`.

Owns what such a record carries and its text for people; `logformats` writes it as JSON. Names of
events and of their fields are those of MictlanX where it has one: `bucket_id`, `key`, `peer_id`,
`replicas`, `task_id`, `size` (bytes), `response_time` (seconds).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from msgspec import Struct


class Event(Struct, frozen=True):
    """The message of a record that tells of an event: what `LogRecord.msg` is.

    Attributes:
        name: in capitals, its words separated by dots: `GET.METADATA`.
        fields: in the order to show them in; values that JSON does not know are shown as text.
    """

    name: str
    fields: Mapping[str, object]

    def __str__(self) -> str:
        """The event on one line, for people."""
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.fields.items())])


def log_event(
    log: logging.Logger, event: str, /, *, level: int = logging.INFO, **fields: object
) -> None:
    """Log `event` with its `fields`; where `level` is not logged it costs a comparison.

    Every name may be that of a field except `level`; where a line has a field of that name
    anyway, as `timestamp`, that one stays what it is.

    Args:
        log: of the module that logs.
        event: its name, as `PUT.DATA`.
        level: of the record.
        fields: what is known of the event.
    """
    if log.isEnabledFor(level):
        log.log(level, Event(event, fields), stacklevel=2)
