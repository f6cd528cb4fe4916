"""Grounds whose locks are not on one Valkey: a Sentinel group, a Cluster. Instances connect to them directly."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.worlds.special_ground import SpecialGround
from tests.servers.cluster import Cluster
from tests.servers.kinds import server_binary
from tests.servers.sentinel import SentinelGroup


class SentinelGround(SpecialGround):
    """`valkey` does not run; the locks are on `group`, a master with one replica."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.group = SentinelGroup(server_binary("valkey"), folder)

    @property
    def redis_url(self) -> str:
        """The three Sentinels."""
        return self.group.url

    def complete(self, stack: ExitStack) -> None:
        """The group instead of the one Valkey."""
        self.valkey.kill()
        stack.enter_context(self.group)


class ClusterGround(SpecialGround):
    """`valkey` does not run; the locks are on `cluster`, three masters with a replica each."""

    def __init__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> None:
        super().__init__(folder, postgres_settings=postgres_settings)
        self.cluster = Cluster(server_binary("valkey"), folder, replica_count=1)

    @property
    def redis_url(self) -> str:
        """Two of its nodes, which tell of the others."""
        return self.cluster.url

    def complete(self, stack: ExitStack) -> None:
        """The Cluster instead of the one Valkey."""
        self.valkey.kill()
        stack.enter_context(self.cluster)
