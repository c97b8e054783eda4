"""A real mount that writes down each request it sends: run as a program, or by `traced`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mictlanfs import wire
from mictlanfs.client.transport import HttpTransport, Response
from mictlanfs_mount.writeback import AGE_S_MAX, TICK_S
from tests.support.spaces import is_mounted, run, wait_until

# Nothing is on its way when nothing was sent for so long: what was written leaves after a second.
QUIET_S = AGE_S_MAX + TICK_S + 0.25
# Sent by time and not by what a program does.
_UNCOUNTED = frozenset(
    {
        wire.Path.SESSION_HEARTBEAT,
        wire.Path.SESSION_EVENTS,
        wire.Path.SESSION_INODES,
        wire.Path.PEER_MAP,
    }
)
_PEER_PATHS = (wire.Path.CHUNK, *(wire.Path.FRAME_PUT, wire.Path.FRAME_GET))


@dataclass(frozen=True)
class Requests:
    """How many requests went where, and each path with its number."""

    router: int
    peers: int
    paths: Counter[str]


class TracedMount:
    """The mount at `path`, whose process appends a line to `log` for each request."""

    def __init__(self, path: Path, log: Path) -> None:
        self.path = path
        self._log = log
        self._offset = 0
        self._second_before = 0

    def forget(self) -> None:
        """Count from now on."""
        self._offset = self._log.stat().st_size
        self._second_before = self._second_requests()

    def _second_requests(self) -> int:
        """Requests to peers, made because another one is late: on a busy machine any may be."""
        stats = json.loads((self.path / ".mictlanfs" / "stats").read_bytes())
        return int(stats["races"]["second_requests"])

    def requests(self) -> Requests:
        """What was sent since `forget`."""
        with self._log.open() as log:
            log.seek(self._offset)
            paths = Counter(line.strip() for line in log)
        for path in _UNCOUNTED:
            del paths[path]
        peers = sum(count for path, count in paths.items() if path.startswith(_PEER_PATHS))
        second = self._second_requests() - self._second_before
        return Requests(paths.total() - peers, peers - second, paths)

    def requests_when_quiet(self) -> Requests:
        """What was sent since `forget`, with what is fetched ahead or still on its way."""
        before = None
        while (now := self.requests()) != before:
            before = now
            time.sleep(QUIET_S)
        return now


@contextmanager
def traced(uri: str, base: Path, *more_options: str) -> Iterator[TracedMount]:
    """A traced mount of `uri` below `base`."""
    log, mountpoint = base / "requests", base / "mnt"
    log.touch()
    mountpoint.mkdir()
    # What is known must not expire while a busy machine prepares to look.
    options = ",".join([f"cache_dir={base / 'cache'},attr_timeout=60", *more_options])
    words: list[str | Path] = [
        sys.executable,
        "-m",
        __name__,
        log,
        "mount",
        uri,
        mountpoint,
        "-f",
        "-o",
        options,
    ]
    process = subprocess.Popen(
        [os.fspath(word) for word in words],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_mounted(mountpoint), "the traced mount is there")
        os.listdir(mountpoint)
        yield TracedMount(mountpoint, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if is_mounted(mountpoint):
            run("umount", "--lazy", mountpoint, check=False)


def main() -> int:
    """Run our command line with every request written to the file that is named first."""
    from mictlanfs.cli.main import run as run_command_line

    log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    send = HttpTransport.request

    async def request(self: HttpTransport, method: str, url: str, **options: Any) -> Response:
        os.write(log, f"{url[url.index(wire.PREFIX) :]}\n".encode())
        return await send(self, method, url, **options)

    send_into = HttpTransport.request_into

    async def request_into(
        self: HttpTransport, method: str, url: str, *words: Any, **options: Any
    ) -> Response:
        os.write(log, f"{url[url.index(wire.PREFIX) :]}\n".encode())
        return await send_into(self, method, url, *words, **options)

    # That is what they are for.
    HttpTransport.request = request  # type: ignore[method-assign]
    HttpTransport.request_into = request_into  # type: ignore[method-assign]
    return run_command_line(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
