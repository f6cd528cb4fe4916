"""A seed is a run: the same in every repetition, in any order, whatever Python's hashes are."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.scenes import SCENES
from tests.sim.trial import Trial

SEEDS = 12
LASTS_S = 4.0
PROGRAM = """
import sys
from tests.sim.test_determinism import checksums
print(*checksums(order=int(sys.argv[1])))
"""


def checksums(*, order: int) -> list[str]:
    """Of SEEDS runs at random and of each scene; in one order or another."""
    trials = [Trial.drawn(seed, lasts_s=LASTS_S) for seed in range(SEEDS)]
    trials += [Trial.of_scene(scene) for scene in sorted(SCENES)]
    numbers = list(range(len(trials)))
    random.Random(order).shuffle(numbers)
    found = {number: trials[number].run().checksum for number in numbers}
    return [found[number] for number in range(len(trials))]


@pytest.fixture(scope="module")
def ours() -> list[str]:
    """What they are here."""
    return checksums(order=0)


@pytest.mark.parametrize("hash_seed", [1, 2, 3])
def test_a_seed_gives_the_same_run_in_any_order_and_under_any_hash_seed(ours: list[str], hash_seed: int) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(hash_seed)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    assert told.stdout.split() == ours


def test_each_seed_gives_another_run(ours: list[str]) -> None:
    assert len(set(ours)) == len(ours)
