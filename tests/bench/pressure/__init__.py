"""The charge under pressure, a file a scene: `python -m tests.bench.pressure`. ../README.md says what and why."""
