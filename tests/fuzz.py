"""`python -m tests.fuzz [--minutes N] [--seed N]`: schemathesis reads /openapi.json and attacks a real `serve` by it.

Each sort of caller has an equal share of the time: nobody, a user, one of each scope, one of all. Examples, coverage,
fuzzing, stateful. Exit 0: no 500, and no status, header, media type or body that is not written there; 1: some, as
printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.contract.api import Api
from tests.harness import Service, bearer, service

CALLERS = (None, "", "service", "locks", "monitor", "operator", "service locks monitor operator")
USER = 1
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "allow_header_conformance",
    "ignored_auth",
    "use_after_free",
)
ENDLESS = "/v1/contention/stream"
LONGEST_WAIT_S = 70  # a lease may be waited for for a minute


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="schemathesis against a real serve")
    parser.add_argument("--minutes", type=float, default=10.0, help="in all (10)")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    worst = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, service(Path(folder)) as running:
        subprocess.run([sys.executable, "-m", "service", "seed"], env=dict(running.environment), check=True)
        for scope in CALLERS:
            share_s = round(asked.minutes * 60 / len(CALLERS))
            worst = max(worst, _attack(running, scope, seconds=share_s, seed=asked.seed))
        counts = _counts(running)
        bugs = running.logged().count('"level":"error"')
    print(f"{counts.total():,} requests: " + ", ".join(f"{counts[status]:,} × {status}" for status in sorted(counts)))
    print(f"{bugs} errors in the log")
    return 1 if worst or bugs or counts["500"] else 0


def _attack(running: Service, scope: str | None, *, seconds: int, seed: int) -> int:
    who = "nobody" if scope is None else f"a caller with the scopes {scope!r}"
    print(f"{who}, for {seconds} s", flush=True)
    headers = [] if scope is None else [f"Authorization: {bearer(USER, scope)['Authorization']}"]
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--exclude-path", ENDLESS, "--max-time", str(seconds)]
    command += ["--seed", str(seed), "--request-timeout", str(LONGEST_WAIT_S), "--no-color"]
    command += ["--suppress-health-check", "all", "--continue-on-failure", "--max-failures", "20"]
    for header in headers:
        command += ["--header", header]
    return subprocess.run(command, cwd=running.environment["CHARGEONCE_DATA_DIR"], check=False).returncode


def _counts(running: Service) -> Counter[str]:
    """How many requests were answered with each status."""
    counts: Counter[str] = Counter()
    for (name, labels), value in Api(running.url).metrics().items():
        if name == "chargeonce_http_server_request_duration_seconds_count":
            counts[dict(labels)["http_response_status_code"]] += int(value)
    return +counts


if __name__ == "__main__":
    sys.exit(main())
