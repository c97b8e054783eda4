"""The beginning of a mount: FUSE_INIT, and a flag in the answer that libfuse does not know.

Before each WRITE the kernel asks for `security.capability`, which a write would end, unless the
mount says FUSE_HANDLE_KILLPRIV_V2: then it asks once and believes the answer until it hears of
other attributes. So half of all requests of a program that writes small pieces are saved. libfuse
3.14 cannot say it, and pyfuse3 gives no hold on the answer. So for these two messages libfuse is
given a socket in the place of the device::

    device --INIT--> [offer] --INIT--> socket --> libfuse
    device <--------[finish]<-- answer, with the flag --'      then the device takes its place again

The flag also leaves it to the mount to end set-user-id and set-group-id; see `setids`. Whatever is
not as expected, libfuse's own answer goes to the kernel. Source: include/uapi/linux/fuse.h and
`process_init_reply` in fs/fuse/inode.c.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

FUSE_HANDLE_KILLPRIV_V2: Final = 1 << 28
_FUSE_INIT: Final = 26
# struct fuse_in_header, of which only the operation matters; then of struct fuse_init_in: major,
# minor, max_readahead, flags.
_REQUEST: Final = struct.Struct("=4xI32x12xI")
# struct fuse_out_header: len, error, unique; then of struct fuse_init_out the same four.
_ANSWER: Final = struct.Struct("=4xi8x12xI")
_ANSWER_FLAGS_OFFSET: Final = _ANSWER.size - 4
# The kernel reads into no buffer that is smaller than FUSE_MIN_READ_BUFFER, 8 KiB.
_MESSAGE_SIZE_BYTES_MAX: Final = 64 * 1024
# The request is there when the mount is.
_WAIT_MS: Final = 1000


class Handshake:
    """Passes FUSE_INIT on to libfuse, and its answer to the kernel.

    Args:
        on_granted: called when the kernel has taken the flag, before any other request.
    """

    def __init__(self, on_granted: Callable[[], None]) -> None:
        self._on_granted = on_granted
        self._device = -1
        self._ours: socket.socket | None = None
        self._is_offered = False

    def offer(self, descriptor: int) -> bool:
        """Let libfuse read INIT by `descriptor`, its own, instead of the device's next request.

        False: all stays as it is. Waits for the kernel for up to 1 s.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poll.poll(_WAIT_MS)):
            log.info("the kernel does not begin: it gets the usual answer")
            return False
        # All that may fail comes before the request is taken: nobody would answer it then.
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            log.info("the kernel gets the usual answer: %s", error)
            return False
        with theirs:
            self._device = os.dup(descriptor)
            request = os.read(descriptor, _MESSAGE_SIZE_BYTES_MAX)
            operation, offered = _REQUEST.unpack_from(request)
            self._is_offered = operation == _FUSE_INIT and bool(offered & FUSE_HANDLE_KILLPRIV_V2)
            ours.send(request)
            os.dup2(theirs.fileno(), descriptor, inheritable=False)
        self._ours = ours
        return True

    def finish(self, descriptor: int) -> None:
        """Pass libfuse's answer on, and give it the device back. Does nothing without an offer.

        Raises:
            OSError: the kernel takes no answer; the mount is over.
        """
        if self._ours is None:
            return
        try:
            with self._ours:
                self._ours.setblocking(False)
                answer = self._ours.recv(_MESSAGE_SIZE_BYTES_MAX)
            self._ours = None
            self._answer(answer)
            os.dup2(self._device, descriptor, inheritable=False)
        finally:
            os.close(self._device)

    def _answer(self, answer: bytes) -> None:
        error, flags = _ANSWER.unpack_from(answer) if len(answer) >= _ANSWER.size else (1, 0)
        if self._is_offered and not error:
            with_flag = bytearray(answer)
            flags |= FUSE_HANDLE_KILLPRIV_V2
            struct.pack_into("=I", with_flag, _ANSWER_FLAGS_OFFSET, flags)
            try:
                os.write(self._device, with_flag)
            except OSError as refused:
                log.info("the kernel refuses the answer that saves requests: %s", refused)
            else:
                self._on_granted()
                return
        os.write(self._device, answer)
