"""Errors that servers of the v4 API answer, and what they are in our tree.

A body says `{"detail": …}`. An object in it has `msg` and `code`; the code says more than the HTTP
status. A text is all that older servers give, and they wrap errors: a missing key is then status
500 with a text that begins with `404:`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import Buffer

# The key is stored already, or nobody can take it. The only 404 that a put of metadata may give.
CODE_UNAVAILABLE_OR_EXISTS: Final = 666

# The reference, section 11.2. A server that fails answers 500 whatever the reason was: another
# attempt may succeed, so that is UNAVAILABLE.
KIND_OF_CODE: Final[Mapping[int, Kind]] = {
    400: Kind.INVALID,
    401: Kind.ACCESS_DENIED,
    403: Kind.ACCESS_DENIED,
    404: Kind.NOT_FOUND,
    405: Kind.EXISTS,
    409: Kind.EXISTS,
    422: Kind.INVALID,
    500: Kind.UNAVAILABLE,
    501: Kind.CORRUPT,
    502: Kind.UNAVAILABLE,
    503: Kind.UNAVAILABLE,
    504: Kind.INVALID,
    505: Kind.INTERNAL,
    506: Kind.INTERNAL,
    700: Kind.UNAVAILABLE,
    702: Kind.UNAVAILABLE,
    710: Kind.EXISTS,
    711: Kind.INVALID,
    1000: Kind.UNAVAILABLE,
    1001: Kind.UNAVAILABLE,
    1002: Kind.UNAVAILABLE,
    1004: Kind.TIMED_OUT,
    1005: Kind.UNAVAILABLE,
}

KIND_OF_STATUS: Final[Mapping[int, Kind]] = {
    400: Kind.INVALID,
    401: Kind.ACCESS_DENIED,
    403: Kind.ACCESS_DENIED,
    404: Kind.NOT_FOUND,
    405: Kind.UNSUPPORTED,
    408: Kind.TIMED_OUT,
    409: Kind.EXISTS,
    410: Kind.NOT_FOUND,
    411: Kind.UNSUPPORTED,
    413: Kind.TOO_LARGE,
    416: Kind.RANGE,
    422: Kind.INVALID,
    429: Kind.UNAVAILABLE,
    501: Kind.UNSUPPORTED,
    504: Kind.TIMED_OUT,
    507: Kind.NO_SPACE,
}

_WRAPPED = re.compile(r"\s*(?P<status>[45][0-9][0-9])\s*:\s*(?P<text>.*)", re.DOTALL)
_TEXT_SIZE_MAX = 500


def error_of(status: int, body: Buffer, operation: str, target: str) -> MictlanError:
    """The error that an answer of `status`, 300 or more, tells of."""
    detail = _detail_in(body)
    if isinstance(detail, dict):
        return _from_object(status, detail, operation, target)
    if isinstance(detail, str):
        wrapped = _WRAPPED.fullmatch(detail) if status >= 500 else None
        if wrapped is not None:
            status, detail = int(wrapped["status"]), wrapped["text"]
        return MictlanError(_kind_of_status(status), operation, target, _short(detail))
    text = f"status {status}" if detail is None else f"status {status}: {detail}"
    return MictlanError(_kind_of_status(status), operation, target, _short(text))


def refused_put(status: int, body: Buffer, operation: str, target: str) -> MictlanError:
    """The error of a put of metadata, where 404 always means that no peer takes the record.

    EXISTS when the answer names peers that hold it, else UNAVAILABLE.
    """
    if status != 404:
        return error_of(status, body, operation, target)
    detail = _detail_in(body)
    if isinstance(detail, dict):
        return _from_object(
            status, detail | {"code": CODE_UNAVAILABLE_OR_EXISTS}, operation, target
        )
    return MictlanError(Kind.UNAVAILABLE, operation, target, "no peer can take it")


def _detail_in(body: Buffer) -> Any:  # noqa: ANN401 # JSON of a server that may not be ours.
    """What is in `detail`, the whole body when it is other JSON, else None."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return content.get("detail", content) if isinstance(content, dict) else content


def _from_object(status: int, detail: dict[str, Any], operation: str, target: str) -> MictlanError:
    code = detail.get("code")
    message = detail.get("msg")
    text = message if isinstance(message, str) else f"status {status}: {detail}"
    if code == CODE_UNAVAILABLE_OR_EXISTS:
        kind = Kind.EXISTS if detail.get("replicas") else Kind.UNAVAILABLE
    else:
        known = KIND_OF_CODE.get(code) if isinstance(code, int) else None
        kind = known or _kind_of_status(status)
    return MictlanError(kind, operation, target, _short(text))


def _kind_of_status(status: int) -> Kind:
    kind = KIND_OF_STATUS.get(status)
    if kind is not None:
        return kind
    # A redirect, or an answer without a body: nobody who speaks this API.
    return Kind.UNAVAILABLE if status >= 500 else Kind.PROTOCOL


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_SIZE_MAX else text[:_TEXT_SIZE_MAX] + "…"
