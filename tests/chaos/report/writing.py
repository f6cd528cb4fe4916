"""Writes the report: numbers from the events, verdicts from the checkers, everything inlined into one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from service.dashboard import formatting
from tests.chaos.checks.evidence import Event, Evidence
from tests.chaos.checks.takeover import GRACE_MS
from tests.chaos.checks.verdict import Verdict
from tests.chaos.history import in_order
from tests.chaos.report.charts import latency_chart, rate_chart
from tests.chaos.report.facts import errors_of, facts_of, overall, schedule_of
from tests.chaos.report.kinds import kinds_of
from tests.chaos.report.matrices import mutant_matrix, point_matrix
from tests.chaos.report.moments import origin_of
from tests.chaos.report.overlaps import Explained, explained_overlaps
from tests.chaos.report.properties import properties_of
from tests.chaos.report.series import series_of, takeover_histogram
from tests.chaos.report.timeline import Timeline

FOLDER = Path(__file__).parent
MOST_OVERLAPS_LISTED = 200

Table = Sequence[Mapping[str, Any]]


def write_report(
    path: Path,
    events: Sequence[Event],
    verdicts: Sequence[Verdict],
    *,
    command: str,
    interleavings: Mapping[str, Any] | Table | None = None,
    mutants: Table | None = None,
    corpus: Mapping[str, Any] | Table | None = None,
    worlds: Table | None = None,
    power: Mapping[str, Any] | Table | None = None,
) -> None:
    """Writes one HTML file without any reference outside itself.

    A mutant: mutant, does?, caught_by, found_in_s, tried, found, matrix? (kind of fault -> how often it showed it).
    A world: world, faults, operations, verdict (True, False, None or a word), skipped? (why it could not run here).
    Of the others every row is shown with all its keys.
    """
    others = {"Interleavings": interleavings, "Power of detection": power, "Corpus of seeds": corpus}
    page = {
        **_page(Evidence(in_order(events)), verdicts),
        "command": command,
        "mutants": mutants or (),
        "mutant_matrix": mutant_matrix(mutants or ()),
        "worlds": worlds or (),
        "tables": [(title, _as_table(rows)) for title, rows in others.items() if rows],
    }
    path.write_text(_environment().get_template("report.html").render(page))


def _page(evidence: Evidence, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """All that comes from the history and its verdicts, by the names that the template knows."""
    overlaps = explained_overlaps(evidence)
    errors = [(at, f"{name.replace('_', ' ')}: {example.text}") for at, name, example in errors_of(verdicts)]
    series = series_of(evidence)
    return {
        "css": Markup((FOLDER / "report.css").read_text()),
        "script": Markup((FOLDER / "timeline.js").read_text()),
        "timeline": embedded(Timeline(evidence, overlaps).as_json(errors)),
        "run": evidence.run,
        "overall": overall(verdicts),
        "facts": facts_of(evidence, verdicts),
        "properties": properties_of(verdicts, origin_of(evidence)),
        "errors": [((at - origin_of(evidence)) / 1e9, text) for at, text in errors],
        "overlaps": [_listed(evidence, each) for each in overlaps[:MOST_OVERLAPS_LISTED]],
        "overlap_count": len(overlaps),
        "unexplained_count": sum(not each.explained for each in overlaps),
        "hold_count": len(evidence.holds),
        "lock_count": len(evidence.holds_by_name),
        "series": series,
        "charts": [latency_chart(evidence, series), rate_chart(evidence, series)],
        "takeovers": takeover_histogram(evidence),
        "takeover_limit_ms": GRACE_MS,
        "matrix": point_matrix(evidence),
        "kinds": kinds_of(evidence),
        "schedule_uri": _data_uri(schedule_of(evidence)),
    }


def embedded(value: object) -> Markup:
    """JSON that may stand inside <script>: no text in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _listed(evidence: Evidence, each: Explained) -> dict[str, Any]:
    overlap = each.overlap
    return {
        "name": overlap.earlier.name,
        "at_s": (overlap.began - origin_of(evidence)) / 1e9,
        "lasted_s": (overlap.ended - overlap.began) / 1e9,
        "holders": f"{overlap.earlier.i} and {overlap.later.i}",
        "cause": each.cause,
        "explained": each.explained,
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for read in (formatting.duration, formatting.number, formatting.rate, formatting.plural):
        environment.filters[read.__name__] = read
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    return environment


def _as_table(rows: Mapping[str, Any] | Table | None) -> Table:
    return [rows] if isinstance(rows, Mapping) else list(rows or ())


def _data_uri(value: object) -> str:
    return "data:application/json;base64," + base64.b64encode(json.dumps(value).encode()).decode()
