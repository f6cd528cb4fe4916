"""Every exception of locks crosses a process border; the package says its version."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import locks
from locks import LocksError, LossReason
from locks.errors import Dismissed, HeldByCaller, LeaseLost, LockBusy
from locks.lending import LeaseOver
from tests.harness import ROOT

MADE: dict[str, LocksError] = {
    "LockBusy": LockBusy("a", waited_s=0.5, expires_in_s=None),
    "Dismissed": Dismissed("a", waited_s=0.5),
    "LeaseLost": LeaseLost("a", reason=LossReason.TAKEN, fencing_token=7),
    "LeaseOver": LeaseOver("a", reason="expired"),
    "HeldByCaller": HeldByCaller("a"),
}


def kinds(kind: type[LocksError] = LocksError) -> Iterator[type[LocksError]]:
    for module in pkgutil.iter_modules(locks.__path__):
        importlib.import_module(f"locks.{module.name}")
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def made(kind: type[LocksError]) -> LocksError:
    """One of this kind: those with words of their own stand above."""
    return MADE[kind.__name__] if kind.__name__ in MADE else kind("why")


def described(error: BaseException) -> tuple[object, ...]:
    return type(error), str(error), error.args, error.__dict__


@pytest.mark.parametrize("kind", dict.fromkeys(kinds()), ids=lambda kind: kind.__name__)
def test_an_exception_survives_pickle_and_copy(kind: type[LocksError]) -> None:
    error = made(kind)
    error.add_note("while charging")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert described(again) == described(error)


def refuse() -> None:
    raise LockBusy("a", waited_s=0.5, expires_in_s=2.0)


def test_a_process_pool_hands_out_what_was_raised_in_it_and_lives_on() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for _ in range(2):
            with pytest.raises(LockBusy) as busy:
                pool.submit(refuse).result(60)
            assert (busy.value.name, busy.value.waited_s, busy.value.expires_in_s) == ("a", 0.5, 2.0)


def test_the_version_is_that_of_the_distribution() -> None:
    assert locks.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
