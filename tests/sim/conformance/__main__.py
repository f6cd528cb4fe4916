"""Holds the model of the simulation's server against a real one, whose clocks stand still: random commands to both.

Exit status 0: no difference; 1: a difference, told in few steps; 2: the arguments mean nothing, or there is no such
server here; 128 + n: ended by signal n, as 130 by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pytest

from tests.sim.arguments import count
from tests.sim.conformance.running import compare, real_server, shortened
from tests.sim.ending import on_signals, status_of
from tests.sim.redis import DIALECTS
from tests.sim.trial import PYTHON_COMMAND


def main(words: list[str]) -> int:
    """Prints what was compared, and the first difference."""
    parser = argparse.ArgumentParser(
        prog=f"{PYTHON_COMMAND} -m tests.sim.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = sorted(DIALECTS)
    parser.add_argument(
        "--kind", choices=kinds, metavar="KIND", default="valkey", help=f"of server: {', '.join(kinds)} (%(default)s)"
    )
    parser.add_argument(
        "--commands", type=count, default=100_000, metavar="COUNT", help="at least so many (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the commands (%(default)s)")
    arguments = parser.parse_args(words)
    try:
        return _compared(arguments)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:  # no such server here
        parser.error(f"--kind: {error}")


def _compared(arguments: argparse.Namespace) -> int:
    dialect = DIALECTS[arguments.kind]
    with tempfile.TemporaryDirectory() as folder, real_server(arguments.kind, Path(folder)) as real:
        report = compare(real, dialect, seed=arguments.seed, command_count=arguments.commands)
        print(
            f"{arguments.kind} {report.version}: {report.command_count} commands, {report.message_count} messages, "
            f"{0 if report.difference is None else 1} differences, {report.took_s:.0f} s"
        )
        if report.difference is None:
            return 0
        print(shortened(real, dialect, report.difference))
        return 1


if __name__ == "__main__":
    on_signals(lambda number: sys.exit(status_of(number)))
    sys.exit(main(sys.argv[1:]))
