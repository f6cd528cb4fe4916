"""Tables as CSV and JSON, written a piece at a time. What a spreadsheet would take for a formula is quoted."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from locks.clock import SYSTEM
from locks.inspection import Party
from locks.pieces import in_pieces
from service.dashboard.asked import Asked
from service.dashboard.formatting import iso
from service.dashboard.looking import Looking
from service.dashboard.views import charges, happened, heatmap, hot, locks

Row = tuple[Any, ...]
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of the same columns."""

    columns: Sequence[str]
    rows: Iterable[Row]


async def as_csv(table: Table) -> AsyncIterator[bytes]:
    """RFC 4180, UTF-8, a piece at a time."""
    yield _csv([table.columns])
    async for piece in in_pieces(table.rows, SYSTEM, on_request=True):
        yield _csv([_cell(value) for value in row] for row in piece)


async def as_json(table: Table) -> AsyncIterator[bytes]:
    """A list of objects, a piece at a time."""
    before = b"["
    async for piece in in_pieces(table.rows, SYSTEM, on_request=True):
        yield before + orjson.dumps([_object(table.columns, row) for row in piece])[1:-1]
        before = b","
    yield b"]" if before == b"," else b"[]"


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _object(columns: Sequence[str], row: Row) -> dict[str, Any]:
    return {
        column: iso(value) if isinstance(value, datetime) else value for column, value in zip(columns, row, strict=True)
    }


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


async def _locks(looking: Looking, asked: Asked) -> Table:
    sort, search = asked.choice("sort", locks.SORTS), asked.text("search")
    found = await looking.lists.all(sort=sort, search=search, caller=asked.caller)  # type: ignore[arg-type]
    columns = (
        "name", "instance", "host", "pid", "request_id", "owner", "kind", "held_s", "expires_in_s",
        "fencing_token", "waiters", "by_python_redis_lock",
    )  # fmt: skip
    rows = (
        (
            each.name,
            *_party(each.holder),
            each.held_s,
            each.expires_in_s,
            each.fencing_token,
            each.waiters,
            each.by_python_redis_lock,
        )
        for each in found
    )
    return Table(columns, rows)


async def _lock(looking: Looking, asked: Asked) -> Table:
    holds = await looking.contention.holds_of(locks.lock_name_of(asked))
    columns = ("began_at", "held_s", "instance", "request_id", "owner", "fencing_token", "end")
    told = ("held_s", "instance_id", "request_id", "owner", "fencing_token", "end")
    rows = [(iso(each.began_at), *(getattr(each, name) for name in told)) for each in holds]
    return Table(columns, rows)


async def _hot(looking: Looking, asked: Asked) -> Table:
    found = (await hot.hot(looking, asked))["hottest"]
    columns = ("name", "waits", "total_wait_s", "longest_wait_s", "waiting")
    return Table(columns, [tuple(getattr(each, column) for column in columns) for each in found])


async def _heatmap(looking: Looking, asked: Asked) -> Table:
    grid = (await heatmap.heatmap(looking, asked))["grid"]
    rows = [(each.minute, heatmap.bounds_words(each.bucket), each.bucket, each.count) for each in grid.cells]
    return Table(("minute", "bounds", "bucket", "count"), rows)


async def _incidents(looking: Looking, asked: Asked) -> Table:
    found = (await happened.incidents(looking, asked))["incidents"]
    columns = ("at", "kind", "name", "instance", "detail")
    return Table(columns, [(iso(each.at), each.key, each.name, each.instance_id, each.words) for each in found])


async def _instances(looking: Looking, asked: Asked) -> Table:
    rows = (await happened.instances(looking, asked))["rows"]
    told = ("instance_id", "host", "pid", "version", "draining", "held", "waiting", "oldest_wait_s", "oldest_held_s")
    ours = ("age_s", "up_s", "acquired_per_s", "contended_per_s", "entered_per_s", "wait_p99_s", "lost")
    return Table(
        (*told, *ours),
        [(*(getattr(row["picture"], name) for name in told), *(row[name] for name in ours)) for row in rows],
    )


async def _charges(looking: Looking, asked: Asked) -> Table:
    page = (await charges.charges(looking, asked))["charges"]
    columns = (
        "id", "appointment_id", "payer_id", "other_user_id", "coupon_id", "prop_id", "count", "fencing_token",
        "charged_at",
    )  # fmt: skip
    return Table(columns, [tuple(getattr(each, column) for column in columns) for each in page])


async def _appointment(looking: Looking, asked: Asked) -> Table:
    story = (await charges.appointment(looking, asked))["story"]
    return Table(
        ("at", "what", "words", "instance"),
        [(iso(each.at), each.what, each.words, each.instance_id) for each in story],
    )


async def _audit_log(looking: Looking, asked: Asked) -> Table:
    entries = (await happened.audit_log(looking, asked))["entries"]
    columns = ("id", "at", "actor", "action", "lock_name", "reason", "holder", "fencing_token")
    return Table(columns, [tuple(getattr(each, column) for column in columns) for each in entries])


def _party(party: Party | None) -> Row:
    if party is None:
        return (None,) * 6
    return (party.instance_id, party.host, party.pid, party.request_id, party.owner, party.kind.value)


TABLES: Mapping[str, Callable[[Looking, Asked], Awaitable[Table]]] = {
    "locks": _locks,
    "lock": _lock,
    "hot": _hot,
    "heatmap": _heatmap,
    "incidents": _incidents,
    "instances": _instances,
    "charges": _charges,
    "appointment": _appointment,
    "audit_log": _audit_log,
}
FORMATS: Mapping[str, tuple[str, Callable[[Table], AsyncIterator[bytes]]]] = {
    "csv": ("text/csv; charset=utf-8", as_csv),
    "json": ("application/json", as_json),
}
