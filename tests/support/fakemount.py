"""A mount process whose session is a fake: `python fakemount.py BEHAVIOUR` and the arguments of
`python -m mictlanfs_mount`.

Run as a program, never imported by the package. The behaviours are the functions below.
"""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable

from mictlanfs.errors import Kind, MictlanError, UsageError
from mictlanfs_mount import cli, daemon
from mictlanfs_mount.settings import MountSettings

Notify = Callable[[], None]


def answer_until_term(notify_ready: Notify) -> None:
    """Answer, and wait for SIGTERM, which may come at any moment from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    notify_ready()
    signal.sigwait([signal.SIGTERM])


def ready(settings: MountSettings, notify_ready: Notify) -> None:
    """Answers at once, ends well when told to."""
    answer_until_term(notify_ready)


def late(settings: MountSettings, notify_ready: Notify) -> None:
    """Answers when the launcher has lost patience."""
    time.sleep(0.5)
    answer_until_term(notify_ready)


def never(settings: MountSettings, notify_ready: Notify) -> None:
    """Never answers, and does not listen to SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    while True:
        signal.pause()


def refused(settings: MountSettings, notify_ready: Notify) -> None:
    raise MictlanError(Kind.UNAVAILABLE, "open session", settings.uri, "no router answers")


def misused(settings: MountSettings, notify_ready: Notify) -> None:
    raise UsageError("subdir 'x' does not exist in the space")


def defect(settings: MountSettings, notify_ready: Notify) -> None:
    raise ZeroDivisionError("a defect")


def dies(settings: MountSettings, notify_ready: Notify) -> None:
    print("terminate called without an active exception", file=sys.stderr, flush=True)
    os._exit(3)


def killed(settings: MountSettings, notify_ready: Notify) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def loses(settings: MountSettings, notify_ready: Notify) -> None:
    """Answers, and loses data when it is ended."""
    answer_until_term(notify_ready)
    raise MictlanError(Kind.UNAVAILABLE, "flush", "", "4096 bytes could not be stored")


def mounted(settings: MountSettings, notify_ready: Notify) -> None:
    """Really mounts an empty file system."""
    serve_empty(settings, notify_ready)


def mounted_slow_to_end(settings: MountSettings, notify_ready: Notify) -> None:
    """Really mounts, and takes half a second to store its data when it is unmounted."""
    serve_empty(settings, notify_ready)
    time.sleep(0.5)


def mounted_loses(settings: MountSettings, notify_ready: Notify) -> None:
    """Really mounts, and loses data when it is unmounted."""
    serve_empty(settings, notify_ready)
    raise MictlanError(Kind.UNAVAILABLE, "flush", "", "4096 bytes could not be stored")


def mounted_then_killed(settings: MountSettings, notify_ready: Notify) -> None:
    """Really mounts, and dies before it answers."""
    serve_empty(settings, lambda: os.kill(os.getpid(), signal.SIGKILL))


def serve_empty(settings: MountSettings, notify_ready: Notify) -> None:
    import pyfuse3
    import trio

    class Empty(pyfuse3.Operations):
        async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
            attributes = pyfuse3.EntryAttributes()
            attributes.st_ino = pyfuse3.ROOT_INODE
            attributes.st_mode = 0o40755
            attributes.st_nlink = 2
            return attributes

        async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
            return pyfuse3.StatvfsData()

        async def opendir(self, inode: int, ctx: object) -> int:
            return inode

        async def readdir(self, fh: int, start: int, token: object) -> None:
            """There is nothing in it."""

    async def serve() -> None:
        options = {f"fsname={settings.uri}", "subtype=mictlanfs"}
        pyfuse3.init(Empty(), os.fspath(settings.mountpoint), options)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_on_term)
                await trio.lowlevel.checkpoint()
                notify_ready()
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)

    async def end_on_term() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                pyfuse3.terminate()

    trio.run(serve)


if __name__ == "__main__":
    behaviour = globals()[sys.argv.pop(1)]
    daemon.serve_and_report = functools.partial(daemon.serve_and_report, run_mount=behaviour)
    cli.serve_main()
