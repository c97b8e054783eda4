"""Machines that are network namespaces, joined by a bridge, and cut off from one another at will.

Needs root and the kernel's `veth` and `bridge`. All that is made has the prefix of the process and
is removed on leaving; nothing of the machine's own network is touched.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.support.spaces import run


def reason_for_none() -> str | None:
    """Why there cannot be namespaces here; None when there can."""
    name = f"mfs{os.getpid()}t"
    try:
        run("ip", "netns", "add", name)
    except (OSError, AssertionError) as error:
        return f"ip netns does not work: {error}"
    try:
        run("ip", "-n", name, "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
        run("ip", "-n", name, "link", "add", f"{name}c", "type", "bridge")
    except AssertionError as error:
        return f"veth and bridge do not work: {error}"
    finally:
        run("ip", "netns", "del", name, check=False)
    return None


@dataclass
class Machines:
    """Namespaces with one address each: 10.213.0.1, 10.213.0.2, … in order of `names`."""

    names: Sequence[str]
    prefix: str = field(default_factory=lambda: f"mfs{os.getpid()}")

    def namespace(self, name: str) -> str:
        """The namespace of a machine."""
        return f"{self.prefix}{name}"

    def address(self, name: str) -> str:
        """The address of a machine."""
        return f"10.213.0.{1 + self.names.index(name)}"

    def words(self, name: str, *command: str) -> list[str]:
        """The command that runs `command` on a machine."""
        # Not `ip netns exec`: what is mounted in its mount namespace nobody else sees.
        return ["nsenter", f"--net=/run/netns/{self.namespace(name)}", *command]

    def make(self) -> None:
        """Make them. The bridge lies in a namespace of its own, the switch."""
        switch = self.namespace("switch")
        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        for name in self.names:
            inside = self.namespace(name)
            run("ip", "netns", "add", inside)
            run("ip", "-n", inside, "link", "set", "lo", "up")
            peer = ("peer", "name", f"to-{name}", "netns", switch)
            run("ip", "-n", inside, "link", "add", "net", "type", "veth", *peer)
            run("ip", "-n", inside, "address", "add", f"{self.address(name)}/24", "dev", "net")
            run("ip", "-n", inside, "link", "set", "net", "up")
            run("ip", "-n", switch, "link", "set", f"to-{name}", "master", "bridge", "up")

    def cut_off(self, name: str) -> None:
        """Nothing gets to a machine or from it, and nobody is told."""
        switch = self.namespace("switch")
        run("ip", "-n", switch, "link", "set", f"to-{name}", "nomaster")

    def join(self, name: str) -> None:
        """Undo `cut_off`."""
        switch = self.namespace("switch")
        run("ip", "-n", switch, "link", "set", f"to-{name}", "master", "bridge")

    def remove(self) -> None:
        """Remove everything; what runs in them has ended before."""
        for name in [*self.names, "switch"]:
            command = ["ip", "netns", "del", self.namespace(name)]
            subprocess.run(command, capture_output=True, check=False)


@contextlib.contextmanager
def machines(*names: str) -> Iterator[Machines]:
    """Namespaces that are gone on leaving."""
    made = Machines(names)
    try:
        made.make()
        yield made
    finally:
        made.remove()
