"""Whom a fault strikes."""

from __future__ import annotations

from tests.chaos.checks.spans import Fault

EVERYBODY = ""


def instance_of(fault: Fault) -> str:
    """The instance, as text, that a fault strikes; EVERYBODY when it strikes a server that all share."""
    kind, _, rest = fault.scope.partition(":")
    return rest.partition(":")[0] if kind in ("instance", "link", "clock") else EVERYBODY
