"""A mount of a few files in memory that the kernel may trust for an hour, driven line by line.

`python notified_mount.py MOUNTPOINT` mounts, then answers each line of JSON on its input,
`[name, arguments…]`, by one on its output: a method of `KernelNotifier` by its result, the methods
of `Control` by theirs. Run as a program, so that notifying and using the mount never share a
process. Notifications that wait for requests run in a thread.
"""

import errno
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyfuse3
import trio

from mictlanfs_mount.notify import KernelInode, KernelNotifier, open_notifier

TRUSTED_S = 3600.0
ROOT = pyfuse3.ROOT_INODE
DIRECTORY = 2
IN_THREAD = {"expire_entry", "invalidate_pages", "prune"}


class Trusted(pyfuse3.Operations):
    """The root holds the directory `d`; both hold what `put` makes."""

    supports_dot_lookup = True

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[tuple[int, bytes], int] = {(ROOT, b"d"): DIRECTORY}
        self.content: dict[int, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.forgotten: list[int] = []
        self.before_answer: Callable[[], None] = lambda: None

    def attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = 0o100644 if ino in self.content else 0o40755
        entry.st_nlink = 1
        entry.st_size = len(self.content.get(ino, b""))
        entry.entry_timeout = entry.attr_timeout = TRUSTED_S
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        self.requests["lookup"] += 1
        self.before_answer()
        ino = self.names.get((parent, name))
        if ino is None:
            # Inode 0: the name is known to be absent, for as long.
            absent = pyfuse3.EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = TRUSTED_S
            return absent
        return self.attributes(ino)

    async def getattr(self, ino: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        self.requests["getattr"] += 1
        self.before_answer()
        return self.attributes(ino)

    async def opendir(self, ino: int, ctx: object) -> int:
        return ino

    async def readdir(self, ino: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        names = [(name, number) for (parent, name), number in self.names.items() if parent == ino]
        for index, (name, number) in enumerate(names[start:], start + 1):
            if not pyfuse3.readdir_reply(token, name, self.attributes(number), index):
                return

    async def open(self, ino: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        self.requests["open"] += 1
        return pyfuse3.FileInfo(fh=ino, keep_cache=True)

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        self.requests["read"] += 1
        return self.content[ino][offset : offset + size]

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.forgotten += [ino for ino, _ in inode_list]

    async def getxattr(self, ino: int, name: bytes, ctx: object) -> bytes:
        raise pyfuse3.FUSEError(errno.ENOSYS)


class Control:
    """What a test may ask of the mount."""

    def __init__(self, files: Trusted, notifier: KernelNotifier) -> None:
        self.files = files
        self.notifier = notifier

    def put(self, parent: int, name: str, ino: int, content: str) -> None:
        """Make or change a file without a word to the kernel."""
        self.files.names[parent, name.encode()] = ino
        self.files.content[ino] = content.encode()

    def requests(self) -> dict[str, int]:
        """What the kernel has asked since this was called last."""
        counts = dict(self.files.requests)
        self.files.requests.clear()
        return counts

    def forgotten(self) -> list[int]:
        """Inodes that the kernel has given up."""
        return self.files.forgotten

    def has_epoch(self) -> bool:
        return self.notifier.has_epoch

    def has_prune(self) -> bool:
        return self.notifier.has_prune

    def increment_epoch(self) -> None:
        self.notifier.increment_epoch()

    def expire_entry(self, parent: int, name: str) -> bool:
        return self.notifier.expire_entry(KernelInode(parent), name.encode())

    def invalidate_attributes(self, ino: int) -> bool:
        return self.notifier.invalidate_attributes(KernelInode(ino))

    def invalidate_pages(self, ino: int) -> bool:
        return self.notifier.invalidate_pages(KernelInode(ino))

    def prune(self, *inodes: int) -> None:
        self.notifier.prune([KernelInode(ino) for ino in inodes])

    def store(self, ino: int, offset: int, content: str) -> bool:
        return self.notifier.store(KernelInode(ino), offset, content.encode())

    def notify_before_answers(self, ino: int) -> None:
        """From now on send what the loop may send while each request is in flight."""

        def notify() -> None:
            self.increment_epoch()
            self.invalidate_attributes(ino)

        self.files.before_answer = notify

    def cost_us(self, name: str, *arguments: Any) -> float:
        """Microseconds that one call takes, best of many."""
        method, best = getattr(self, name), float("inf")
        for _ in range(2000):
            start = time.perf_counter()
            method(*arguments)
            best = min(best, time.perf_counter() - start)
        return best * 1e6


async def serve(mountpoint: str) -> None:
    files = Trusted()
    pyfuse3.init(files, mountpoint, {"fsname=notified", "subtype=mictlanfs"})
    try:
        with open_notifier() as notifier:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                await answer_lines(Control(files, notifier))
                nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def answer_lines(control: Control) -> None:
    lines = trio.wrap_file(sys.stdin)
    print("mounted", flush=True)
    while line := await lines.readline():
        name, *arguments = json.loads(line)
        method = getattr(control, name)
        waits = name in IN_THREAD or (name == "cost_us" and arguments[0] in IN_THREAD)
        try:
            if waits:
                result = await trio.to_thread.run_sync(method, *arguments)
            else:
                result = method(*arguments)
        except Exception as error:  # noqa: BLE001  # The test shall see it.
            result = {"error": repr(error)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    trio.run(serve, os.fspath(sys.argv[1]))
