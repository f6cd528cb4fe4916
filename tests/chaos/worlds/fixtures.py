"""Worlds for tests: opened on a copy of one migrated Postgres."""

from __future__ import annotations

import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.chaos.ground import Ground
from tests.chaos.worlds import WORLDS
from tests.chaos.worlds.rehearsal import OpenWorld, Rehearsal, rehearsing
from tests.servers.kinds import skip_or_fail


@pytest.fixture(scope="session")
def migrated_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a Postgres that was migrated and stopped."""
    with Ground(tmp_path_factory.mktemp("migrated")) as ground:
        ground.postgres.stop()
        return ground.postgres.folder


@pytest.fixture
def open_world(migrated_data: Path, tmp_path: Path) -> OpenWorld:
    """`async with open_world("power", fsync="off") as rehearsal`; skips where the world cannot be had."""

    def opened(name: str, **postgres_settings: str) -> AbstractAsyncContextManager[Rehearsal]:
        if (why := WORLDS[name].needs()) is not None:
            skip_or_fail(f"the world {name} cannot be had here: {why}")
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        subprocess.run(["cp", "-a", migrated_data, folder / migrated_data.name], check=True)
        return rehearsing(WORLDS[name], folder, **postgres_settings)

    return opened
