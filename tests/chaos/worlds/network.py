"""A bridge with network namespaces on it, one a place, between which packets can be dropped, either way alone.

We stand on the bridge too and reach every place over its own cable; what runs inside is also reached from inside,
past all faults, as an operator on that very machine would.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.worlds.machine import is_orphan, own_name, run, why_not_root

BRIDGE, PLACE, CABLE = "cwb", "cwn", "cwv"  # what names of bridges, namespaces and our cables' ends begin with
NETS = [f"198.{second}.{third}" for second in (18, 19) for third in range(256)]  # RFC 2544: for tests alone
OUR_NUMBER = 254
CLONE_NEWNET = 0x40000000
TABLE = "inet chaos"


def why_no_network() -> str | None:
    """Why there can be no namespaces here; None when there can."""
    return why_not_root("ip", "nft")


class Place:
    """One namespace with one address, `host`; `name` is what `ip netns` knows it by."""

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread stands inside: sockets that are made now belong here for good. Await nothing within."""
        with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{self.name}", "rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def drop_arriving(self, peers: Sequence[str]) -> None:
        """Nothing that these addresses send arrives any more, until heal(); what we send still does."""
        self._drop("input", "saddr", peers)

    def drop_leaving(self, peers: Sequence[str]) -> None:
        """Nothing that is sent to these addresses leaves any more, until heal()."""
        self._drop("output", "daddr", peers)

    def heal(self) -> None:
        """Everything gets through again; harmless twice."""
        with contextlib.suppress(RuntimeError):  # there is no such table
            self._nft(f"delete table {TABLE}")

    def _drop(self, hook: str, side: str, peers: Sequence[str]) -> None:
        self._nft(
            f"add table {TABLE}\n"
            f"add chain {TABLE} {hook} {{ type filter hook {hook} priority 0; }}\n"
            f"add rule {TABLE} {hook} ip {side} {{ {', '.join(peers)} }} drop\n"
        )

    def _nft(self, commands: str) -> None:
        run("ip", "netns", "exec", self.name, "nft", "-f", "-", text=commands)


class Network:
    """Use it with `with`; `ours` is our own address on it."""

    def __init__(self, *, place_count: int) -> None:
        self._place_count = place_count
        self._end = ExitStack()
        self.ours = ""
        self.places: Sequence[Place] = ()

    def __enter__(self) -> Self:
        _remove_orphans()
        try:
            with self._end:
                self._build()
                self._end = self._end.pop_all()
        except BaseException:
            self.places = ()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()

    def _build(self) -> None:
        bridge, net = own_name(BRIDGE), _unused_net()
        self.ours = f"{net}.{OUR_NUMBER}"
        run("ip", "link", "add", bridge, "type", "bridge")
        self._end.callback(run, "ip", "link", "delete", bridge)
        run("ip", "address", "add", f"{self.ours}/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        self.places = [self._add_place(bridge, f"{net}.{1 + number}") for number in range(self._place_count)]

    def _add_place(self, bridge: str, host: str) -> Place:
        name, cable = own_name(PLACE), own_name(CABLE)
        run("ip", "netns", "add", name)
        self._end.callback(run, "ip", "netns", "delete", name)  # its cable goes with it
        run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", cable, "master", bridge, "up")
        inside = ("ip", "-n", name)
        run(*inside, "address", "add", f"{host}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")
        return Place(name, host)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _unused_net() -> str:
    taken = run("ip", "-o", "-4", "address")
    return random.choice([net for net in NETS if f" {net}." not in taken])


def _remove_orphans() -> None:
    """Removes what runs left that were killed."""
    for path in Path("/run/netns").glob(f"{PLACE}*"):
        if is_orphan(path.name, PLACE):
            with contextlib.suppress(RuntimeError):
                run("ip", "netns", "delete", path.name)
    for name in os.listdir("/sys/class/net"):
        if is_orphan(name, BRIDGE):
            with contextlib.suppress(RuntimeError):
                run("ip", "link", "delete", name)
