"""`python -m tests.bench.pressure.ledger_peer`: credit-ledger's guarded UPDATE from many threads on one account.

It is given the package by PYTHONPATH and the database by BENCH_DATABASE_URL, and prints one line of JSON.
No idempotency keys: those would only cost it a query a charge.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import time
from typing import Any

import sqlalchemy as sa

from tests.bench.rounds import percentiles_ms


def main() -> None:
    """One window."""
    chosen = _arguments()
    if chosen.one_core:
        _stay_on_one_core()
    metering = importlib.import_module("credit_ledger.metering")
    engine = sa.create_engine(os.environ["BENCH_DATABASE_URL"], pool_size=chosen.threads, max_overflow=0)
    run = _Run(metering, engine, chosen.account)
    began_s = run.go(threads=chosen.threads, seconds=chosen.warm_up + chosen.seconds) + chosen.warm_up
    within = [took_s for ended_s, took_s in run.charges if began_s <= ended_s < began_s + chosen.seconds]
    found = {
        "charged": len(within),
        "charged_in_all": len(run.charges),
        "refused": run.refused,
        "latency_ms": percentiles_ms(within),
    }
    json.dump(found, sys.stdout)


def _stay_on_one_core() -> None:
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class _Run:
    def __init__(self, metering: Any, engine: sa.Engine, account: str) -> None:
        self.charges: list[tuple[float, float]] = []
        self.refused = 0
        self._metering = metering
        self._engine = engine
        self._account = account

    def go(self, *, threads: int, seconds: float) -> float:
        """All threads charge for so long; when they began."""
        began_s = time.perf_counter()
        them = [threading.Thread(target=self._charge_until, args=(began_s + seconds,)) for _ in range(threads)]
        for each in them:
            each.start()
        for each in them:
            each.join()
        return began_s

    def _charge_until(self, end_s: float) -> None:
        while (sent_s := time.perf_counter()) < end_s:
            charge = self._metering.decrement(self._account, 1, engine=self._engine)
            ended_s = time.perf_counter()
            if charge.ok:
                self.charges.append((ended_s, ended_s - sent_s))
            else:
                self.refused += 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pressure.ledger_peer")
    parser.add_argument("--account", required=True, help="whose coupons: a UUID")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--one-core", action="store_true", help="so that threads do not fight over the interpreter")
    parser.add_argument("--warm-up", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
