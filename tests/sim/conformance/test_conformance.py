"""The model is true: random commands give the same on real servers; and a model that is not true is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.conformance.plants import PLANTS, Plant
from tests.sim.conformance.real import RealSide
from tests.sim.conformance.running import compare, real_server, shortened
from tests.sim.redis import DIALECTS, VALKEY_9

COMMANDS = 4_000
PLANTED_COMMANDS = 20_000  # at most: the first difference ends it


@pytest.mark.parametrize("kind", DIALECTS)
def test_the_model_answers_as_the_server_does(kind: str, tmp_path: Path) -> None:
    with real_server(kind, tmp_path) as real:
        report = compare(real, DIALECTS[kind], seed=1, command_count=COMMANDS)
        if report.difference is not None:
            pytest.fail(f"{kind} {report.version}: {shortened(real, DIALECTS[kind], report.difference)}")
    assert report.message_count > 100


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSide]:
    """One server for all wrong models."""
    with real_server("valkey", tmp_path_factory.mktemp("valkey")) as real:
        yield real


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())
def test_a_wrong_model_is_found(plant: Plant, valkey: RealSide, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    report = compare(valkey, VALKEY_9, seed=1, command_count=PLANTED_COMMANDS)
    assert report.difference is not None
