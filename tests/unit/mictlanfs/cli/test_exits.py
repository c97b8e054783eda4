import re

from mictlanfs.cli import exits
from mictlanfs.cli.exits import Exit


def test_every_code_is_in_the_documented_table() -> None:
    documented = re.findall(r"^(\d+) ", exits.__doc__ or "", re.MULTILINE)
    assert {int(code) for code in documented} == set(Exit)


def test_codes_of_signals_are_those_of_the_shell() -> None:
    assert (Exit.INTERRUPTED, Exit.BROKEN_PIPE, Exit.TERMINATED) == (128 + 2, 128 + 13, 128 + 15)
