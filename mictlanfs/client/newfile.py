"""A local file that is made or replaced whole, written piece by piece in the meantime."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import trio

from mictlanfs.identifiers import new_token
from mictlanfs.model import KIB, Buffer
from mictlanfs.oserrors import translated_os_errors

# Writing this little into the page cache costs less than asking a thread to.
INLINE_WRITE_SIZE_BYTES_MAX = 64 * KIB


class NewFile:
    """A local file that appears under its name only when it is complete.

    Args:
        destination: what it replaces. The temporary file lies beside it, so that the rename
            stays within one file system.
        mode: permission bits, before the umask.

    Raises:
        MictlanError: the place cannot be written.
    """

    def __init__(self, destination: Path, mode: int = 0o666) -> None:
        self.destination = destination
        name = f".{destination.name}"[:200] + f".mictlanfs-{new_token()}"
        self._temporary = destination.with_name(name)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        with translated_os_errors("write", str(destination)):
            self.descriptor: int | None = os.open(self._temporary, flags, mode)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset`; what is skipped becomes a hole."""
        with translated_os_errors("write", str(self.destination)):
            if len(data) <= INLINE_WRITE_SIZE_BYTES_MAX:
                self._write(offset, data)
            else:
                await trio.to_thread.run_sync(self._write, offset, data)

    def _write(self, offset: int, data: Buffer) -> None:
        assert self.descriptor is not None
        view = memoryview(data)
        while view:
            count = os.pwrite(self.descriptor, view, offset)
            view, offset = view[count:], offset + count

    def appear(self) -> None:
        """Give the file its name; all bytes are there."""
        assert self.descriptor is not None
        descriptor = self.descriptor
        with translated_os_errors("write", str(self.destination)):
            self.descriptor = None
            os.close(descriptor)
            self._temporary.replace(self.destination)

    def abandon(self) -> None:
        """Remove the temporary file. Harmless when the file has appeared, and when called again."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)
