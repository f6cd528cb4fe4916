"""Does something in a process of its own, in which the product is broken."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from tests.sim.mutants import SIM_MUTANTS

P = ParamSpec("P")
R = TypeVar("R")


def in_mutant(mutant: str, do: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """What comes of it there."""
    with get_context("spawn").Pool(1, initializer=_break, initargs=(mutant,)) as pool:
        return pool.apply(do, arguments, options)


def _break(mutant: str) -> None:
    SIM_MUTANTS[mutant].patch()
