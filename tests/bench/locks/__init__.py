"""Locks a second against the peers: `python -m tests.bench.locks`. ../README.md says what is compared and why."""
