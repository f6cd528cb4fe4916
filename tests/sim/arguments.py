"""Values on a command line: what means nothing is refused, by the name of its option."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """How many; at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def event(text: str) -> int:
    """The number of an event; the first one is 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of an event")
    return int(text)


def seconds(text: str) -> float:
    """How long; more than nothing, and not for ever."""
    try:
        given_s = float(text)
    except ValueError:
        given_s = math.nan
    if not 0 < given_s < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return given_s
