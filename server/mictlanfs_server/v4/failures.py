"""How the v4 door says no: `{"detail": {"msg": text, "code": number}}` with a matching HTTP status.

The public client picks its exception by `code` and shows `msg`; the status is for everybody else.
Source: the wire interface of MictlanX v4, section 11.
"""

from __future__ import annotations

from typing import Final

from mictlanfs.errors import HTTP_STATUS, Kind, MictlanError

# No peer can take the chunk, because all hold it or because there is none.
CODE_NOBODY: Final = 666
_CODES: Final = {
    Kind.NOT_FOUND: 404,
    Kind.NO_DATA: 404,
    Kind.INVALID: 400,
    Kind.NAME_TOO_LONG: 400,
    Kind.NOT_PERMITTED: 403,
    Kind.ACCESS_DENIED: 403,
    Kind.READ_ONLY: 403,
    Kind.CORRUPT: 501,
    Kind.TIMED_OUT: 1004,
    Kind.UNAVAILABLE: 1000,
    Kind.EXISTS: CODE_NOBODY,
}
_CODE_UNKNOWN: Final = 500


class DoorError(Exception):
    """A request of the v4 interface failed.

    Attributes:
        status: of the answer.
        detail: its body's `detail`: `msg`, `code` and whatever else a client may want to know.
    """

    def __init__(self, status: int, message: str, code: int | None = None, **more: object) -> None:
        super().__init__(status, message)
        self.status = status
        self.detail: dict[str, object] = {
            "msg": message,
            "code": status if code is None else code,
            **more,
        }

    def __str__(self) -> str:
        return str(self.detail["msg"])


def door_error(error: MictlanError) -> DoorError:
    """An error of the space as this interface says it."""
    code = _CODES.get(error.kind, _CODE_UNKNOWN)
    return DoorError(HTTP_STATUS[error.kind], str(error), code, kind=error.kind.value)


def invalid(message: str) -> DoorError:
    """A request that can never be right."""
    return DoorError(400, message)


def missing(message: str) -> DoorError:
    """What was asked for is not there."""
    return DoorError(404, message)
