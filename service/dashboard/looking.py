"""Where the views look: the locks of all instances, the tables, the audit, and this instance's health."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from locks import Locker
from locks.contention import Contention
from service.auditing import AuditDone
from service.lists import Lists
from service.reading import Reading


@dataclass(frozen=True, slots=True)
class Looking:
    """What views read from; nothing here changes anything."""

    contention: Contention
    lists: Lists
    locker: Locker
    reading: Reading
    audit: Callable[[], AuditDone | None]
    down_since: Callable[[], Mapping[str, float | None]]  # of each dependency that does not answer, unix time
    instance_id: str
    entry_limit: int
