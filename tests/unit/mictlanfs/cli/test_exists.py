import pytest

from mictlanfs.cli.exits import Exit
from mictlanfs.model import FileKind
from tests.support.fakespace import FakeSpace
from tests.unit.mictlanfs.cli.conftest import Run


@pytest.mark.parametrize(
    ("path", "code"), [("b", 0), ("b/f", 0), ("b/none", 1), ("none", 1), ("b/f/x", 1)]
)
def test_the_code_tells_and_nothing_is_printed(
    cli: Run, space: FakeSpace, path: str, code: int
) -> None:
    space.router.make(FileKind.FILE, b"b", b"f")
    done = cli("exists", path)
    assert (done.code, done.out, done.err) == (code, b"", "")


def test_not_knowing_is_not_absence(cli: Run, space: FakeSpace) -> None:
    space.net.servers.clear()
    assert cli("exists", "--timeout", "0", "b").code == Exit.UNREACHABLE
