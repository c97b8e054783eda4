"""How tests are shared out over processes: file by file, and going on when one of them is ended.

A test that is stuck is ended with its process (`timeout_method` in pyproject.toml). xdist would
give the rest of its file to another process with that test first, which then is ended as well, and
so on; and a process that comes late and gets one test waits for another one for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # It has no types.

if TYPE_CHECKING:
    import pytest

# A process that runs tests, to xdist.
Worker = object


class FileScheduling(LoadFileScheduling):  # type: ignore[misc]  # See there.
    """As `--dist loadfile`, with each test run once."""

    def remove_node(self, node: Worker) -> str | None:
        """A process ended. Returns the test that ended it, None when it was done."""
        workload = self.assigned_work.pop(node)
        pending = [
            (unit, test)
            for unit in workload.values()
            for test, is_done in unit.items()
            if not is_done
        ]
        if not pending:
            return None
        unit, culprit = pending[0]
        assert isinstance(culprit, str)
        unit[culprit] = True
        left = {scope: unit for scope, unit in workload.items() if not all(unit.values())}
        self.workqueue.update(left)
        for other in self.assigned_work:
            self._reschedule(other)
        return culprit

    def schedule(self) -> None:
        """Begin, or give work to a process that came late: enough of it, or word that it is all."""
        super().schedule()
        if self.collection is None:
            # A process could not collect its tests, which is told when all have ended.
            return
        for node in self.nodes:
            for _ in range(len(self.workqueue) + 1):
                self._reschedule(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FileScheduling | None:
    """Take the place of xdist's own way."""
    return FileScheduling(config, log) if config.getoption("dist") == "loadfile" else None
