"""`chargeonce audit` over everything that was charged in a database."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from .ground import Ground
from .program import ROOT

AUDIT_LIMIT_S = 300


def audit(ground: Ground) -> dict[str, Any]:
    """Its exit status, and the end of what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "audit", "--json"],
        cwd=ROOT,
        env=ground.environment(),
        capture_output=True,
        text=True,
        timeout=AUDIT_LIMIT_S,
        check=False,
        start_new_session=True,
    )
    return {"exit": done.returncode, "output": (done.stdout + done.stderr).strip()[-2000:]}
