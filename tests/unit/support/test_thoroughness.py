"""Models are tried with many examples when asked, and only then."""

from __future__ import annotations

from hypothesis import settings

from tests.support.thoroughness import LONG, examples


def test_many_examples_are_those_of_the_long_profile() -> None:
    usual = settings.get_current_profile_name()
    try:
        settings.load_profile("in company")
        assert examples(3, 75) == 3
        settings.load_profile(LONG)
        assert examples(3, 75) == 75
        assert settings().deadline is None
    finally:
        settings.load_profile(usual)
