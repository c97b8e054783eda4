import subprocess
import sys

import pytest

BEFORE_AND_AFTER = """
import sys
{before}
import mictlanfs.client.transport
print("httpx._main" in sys.modules, "rich" in sys.modules)
import httpx
assert httpx is mictlanfs.client.transport.httpx
assert callable(httpx.main)
import httpx._main
"""


@pytest.mark.parametrize(("before", "loaded"), [("", "False False"), ("import httpx", "True True")])
def test_the_program_of_httpx_is_loaded_only_for_those_who_want_it(
    before: str, loaded: str
) -> None:
    words = [sys.executable, "-c", BEFORE_AND_AFTER.format(before=before)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{loaded}\n", "")
