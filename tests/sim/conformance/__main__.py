"""python -m tests.sim.conformance --kind valkey --commands 100000 --seed 1: exits 1 on a difference."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.sim.conformance.running import compare, real_server, shortened
from tests.sim.redis import DIALECTS


def main() -> int:
    """Prints what was compared, and the first difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.conformance", description=__doc__)
    parser.add_argument("--kind", choices=sorted(DIALECTS), default="valkey")
    parser.add_argument("--commands", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
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
    sys.exit(main())
