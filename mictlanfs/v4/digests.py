"""SHA-256, the checksum of the v4 API, in lower-case hex.

1.0 GB/s on the development machine, so what is large is hashed in a thread while other chunks
travel. The digests of our own chunks are another matter: see `mictlanfs.checksums`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeAlias

import trio

from mictlanfs.model import KIB, Buffer

# Going to a thread and back costs about as much as hashing this.
INLINE_SIZE_BYTES_MAX = 128 * KIB

Hasher: TypeAlias = "hashlib._Hash"


def new_hasher() -> Hasher:
    """A hasher for `update_hasher`."""
    return hashlib.sha256()


async def sha256_of(data: Buffer) -> str:
    """The checksum of `data`, which must not change meanwhile.

    Cancellation: as long as a thread works, it is waited for.
    """
    hasher = new_hasher()
    await update_hasher(hasher, data)
    return hasher.hexdigest()


async def update_hasher(hasher: Hasher, data: Buffer) -> None:
    """Add `data`; cancellation as for `sha256_of`."""
    if len(data) <= INLINE_SIZE_BYTES_MAX:
        hasher.update(data)
    else:
        await trio.to_thread.run_sync(hasher.update, data)


def sha256_of_file(path: Path) -> str:
    """The checksum of a local file. Blocks; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
