"""Charges a second, end to end, against the peers: `python -m tests.bench`. README.md says what is compared and why."""
