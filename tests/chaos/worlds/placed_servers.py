"""Servers that stand at places of their own in a network: one, or a Sentinel group spread over three."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.chaos.worlds.network import Place
from tests.servers.redis_server import RedisServer
from tests.servers.sentinel import NAME, QUORUM, SentinelGroup
from tests.servers.wire import Wire


class PlacedServer(RedisServer):
    """A server in a namespace: its clients meet it at its place's address, ask() speaks to it from inside."""

    def __init__(
        self, binary: Path, folder: Path, place: Place, *, settings: Sequence[str] = (), arguments: Sequence[str] = ()
    ) -> None:
        self.place = place
        super().__init__(_inside(place, binary, folder), folder, settings=settings, arguments=arguments)

    @property
    def url(self) -> str:
        """Its address for clients outside."""
        return f"redis://{self.place.host}:{self.port}/0"

    def connect(self, *, answer_wait_s: float = 5.0) -> Wire:
        """A connection from inside, which no fault of the network touches."""
        with self.place.entered():
            return super().connect(answer_wait_s=answer_wait_s)

    def _config_lines(self) -> list[str]:
        everywhere = {"bind 127.0.0.1": "bind * -::*"}
        return [*(everywhere.get(line, line) for line in super()._config_lines()), "protected-mode no"]


class PlacedSentinelGroup(SentinelGroup):
    """A master at the first place, a replica at the second, and a Sentinel at each of three."""

    def __init__(self, binary: Path, folder: Path, places: Sequence[Place], *, down_after_s: float = 0.8) -> None:
        self.name = NAME
        self.password = self.sentinel_password = None
        first = PlacedServer(binary, folder, places[0])
        following = [f"replicaof {places[0].host} {first.port}"]
        self.parted: Place | None = None  # whose Sentinel is not to be asked
        self._placed = [first, PlacedServer(binary, folder, places[1], settings=following)]
        self.data_nodes = [*self._placed]
        watching = [
            f"sentinel monitor {NAME} {places[0].host} {first.port} {QUORUM}",
            f"sentinel down-after-milliseconds {NAME} {round(down_after_s * 1000)}",
            f"sentinel failover-timeout {NAME} 3000",
        ]
        self._watchers = [
            PlacedServer(binary, folder, place, settings=watching, arguments=["--sentinel"]) for place in places
        ]
        self.sentinels = [*self._watchers]

    @property
    def url(self) -> str:
        """redis+sentinel:// with all three Sentinels."""
        return self.url_by(self._watchers)

    def url_by(self, watchers: Sequence[PlacedServer]) -> str:
        """The address of a client that asks these Sentinels alone."""
        hosts = ",".join(f"{each.place.host}:{each.port}" for each in watchers)
        return f"redis+sentinel://{hosts}/{self.name}"

    def url_at(self, place: Place) -> str:
        """The address of a client that stands on this place's side: it asks the Sentinel there alone."""
        return self.url_by([each for each in self._watchers if each.place is place])

    def url_beside(self, place: Place) -> str:
        """The address of a client on the other side: it asks the Sentinels of all other places."""
        return self.url_by([each for each in self._watchers if each.place is not place])

    def place_of_master(self) -> Place:
        """Where the master stands, as told by a Sentinel of the greater part."""
        port = self.master_port()
        return next(each.place for each in self._placed if each.port == port)

    def _live_sentinels(self) -> Sequence[RedisServer]:
        heard = [each for each in self._watchers if each.place is not self.parted]
        return [each for each in heard if each.process is not None]


def _inside(place: Place, binary: Path, folder: Path) -> Path:
    """A program that becomes this one at that place, its pid unchanged."""
    inside = folder / f"{place.name}-{binary.name}"
    inside.write_text(f'#!/bin/sh\nexec ip netns exec {place.name} {binary} "$@"\n')
    inside.chmod(0o700)
    return inside
