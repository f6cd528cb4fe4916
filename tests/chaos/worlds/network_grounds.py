"""Grounds whose locks stand at places of their own in a network that can be parted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.worlds.network import Network, Place
from tests.chaos.worlds.placed_servers import PlacedSentinelGroup, PlacedValkey
from tests.chaos.worlds.special_ground import SpecialGround
from tests.servers.kinds import server_binary


class NamespaceGround(SpecialGround):
    """`valkey` stands at `place`, behind a cable of its own; Postgres stands here."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.network = Network(place_count=1)

    @property
    def place(self) -> Place:
        """Where Valkey is."""
        return self.network.places[0]

    def complete(self, stack: ExitStack) -> None:
        """A Valkey at its place instead of the one here."""
        stack.enter_context(self.network)
        self.valkey.close()
        self.valkey = PlacedValkey(server_binary("valkey"), self.folder, self.place)
        stack.callback(self.valkey.close)
        self.valkey.start()


class SplitGround(SpecialGround):
    """`valkey` does not run; the locks are on `group`, one of whose places can be parted from the other two.

    We reach all three, so that a client may stand on either side.
    """

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.network = Network(place_count=3)
        self.group: PlacedSentinelGroup

    @property
    def redis_url(self) -> str:
        """The three Sentinels."""
        return self.group.url

    def part(self, alone: Place) -> None:
        """Nothing passes between this place and the other two, either way, until alone.heal(); to us all does."""
        others = [place.host for place in self.network.places if place is not alone]
        alone.drop_arriving(others)
        alone.drop_leaving(others)

    def complete(self, stack: ExitStack) -> None:
        """The group instead of the one Valkey."""
        self.valkey.kill()
        stack.enter_context(self.network)
        self.group = PlacedSentinelGroup(server_binary("valkey"), self.folder, self.network.places)
        stack.enter_context(self.group)
