"""Prometheus' own tool, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def promtool(*words: str, folder: Path = ROOT, given: bytes = b"") -> str:
    """`promtool WORDS` succeeds; what it says. Without promtool the test is skipped, but never in CI."""
    if shutil.which("promtool") is None and os.environ.get("CI") != "true":
        pytest.skip("promtool is not installed (deploy/system-packages.sh installs it)")
    done = subprocess.run(["promtool", *words], cwd=folder, input=given, capture_output=True, timeout=60, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said
