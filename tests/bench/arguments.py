"""Kinds of arguments that the benches share; what does not fit is told by argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def positive(text: str) -> int:
    """A count of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def among(known: Collection[str]) -> Callable[[str], list[str]]:
    """Names separated by commas, each of them known."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return found

    return names
