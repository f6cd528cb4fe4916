"""What a world is: servers of a special sort, and the faults that can happen only there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.chaos.faults.kinds import FaultKind
from tests.chaos.worlds.special_ground import SpecialGround

OF_ONE_REDIS = ("redis", "link:<i>:redis")


class Opens(Protocol):
    """Makes the ground, to be used with `with`."""

    def __call__(self, folder: Path, *, postgres_settings: Mapping[str, str]) -> SpecialGround:
        """All that it owns is in the folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`needs` tells why it cannot be had here, None when it can.

    has_one_redis: instances reach one Valkey by proxies; else `redis_url` is for them as it stands, and the ground has
    no `valkey`.
    """

    name: str
    does: str
    open: Opens
    kinds: tuple[FaultKind, ...]
    needs: Callable[[], str | None]
    has_one_redis: bool = True

    def allows(self, kind: FaultKind) -> bool:
        """Whether this fault, its own or an ordinary one, can happen here."""
        return kind in self.kinds or self.has_one_redis or kind.scope not in OF_ONE_REDIS


def why_nothing() -> None:
    """For a world that needs nothing."""
