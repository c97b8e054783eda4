"""How many peers share a disk: told at the start, or by a file that may change meanwhile."""

from __future__ import annotations

from pathlib import Path

from mictlanfs.durable import replace_file


def write_sharers(path: Path, count: int) -> None:
    """Tell the peers whose `--sharers-file` is `path` that `count` of them share a disk.

    Raises:
        OSError: they know what they knew before.
    """
    # Not worth a sync: it is written anew at each start.
    replace_file(path, b"%d\n" % count, is_durable=False)


class Sharers:
    """A number of peers that is read anew each time. A file that tells none changes nothing."""

    def __init__(self, count: int, path: Path | None) -> None:
        self._count = count
        self._path = path

    def __call__(self) -> int:
        """The number now, at least 1."""
        if self._path is not None:
            try:
                self._count = max(1, int(self._path.read_bytes()))
            except (OSError, ValueError):
                # The space may have been moved; what was true is likely to be so still.
                return self._count
        return self._count
