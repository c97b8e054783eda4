"""The options that say how well a bucket is protected: of `bucket create` and `bucket set`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mictlanfs.client.space import SpaceClient
    from mictlanfs.model import BucketPolicy
    from mictlanfs.protection import Protection

_Command = Callable[..., object]


@dataclass(frozen=True, slots=True)
class ProtectionOptions:
    """What was given on the command line; None: nothing."""

    replicas: int | None
    code: str | None
    resiliency: str | None
    reliability: float | None
    failure_rates: Sequence[str]
    years: float | None
    at_least: int | None

    @property
    def is_given(self) -> bool:
        """Whether anything is to be changed."""
        return self._ways_count > 0 or self.at_least is not None

    @property
    def _ways_count(self) -> int:
        ways = (self.replicas, self.code, self.resiliency, self.reliability)
        return sum(way is not None for way in ways)

    def check(self) -> None:
        """Refuse what cannot be, before the space is asked.

        Raises:
            click.UsageError: options that exclude each other, or mean nothing alone.
            mictlanfs.errors.UsageError: a code or a level that there is not.
        """
        from mictlanfs import protection

        if self._ways_count > 1:
            raise click.UsageError(
                "say one of --replicas, --code, --resiliency and --reliability: each says it all"
            )
        if self.reliability is None and (self.failure_rates or self.years is not None):
            raise click.UsageError("--failure-rate and --years are for --reliability")
        if self.code is not None:
            protection.parse_code(self.code)
        if self.resiliency is not None:
            protection.level(self.resiliency)
        for text in self.failure_rates:
            _parse_rate(text)

    async def protection(self, client: SpaceClient, old: BucketPolicy) -> Protection:
        """What `old` becomes, told to the user where it was chosen for them.

        Raises:
            UsageError: nothing reaches the reliability; the minimum is out of range.
        """
        from mictlanfs import protection

        if self.replicas is not None:
            least = 1 if old.data else min(old.replicas_min, self.replicas)
            wanted = protection.Protection(self.replicas, copies_min=least)
        elif self.code is not None:
            wanted = protection.parse_code(self.code)
        elif self.resiliency is not None:
            wanted = protection.level(self.resiliency)
        elif self.reliability is not None:
            wanted = await self._chosen(client, self.reliability)
        else:
            wanted = protection.protection_of(old)
        return wanted if self.at_least is None else wanted.with_minimum(self.at_least)

    async def _chosen(self, client: SpaceClient, target: float) -> Protection:
        from mictlanfs import protection

        default = protection.FAILURE_RATE_DEFAULT
        by_peer: dict[str, float] = {}
        for text in self.failure_rates:
            peer, rate = _parse_rate(text)
            if peer:
                by_peer[peer] = rate
            else:
                default = rate
        ids = [peer.id for peer in (await client.router.peer_map()).peers]
        if unknown := sorted(by_peer.keys() - set(ids)):
            raise click.BadParameter(f"no peer is called {unknown[0]}", param_hint="--failure-rate")
        years = 1.0 if self.years is None else self.years
        rates = [protection.failure_probability(by_peer.get(peer, default), years) for peer in ids]
        choice = protection.choose(rates, target)
        unit = "year" if years == 1 else "years"
        click.echo(
            f"{choice.protection} on {len(ids)} peers: kept over {years:g} {unit} with a"
            f" probability of {choice.reliability:.9g}, {choice.protection.overhead:.2f} times the"
            " space"
        )
        return choice.protection


def protection_options(command: _Command) -> _Command:
    """Adds the options; the command gets them as `protection`, a `ProtectionOptions`."""
    from functools import wraps

    @wraps(command)
    def with_protection(
        *args: object,
        replicas: int | None,
        code: str | None,
        resiliency: str | None,
        reliability: float | None,
        failure_rate: Sequence[str],
        years: float | None,
        at_least: int | None,
        **kwargs: object,
    ) -> object:
        protection = ProtectionOptions(
            replicas, code, resiliency, reliability, failure_rate, years, at_least
        )
        return command(*args, protection=protection, **kwargs)

    decorated: _Command = with_protection
    for decorate in (
        click.option(
            "--at-least",
            type=click.IntRange(1, 20),
            help="Copies, or fragments of a code, that must be stored before a write is good.",
        ),
        click.option(
            "--years",
            type=click.FloatRange(0, 100, min_open=True),
            help="With --reliability: for how long data must be kept; 1 by default.",
        ),
        click.option(
            "--failure-rate",
            multiple=True,
            metavar="[PEER=]RATE",
            help="With --reliability: the chance that a peer is lost in a year; 0.05 by default.",
        ),
        click.option(
            "--reliability",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            metavar="P",
            help="Choose copies or a code, with the least space, so that data is kept with this"
            " probability.",
        ),
        click.option(
            "--resiliency",
            metavar="LEVEL",
            help="A named protection: 0 or single, 1 or standard, 2 or high, 3 or highest.",
        ),
        click.option(
            "--code",
            metavar="K+M",
            help="Erasure code: K fragments of data and M of parity; any M may be lost.",
        ),
        click.option("--replicas", type=click.IntRange(1, 5), help="Copies of each chunk."),
    ):
        decorated = decorate(decorated)
    return decorated


def _parse_rate(text: str) -> tuple[str, float]:
    """The peer, empty for all others, and its rate. Raises BadParameter."""
    peer, _, rate = text.rpartition("=")
    try:
        value = float(rate)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise click.BadParameter(f"{text!r} has no rate from 0 to 1", param_hint="--failure-rate")
    return peer, value
