"""`python -m service.metrics_process FOLDER`: prints every series of the folder, as totals over all of its files.

A process of its own, because gathering takes longer than an event loop may stand still, and a thread of the worker
would hold the interpreter for as long. It imports nothing else of ours, so that it is there in 60 ms.
"""

from __future__ import annotations

import os
import sys

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

POLITENESS = 5  # whoever serves goes first


def _main(folder: str) -> None:
    os.nice(POLITENESS)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    sys.stdout.buffer.write(generate_latest(registry))


if __name__ == "__main__":
    _main(*sys.argv[1:])
