"""What the servers load, and above all what they do not: loading is most of their start."""

import subprocess
import sys

import pytest

# Of the loop that the servers are not on, and of the stock transport that they need for TLS only.
NEVER = ("trio", "httpcore", "anyio._backends._trio")
PROGRAM = """
import sys
import {module}
print([name for name in {never} if name in sys.modules])
"""


@pytest.mark.parametrize("module", ["mictlanfs_server.router.app", "mictlanfs_server.peer.app"])
def test_a_server_loads_neither_trio_nor_the_stock_transport(module: str) -> None:
    words = [sys.executable, "-c", PROGRAM.format(module=module, never=NEVER)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
