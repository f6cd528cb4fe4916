"""Broken variants of the product, each with the properties that must name it: what has failed none proves nothing."""

from __future__ import annotations

from tests.chaos.mutants.charges import CHARGES
from tests.chaos.mutants.layers import LAYERS
from tests.chaos.mutants.locking import LOCKING
from tests.chaos.mutants.mutant import Mutant
from tests.chaos.mutants.unseen import UNSEEN

__all__ = ["MUTANTS", "UNSEEN_MUTANTS", "Mutant"]

MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in (*LAYERS, *LOCKING, *CHARGES)}
UNSEEN_MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in UNSEEN}
