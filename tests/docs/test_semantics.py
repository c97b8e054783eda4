"""Every example of docs/semantics.md, run in a fresh bucket on two real mounts of one space."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.docs.generate import ROOT
from tests.docs.markdown import Example, examples
from tests.support.spaces import Mount

EXAMPLES = list(examples((ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")))
EXAMPLE_TIMEOUT_S = 30

pytestmark = pytest.mark.fuse


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize(
    ("number", "example"),
    list(enumerate(EXAMPLES)),
    ids=[f"{example.heading}: {example.commands[0]}" for example in EXAMPLES],
)
def test_the_example_says_what_happens(
    number: int, example: Example, here: Mount, there: Mount, environment: dict[str, str]
) -> None:
    bucket = f"example-{number}"
    (here.path / bucket).mkdir()
    done = subprocess.run(
        ["sh", "-s"],
        input="\n".join(example.commands) + "\n",
        cwd=here.path / bucket,
        env={**environment, "BUCKET": bucket, "THERE": os.fspath(there.path / bucket)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=EXAMPLE_TIMEOUT_S,
        check=False,
    )
    assert done.stdout == example.output
