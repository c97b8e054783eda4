"""The one file field of a multipart form, as a stream: nothing is kept, nothing is spooled.

Source: RFC 7578. The grammar is python-multipart's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from mictlanfs_server.v4.failures import DoorError, invalid

if TYPE_CHECKING:
    from mictlanfs.model import Buffer

_CONTENT_DISPOSITION = "content-disposition"


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that the type of a multipart form names; None when it is no such type."""
    # Imported here: most servers never see a form.
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(content_type)
    return options.get(b"boundary") if kind == b"multipart/form-data" else None


async def field(
    source: AsyncIterator[Buffer], boundary: bytes, name: str
) -> AsyncGenerator[Buffer, None]:
    """The bytes of the first field called `name`; the rest of the form is passed over.

    Raises:
        DoorError: 422, there is no such field; 400, this is no form, or it breaks off.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    state = _State(name)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": state.on_part_begin,
                "on_part_data": state.on_part_data,
                "on_part_end": state.on_part_end,
                "on_header_field": state.on_header_field,
                "on_header_value": state.on_header_value,
                "on_header_end": state.on_header_end,
                "on_headers_finished": state.on_headers_finished,
                "on_end": state.on_end,
            },
        )
        async for piece in source:
            parser.write(bytes(piece))
            for data in state.take():
                yield data
    except FormParserError as error:
        raise invalid(f"the body is no multipart form: {error}") from error
    if not state.is_found:
        missing = {"type": "missing", "loc": ["body", name], "msg": "Field required"}
        raise DoorError(422, "Field required", errors=[missing])
    if not state.is_ended:
        raise invalid("the multipart form breaks off")


class _State:
    """What the parser of a form has seen; its callbacks."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._header = b""
        self._value = b""
        self._part_name: bytes | None = None
        self._is_wanted = False
        self._pieces: list[bytes] = []
        self.is_found = False
        self.is_ended = False

    def take(self) -> list[bytes]:
        """The bytes of the field that came since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def on_part_begin(self) -> None:
        self._part_name = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        from python_multipart.multipart import parse_options_header

        if self._header.decode("latin-1").lower() == _CONTENT_DISPOSITION:
            _, options = parse_options_header(self._value)
            self._part_name = options.get(b"name")
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        self._is_wanted = self._part_name == self._name and not self.is_found
        self.is_found = self.is_found or self._is_wanted

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_wanted:
            self._pieces.append(data[start:end])

    def on_part_end(self) -> None:
        self._is_wanted = False

    def on_end(self) -> None:
        self.is_ended = True
