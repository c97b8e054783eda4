"""Reading all of a chunk file to find out whether it is what its name says. Blocks; for a thread.

The file is read with O_DIRECT where the file system has it: what is on the disk counts, not what
the page cache remembers of it, and the pages of others stay where they are. Pages that the cache
has are compared as well, when they can be had without the disk, since they are what readers get.
Bytes that look wrong are read once more before they are believed to be.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import closing
from typing import TYPE_CHECKING, Final

from mictlanfs.blocksums import BlockSummer
from mictlanfs.checksums import new_hasher
from mictlanfs.errors import Kind, MictlanError
from mictlanfs.model import MIB
from mictlanfs_server.peer.backends.base import StoredChunk, corrupt

if TYPE_CHECKING:
    from pathlib import Path

_PIECE_SIZE_BYTES: Final = 1 * MIB
# What reading fails with when the disk has lost the bytes; everything else is about this process.
_LOST: Final = frozenset({errno.EIO, errno.ENXIO, errno.ENODATA, errno.EUCLEAN})


def check_file(chunk: StoredChunk, path: Path) -> bytes:
    """The checksums of the blocks of a chunk whose file is right.

    Raises:
        MictlanError: NOT_FOUND, CORRUPT, INTERNAL; see `Backend.check`.
    """
    try:
        sums, reason = _look(chunk, path, os.O_DIRECT)
        if reason:
            # A bit that flipped on the way from the disk does not do so twice.
            sums, reason = _look(chunk, path, os.O_DIRECT)
        if not reason:
            _drop_wrong_pages(chunk, path)
    except FileNotFoundError as error:
        raise MictlanError(Kind.NOT_FOUND, "check chunk", chunk.id.hex()) from error
    except OSError as error:
        if error.errno in _LOST:
            raise corrupt(chunk, f"the disk cannot give it: {error}") from error
        raise MictlanError(Kind.INTERNAL, "check chunk", chunk.id.hex(), str(error)) from error
    if reason:
        raise corrupt(chunk, reason)
    return sums


def _look(chunk: StoredChunk, path: Path, flags: int) -> tuple[bytes, str]:
    """The checksums of the blocks, and what is wrong with the file, if anything. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        if error.errno != errno.EINVAL or not flags:
            raise
        return _look(chunk, path, 0)
    try:
        size = os.fstat(fd).st_size
        if size != chunk.length:
            return b"", f"the file has {size} bytes, not {chunk.length}"
        return _digest(chunk, fd)
    except OSError as error:
        # Some file systems open with O_DIRECT and cannot read with it.
        if error.errno != errno.EINVAL or not flags:
            raise
    finally:
        os.close(fd)
    return _look(chunk, path, 0)


def _digest(chunk: StoredChunk, fd: int) -> tuple[bytes, str]:
    hasher, summer = new_hasher(), BlockSummer()
    position = 0
    # Memory of its own pages: O_DIRECT wants it aligned.
    with closing(mmap.mmap(-1, _PIECE_SIZE_BYTES)) as pages, memoryview(pages) as view:
        while position < chunk.length:
            count = os.preadv(fd, [view], position)
            if not count:
                break
            hasher.update(view[:count])
            summer.update(view[:count])
            position += count
    if position != chunk.length:
        return b"", f"the file ends at {position}, not at {chunk.length}"
    if hasher.digest() != chunk.digest:
        return b"", "the bytes do not match the digest"
    return summer.sums(), ""


def _drop_wrong_pages(chunk: StoredChunk, path: Path) -> None:
    """Have the disk read again where the page cache has something else than it. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        hasher = new_hasher()
        buffer = bytearray(_PIECE_SIZE_BYTES)
        position = 0
        with memoryview(buffer) as view:
            while position < chunk.length:
                try:
                    count = os.preadv(fd, [buffer], position, os.RWF_NOWAIT)
                except OSError as error:
                    if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP}:
                        # Not all of it is in the cache: what is there is compared when it is read.
                        return
                    raise
                if not count:
                    return
                hasher.update(view[:count])
                position += count
        if hasher.digest() != chunk.digest:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
