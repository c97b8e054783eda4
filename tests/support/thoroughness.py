"""How many examples a model is tried with: few in every run of the tests, many when asked to.

Most of what such a model finds it finds with its first examples, once its code is there; what is
rare takes hours in any case. Those hours are not everybody's.
"""

from __future__ import annotations

from hypothesis import settings

# Of `--hypothesis-profile`.
LONG = "long"


def examples(few: int, many: int) -> int:
    """`few`, or `many` under the long profile. To be called when a test module is imported."""
    assert 0 < few < many
    return many if settings.get_current_profile_name() == LONG else few
