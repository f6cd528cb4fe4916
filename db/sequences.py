"""The sequences that give ids, and which of them would give ids that their tables have already."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from db.tables import metadata


class SequenceBehind(NamedTuple):
    """A sequence that gives the next `behind` ids in vain, and the statement that mends it."""

    table_name: str
    sequence: str
    behind: int
    run: str


def sequences_behind(connection: sa.Connection) -> list[SequenceBehind]:
    """Those that are behind their tables, as after a restore or on a logical replica that was promoted."""
    return [SequenceBehind(*row) for row in connection.execute(sa.text(BEHIND))]


def sequence_of_key(constraint: str | None) -> str | None:
    """The sequence that gives the values of a primary key; None for any other constraint."""
    return _SEQUENCES.get(constraint)


def _behind(table: str) -> str:
    newest = f"(SELECT max(id) FROM {table})"  # noqa: S608 (our own names)
    return f"""
        SELECT '{table}' AS table_name, '{table}_id_seq' AS sequence, {newest} - next_id + 1 AS behind,
               'SELECT setval(''{table}_id_seq'', {newest})' AS run
        FROM (SELECT last_value + is_called::int AS next_id FROM {table}_id_seq) AS next
        WHERE next_id <= {newest}
        """  # noqa: S608


_TABLES = [table.name for table in metadata.tables.values() if (id_ := table.c.get("id")) is not None and id_.identity]
_SEQUENCES: dict[str | None, str] = {f"{table}_pkey": f"{table}_id_seq" for table in _TABLES}

# A sequence is read as it is now, a table as of the snapshot: what is written meanwhile makes no sequence seem behind.
BEHIND = "UNION ALL".join(_behind(table) for table in _TABLES)
