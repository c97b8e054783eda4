"""Sizes as MictlanX writes them: `10mb` and `1GB` are decimal, `KiB` and its like binary. Pure.

The options of a mount are another dialect, in which every unit is binary: see `mictlanfs.config`.
"""

from __future__ import annotations

import re
from fractions import Fraction

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)
_DECIMAL = ("kilo", "mega", "giga", "tera", "peta", "exa")
_BINARY = ("kibi", "mebi", "gibi", "tebi", "pebi", "exbi")


def _units() -> dict[str, int]:
    units = dict.fromkeys(("", "b", "byte", "bytes"), 1)
    for power, (decimal, binary) in enumerate(zip(_DECIMAL, _BINARY, strict=True), 1):
        letter = decimal[0]
        for unit in (letter, f"{letter}b", f"{decimal}byte", f"{decimal}bytes"):
            units[unit] = 1000**power
        for unit in (f"{letter}ib", f"{binary}byte", f"{binary}bytes"):
            units[unit] = 1024**power
    return units


_UNITS = _units()


def parse_decimal_size(text: str) -> int:
    """Bytes in a size such as `4096`, `256kb`, `1.5 GB` or `10MiB`, in any case, rounded down.

    Raises:
        ValueError: `text` is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match["unit"].lower()) if match is not None else None
    if match is None or factor is None:
        raise ValueError("it is not a size such as 4096, 256kb, 1.5GB or 10MiB")
    # Not float: 1.1 GB are 1100000000 bytes, not one less.
    return int(Fraction(match["number"]) * factor)
