"""How well the data of a bucket is protected: copies or a code, named levels, a choice by target.

Pure values and functions; `docs/operations.md` explains them to users. Nothing here is on the wire
but what ends up in a `BucketPolicy`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from mictlanfs.errors import UsageError
from mictlanfs.model import (
    DATA_FRAGMENTS_MAX,
    DATA_FRAGMENTS_MIN,
    PARITY_FRAGMENTS_MAX,
    REPLICAS_MAX,
    BucketPolicy,
)

_CODE: Final = re.compile(r"([0-9]{1,3})\+([0-9]{1,3})")
# Of a whole peer in a year. Yearly failure rates of drives are 0.5 % to 6.5 % (the node sets of
# D-Rex, from drive statistics), and a peer is lost with its drive at least.
FAILURE_RATE_DEFAULT: Final = 0.05


@dataclass(frozen=True, slots=True)
class Protection:
    """What a bucket policy says of losses.

    Attributes:
        copies: of a chunk that is not coded, 1 to 5: one more than losses that it survives. A coded
            one survives as many, so it has `copies - 1` fragments of parity.
        data: fragments of data of a code, 2 to 16; 0: copies only.
        copies_min: that suffice while peers are down; see `BucketPolicy.replicas_min`.
    """

    copies: int
    data: int = 0
    copies_min: int = 1

    @property
    def parity(self) -> int:
        """Fragments of parity; 0 without a code."""
        return self.copies - 1 if self.data else 0

    @property
    def peer_count(self) -> int:
        """Peers that a chunk lies on."""
        return self.data + self.parity if self.data else self.copies

    @property
    def overhead(self) -> float:
        """Bytes stored for each byte of a large file."""
        return self.peer_count / max(self.data, 1)

    def with_minimum(self, count: int) -> Protection:
        """The same with `count` copies, or of a code fragments, that suffice while peers are down.

        Raises:
            UsageError: more than there are, or fewer than give the data back.
        """
        least = max(self.data, 1)
        if not least <= count <= self.peer_count:
            raise UsageError(
                f"at least {count} of {self}: it must be from {least} to {self.peer_count}"
            )
        return replace(self, copies_min=count - least + 1)

    def applied(self, policy: BucketPolicy) -> BucketPolicy:
        """`policy` with this protection."""
        return msgspec.structs.replace(
            policy, replicas=self.copies, replicas_min=self.copies_min, data=self.data
        )

    def __str__(self) -> str:
        if self.data:
            return f"{self.data}+{self.parity}"
        return "1 copy" if self.copies == 1 else f"{self.copies} copies"


def coded(data: int, parity: int) -> Protection:
    """A code that is good, while peers are down, with one fragment more than are needed.

    Raises:
        UsageError: there cannot be so many fragments.
    """
    if not DATA_FRAGMENTS_MIN <= data <= DATA_FRAGMENTS_MAX or not (
        1 <= parity <= PARITY_FRAGMENTS_MAX
    ):
        raise UsageError(
            f"a code has {DATA_FRAGMENTS_MIN} to {DATA_FRAGMENTS_MAX} fragments of data and 1 to"
            f" {PARITY_FRAGMENTS_MAX} of parity, such as 3+2; {data}+{parity} cannot be"
        )
    return Protection(parity + 1, data, 2)


def parse_code(text: str) -> Protection:
    """The code written as `K+M`. Raises UsageError."""
    match = _CODE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"a code is written as fragments of data and parity, as 3+2, not {text!r}")
    return coded(int(match[1]), int(match[2]))


def protection_of(policy: BucketPolicy) -> Protection:
    """What a policy says of losses."""
    return Protection(policy.replicas, policy.data, policy.replicas_min)


# --- levels --------------------------------------------------------------------------------------

# DynoStore's levels, which its servers of today take and do not keep, given a meaning: 0 is one
# copy as there, 1 the usual code, 2 the fixed code of its servers, 3 the most that there is.
LEVELS: Final[Mapping[str, Protection]] = {
    "single": Protection(1),
    "standard": coded(3, 2),
    "high": coded(2, 3),
    "highest": Protection(REPLICAS_MAX, 0, 2),
}


def level(text: str) -> Protection:
    """The protection of a level, given by name or number. Raises UsageError."""
    names = list(LEVELS)
    name = names[int(text)] if text.isdecimal() and int(text) < len(names) else text
    found = LEVELS.get(name)
    if found is None:
        known = ", ".join(f"{number} or {name}" for number, name in enumerate(names))
        raise UsageError(f"there is no resiliency level {text!r}: choose from {known}")
    return found


# --- a choice by reliability ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """A protection that reaches a target.

    Attributes:
        reliability: probability, 0 to 1, that a chunk can be read at the end of the time, when it
            lies on those peers that fail most, and nothing is healed meanwhile.
    """

    protection: Protection
    reliability: float


def survival(failure_rates: Sequence[float], losses_max: int) -> float:
    """The probability that at most `losses_max` of independent peers fail: Poisson-binomial.

    `failure_rates` are the probabilities, 0 to 1, that each of them does.
    """
    # Of exactly 0, 1, ... losses among the peers so far; more than that many are of no interest.
    exactly = [1.0] + [0.0] * losses_max
    for rate in failure_rates:
        for count in range(losses_max, 0, -1):
            exactly[count] = exactly[count] * (1 - rate) + exactly[count - 1] * rate
        exactly[0] *= 1 - rate
    return math.fsum(exactly)


def failure_probability(yearly: float, years: float) -> float:
    """That of a peer within `years`, from that within one. `yearly` is 0 to 1, `years` above 0."""
    return 1.0 - math.pow(1.0 - yearly, years)


def choose(failure_rates: Sequence[float], target: float) -> Choice:
    """The protection that reaches `target` with the least space, of those with so many peers.

    As D-Rex does with its GreedyMinStorage, but for any set of peers that placement may choose: the
    one whose peers fail most has to reach it. Of equal space the fewest peers: fewer requests, and
    more spare peers.

    Args:
        failure_rates: of every peer, the probability that it fails within the time in question.
        target: the reliability asked for, 0 to 1.

    Raises:
        UsageError: nothing reaches it; says what comes next to it.
    """
    worst_first = sorted(failure_rates, reverse=True)
    best: Choice | None = None
    nearest: Choice | None = None
    for protection in _protections(len(worst_first)):
        rates = worst_first[: protection.peer_count]
        found = Choice(protection, survival(rates, protection.copies - 1))
        if nearest is None or found.reliability > nearest.reliability:
            nearest = found
        if found.reliability >= target and (best is None or _cost(found) < _cost(best)):
            best = found
    if best is not None:
        return best
    if nearest is None:
        raise UsageError("the space has no peers yet: nothing can be chosen for them")
    raise UsageError(
        f"no protection on {len(worst_first)} peers reaches {target:g}; the best,"
        f" {nearest.protection}, has {nearest.reliability:.9g}"
    )


def _protections(peer_count: int) -> Iterator[Protection]:
    """All that need no more peers than there are."""
    for copies in range(1, min(REPLICAS_MAX, peer_count) + 1):
        yield Protection(copies)
    for data in range(DATA_FRAGMENTS_MIN, min(DATA_FRAGMENTS_MAX, peer_count - 1) + 1):
        for parity in range(1, min(PARITY_FRAGMENTS_MAX, peer_count - data) + 1):
            yield coded(data, parity)


def _cost(choice: Choice) -> tuple[float, int]:
    return (choice.protection.overhead, choice.protection.peer_count)
