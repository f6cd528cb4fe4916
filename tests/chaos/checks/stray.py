"""Nothing comes out of the locks that nobody sent: no cancellation, no error of a callback, a task or a script."""

from __future__ import annotations

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.verdict import Example, Verdict, found

KINDS = (
    ("stray_cancel", "a cancellation that nobody sent came out"),
    ("unhandled", "an error that nobody handles"),
    ("failed", "a script of ours failed"),
)


def no_stray_cancellation(evidence: Evidence) -> Verdict:
    """No caller was cancelled whom nobody cancelled, and no error reached nobody but the event loop or the server."""
    violations = [
        Example(f"{event.get('i')}: {what}: {event.get('where') or event.get('error') or ''}".rstrip(": "), event["t"])
        for kind, what in KINDS
        for event in evidence.by_kind[kind]
    ]
    checked = len(evidence.by_kind["point"])
    missing = None if evidence.slack.is_exact else "the history does not tell of cancellations"
    return found("no_stray_cancellation", violations, checked=checked, missing=missing)
