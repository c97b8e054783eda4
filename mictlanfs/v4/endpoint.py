"""One server of the v4 API, router or peer: its address, and how requests to it are made.

Never retries: whoever knows several servers does. What an answer says of a failure is raised as a
`MictlanError`; a server that cannot be reached is UNAVAILABLE or TIMED_OUT.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import urlencode

import trio

from mictlanfs.client.bulk import BODY_SIZE_BYTES_MAX
from mictlanfs.client.transport import HttpTransport, Response, StreamedResponse
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.identifiers import new_token
from mictlanfs.model import Buffer
from mictlanfs.uri import ServerAddress
from mictlanfs.v4.errors import error_of
from mictlanfs.v4.models import CONTENT_TYPE_DEFAULT, decode
from mictlanfs.v4.names import combined_key, path_of

# A router answers a put when its peers have the bytes. A body gets more, by its size.
TIMEOUT_S = 60.0
JSON_HEADERS: Final = {"content-type": "application/json"}
# Of the body of an error that comes instead of a streamed one.
_ERROR_SIZE_BYTES_MAX = 64 * 1024

M = TypeVar("M")
Chunks = Buffer | AsyncIterable[bytes]


@dataclass(frozen=True, slots=True)
class Download:
    """The bytes of a record on their way, in pieces of any size.

    Attributes:
        headers: of the answer.
    """

    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and what errors call it.

    Attributes:
        parts: of the path behind `/api/v<version>`; they are encoded.
        query: what is None is left out.
    """

    operation: str
    method: str
    parts: tuple[str, ...]
    body: Buffer | Sequence[Buffer] | None = None
    headers: Mapping[str, str] | None = None
    query: Mapping[str, str | None] | None = None

    @property
    def target(self) -> str:
        """What the request is about: bucket and key, as far as the path has them."""
        match self.parts:
            case ("buckets", bucket, "bid", ball) | ("buckets", bucket, "metadata", ball, *_):
                return combined_key(bucket, ball)
            case ("buckets", "data", task, *_):
                return task
            case ("buckets", bucket, "metadata"):
                return bucket
            case ("buckets", bucket, key, *_):
                return combined_key(bucket, key)
        return "/".join(self.parts)


class Endpoint:
    """Base of `AsyncRouter` and `AsyncPeer`: an `async with` block closes what it opened.

    Args:
        address: of the server.
        transport: carries the requests; by default one of its own.
        verify: for `https`, when the transport is its own: False trusts any certificate.
        timeout_s: how long the server may be silent.
    """

    def __init__(
        self,
        address: ServerAddress,
        *,
        transport: HttpTransport | None = None,
        verify: bool | ssl.SSLContext = True,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._is_owner = transport is None
        self._transport = transport or HttpTransport(verify=verify)
        self._prefix = f"{address.base_url}/api/v{address.api_version}"

    @property
    def id(self) -> str:
        """The name of the server; its address when the URI gives none."""
        return self.address.id or self.address.base_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless the transport belongs to the caller."""
        if self._is_owner:
            with trio.CancelScope(shield=True):
                await self._transport.aclose()

    # --- requests --------------------------------------------------------------------------------

    async def _send(self, call: Call) -> Response:
        """The answer to a request, which is a success.

        Cancellation: the server may or may not have acted.
        """
        response = await self._exchange(call)
        self._check(call, response.status, response.body)
        return response

    async def _exchange(self, call: Call) -> Response:
        """The answer to a request, whatever it says."""
        return await self._transport.request(
            call.method,
            self._url(call),
            body=call.body,
            headers=call.headers,
            timeout_s=self.timeout_s,
        )

    async def _ask(self, call: Call, form: type[M]) -> M:
        """The message in the answer to a request."""
        return decode((await self._send(call)).body, form, call.operation, call.target)

    async def _read(self, call: Call, size: int | None) -> Buffer:
        """The bytes in an answer; `size` is how many are expected, if that is known."""
        if size is None or size <= BODY_SIZE_BYTES_MAX:
            response = await self._exchange(call)
            self._check(call, response.status, response.body, is_data=True)
            return response.body
        body = bytearray()
        async with self._stream(call) as download:
            async for piece in download.pieces:
                body += piece
        return body

    @asynccontextmanager
    async def _stream(self, call: Call) -> AsyncIterator[Download]:
        """The bytes in an answer, in pieces."""
        async with self._transport.stream(
            call.method, self._url(call), headers=call.headers, timeout_s=self.timeout_s
        ) as response:
            if response.status != 200:
                self._check(call, response.status, await _start_of(response), is_data=True)
            yield Download(response.headers, response.pieces)

    async def _upload(self, call: Call, chunks: Chunks) -> Buffer:
        """Send `chunks` as the body of a request, and give that of the answer."""
        if isinstance(chunks, Buffer):
            response = await self._transport.request(
                call.method,
                self._url(call),
                body=_bytewise(chunks),
                headers=call.headers,
                timeout_s=self.timeout_s,
            )
            self._check(call, response.status, response.body)
            return response.body
        async with self._transport.stream(
            call.method,
            self._url(call),
            body=chunks,
            headers=call.headers,
            timeout_s=self.timeout_s,
        ) as streamed:
            body = await _start_of(streamed)
            self._check(call, streamed.status, body)
            return body

    def _url(self, call: Call) -> str:
        given = {name: value for name, value in (call.query or {}).items() if value is not None}
        return self._prefix + path_of(*call.parts) + (f"?{urlencode(given)}" if given else "")

    def _check(self, call: Call, status: int, body: Buffer, *, is_data: bool = False) -> None:
        # The bytes of a record come with exactly 200; anything else is not all of it.
        if status == 200 or (200 <= status < 300 and not is_data):
            return
        raise error_of(status, body, call.operation, call.target)


def _bytewise(value: Buffer) -> Buffer:
    """The same memory, so that its length is in bytes."""
    return memoryview(value).cast("B") if isinstance(value, memoryview) else value


async def _start_of(response: StreamedResponse) -> bytes:
    """The beginning of a body that should be short."""
    body = b""
    async for piece in response.pieces:
        body += piece
        if len(body) > _ERROR_SIZE_BYTES_MAX:
            break
    return body


def form_data(
    key: str, value: Buffer, content_type: str = CONTENT_TYPE_DEFAULT
) -> tuple[dict[str, str], list[Buffer]]:
    """Headers and body of a form whose only field `data` is a file named `key`.

    Source: RFC 7578; quotes and line breaks in the name as browsers escape them.
    """
    boundary = f"mictlanfs-{new_token()}"
    escaped = key.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    if any(sign in content_type for sign in "\r\n"):
        raise MictlanError(Kind.INVALID, detail=f"{content_type!r} is no content type")
    head = (
        f"--{boundary}\r\n"
        f'content-disposition: form-data; name="data"; filename="{escaped}"\r\n'
        f"content-type: {content_type}\r\n\r\n"
    )
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    return headers, [head.encode(), _bytewise(value), f"\r\n--{boundary}--\r\n".encode()]
