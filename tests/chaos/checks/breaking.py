"""How a checker is broken on purpose, and which hand-written history tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

from tests.chaos.checks.all_cases import CASES

HERE = "tests.chaos.checks."
A_YEAR_NS = 10**16


class Broken(NamedTuple):
    """A checker in which `what`, a dotted name in this package, is replaced by something that is wrong."""

    name: str
    what: str
    wrong: object


def exposed_by(broken: Broken) -> str | None:
    """The first hand-written history that it misjudges."""
    with patch(HERE + broken.what, broken.wrong):
        return next((case.name for case in CASES if not case.is_judged_rightly()), None)


def nothing(*_: Any) -> Iterator[Any]:
    """Finds nothing."""
    return iter(())


def fixed(value: object) -> Callable[..., object]:
    """A function that always says the same."""
    return lambda *_, **__: value
