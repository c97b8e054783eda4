"""A mount that answers from memory, with another task that exchanges bytes over sockets.

`python busy_mount.py MOUNTPOINT quick|plain` mounts, prints `mounted` and the way it waits, then
answers each line of its input by `[requests, exchanges, CPU seconds]` counted so far.
"""

import json
import resource
import sys

import pyfuse3
import trio

from mictlanfs_mount.requestloop import quick_requests


class Busy(pyfuse3.Operations):
    """The root, of which the kernel believes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.request_count = 0

    async def getattr(self, ino: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        self.request_count += 1
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.ROOT_INODE
        entry.st_mode = 0o40755
        entry.attr_timeout = 0
        return entry


class Exchange:
    """A byte goes to and fro for ever, each time by way of the event loop's sockets."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        near, far = trio.socket.socketpair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._echo, far)
            while True:
                await near.send(b"x")
                await near.recv(1)
                self.count += 1

    async def _echo(self, far: trio.socket.SocketType) -> None:
        while True:
            await far.send(await far.recv(1))


async def serve(mountpoint: str, *, is_quick: bool) -> None:
    files, exchange = Busy(), Exchange()
    pyfuse3.init(files, mountpoint, {"fsname=busy", "subtype=mictlanfs"})
    try:
        with quick_requests(is_wanted=is_quick) as is_used:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                print("mounted", "quick" if is_used else "plain", flush=True)
                lines = trio.wrap_file(sys.stdin)
                while line := (await lines.readline()).strip():
                    if line == "exchange":
                        nursery.start_soon(exchange.run)
                    usage = resource.getrusage(resource.RUSAGE_SELF)
                    cpu_s = usage.ru_utime + usage.ru_stime
                    print(json.dumps([files.request_count, exchange.count, cpu_s]), flush=True)
                nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(lambda: serve(sys.argv[1], is_quick=sys.argv[2] == "quick"))
