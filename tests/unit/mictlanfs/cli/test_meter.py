import io
import sys

import pytest

from mictlanfs.cli import meter


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with meter.byte_meter("file", 100) as progress:
        progress(100)
    with meter.count_meter("removed") as progress:
        progress(3)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("total", [100, None])
def test_on_a_terminal_progress_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], total: int | None
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with meter.byte_meter("photo.jpg", total) as progress:
        progress(50)
    with meter.count_meter("removed") as progress:
        progress(3)
    assert "photo.jpg" in terminal.getvalue()
    assert "removed" in terminal.getvalue()
    assert capsys.readouterr().out == ""
