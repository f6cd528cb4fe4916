"""Was there enough of everything that a run without a violation means something?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.verdict import Counts, Example, Thresholds, Verdict


def not_vacuous(evidence: Evidence, verdicts: Iterable[Verdict], thresholds: Thresholds) -> Verdict:
    """Each threshold is reached and each wanted cell hit; else the verdict is unknown, and names what is missing."""
    seen = _seen(evidence, {verdict.property: verdict.counts for verdict in verdicts})
    hit = {(fault.point, fault.kind) for fault in evidence.faults if fault.is_targeted}
    names = [field.name for field in fields(thresholds) if field.name != "cells"]
    lacking = [
        Example(f"{name}: {seen[name]:g}, wanted {getattr(thresholds, name):g}")
        for name in names
        if seen[name] < getattr(thresholds, name)
    ]
    missed = sorted(thresholds.cells - hit)
    lacking += [Example(f"the cell {point} × {kind} was not hit") for point, kind in missed]
    asked = sum(getattr(thresholds, name) > 0 for name in names) + len(thresholds.cells)
    counts = {**seen, "cells": len(hit), "cells_missed": len(missed)}
    return Verdict("not_vacuous", None if lacking else True, asked, counts, lacking)


def _seen(evidence: Evidence, counts: dict[str, Counts]) -> Counts:
    """What there was of each thing that has a threshold."""
    operations = evidence.operations
    asked_s = (operations[-1].invoked - operations[0].invoked) / 1e9 if operations else 0.0
    faults = evidence.faults
    return {
        "operations": len(operations),
        "operations_per_s": len(operations) / asked_s if asked_s > 0 else 0.0,
        "charges": len(evidence.charges or ()),
        "unknowns": counts["unknown_is_settled"].get("unknowns", 0),
        "unknowns_committed": counts["unknown_is_settled"].get("committed", 0),
        "snapshots": len(evidence.by_kind["snapshot"]),
        "faults": len(faults),
        "targeted_faults": sum(fault.is_targeted for fault in faults),
        "fault_kinds": len({fault.kind for fault in faults}),
        # Each counts once, however many locks it held: independent trials.
        "holders_killed_inside": sum(bool(death.get("held")) for death in evidence.by_kind["died"]),
        "takeovers": counts["takeover_in_time"].get("takeovers", 0),
        "overlaps_explained": counts["overlaps_are_explained"].get("explained", 0),
        "stale_writes": counts["stale_writes_refused"].get("stale", 0),
    }
