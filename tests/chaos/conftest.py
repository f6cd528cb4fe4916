"""The servers that tests of the ground and of the faults share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.chaos.ground import Ground
from tests.chaos.small_world import SmallWorld, small_world


@pytest.fixture(scope="session")
def chaos_ground() -> Iterator[Ground]:
    """A Postgres and a Valkey that may be killed, as long as they are up again afterwards."""
    with Ground() as ground:
        yield ground


@pytest.fixture
async def world(chaos_ground: Ground) -> AsyncIterator[SmallWorld]:
    """Two small instances on it; everything works again when the test is over."""
    async with small_world(chaos_ground) as world:
        yield world
