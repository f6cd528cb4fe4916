"""Broken variants of the transaction, in which the explorer must find what is wrong. Patched in this process only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from db.charging_statements import LOCK, LOCK_FREE, STATEMENTS
from db.decisions import ChargeRequest
from db.prepared import Prepared
from locks import Lease
from service.charging import Charging
from service.pending_charge import PendingCharge

_LOCKING = (" FOR UPDATE OF appointment_info SKIP LOCKED", " FOR UPDATE OF appointment_info")
_ONE_CHARGE = "alter table user_consume drop constraint if exists user_consume_appointment_id_key"
_ENTERED = (
    "EXISTS (SELECT 1 FROM appointment_action WHERE appointment_action.appointment_id = appointment_info.id)"
    " AS is_consume"
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """`schema`: what is taken from the schema, so that it does not catch what the transaction lets through."""

    does: str
    patches: Callable[[], Mapping[str, Any]]
    schema: tuple[str, ...] = ()


def _with_statements(change: Callable[[str], str]) -> Mapping[str, Any]:
    changed = {id(each): _changed(each, change) for each in (LOCK, LOCK_FREE)}
    return {
        "db.batch.LOCK": changed[id(LOCK)],
        "db.batch.LOCK_FREE": changed[id(LOCK_FREE)],
        "db.charging.STATEMENTS": [changed.get(id(each), each) for each in STATEMENTS],
    }


def _changed(statement: Prepared, change: Callable[[str], str]) -> Prepared:
    changed = copy.copy(statement)
    changed.prepare = change(statement.prepare)
    assert changed.prepare != statement.prepare, "the mutation does not fit the statement any more"
    return changed


def _plain(sql: str) -> str:
    for locking in _LOCKING:
        sql = sql.replace(locking, "")
    return sql


def _by_entry_log(sql: str) -> str:
    return _plain(sql).replace("appointment_info.is_consume AS is_consume", _ENTERED)


_submit = Charging.submit


def _submit_and_release(
    charging: Charging, request: ChargeRequest, lease: Lease | None, *, guarded_by: str
) -> PendingCharge:
    charge = _submit(charging, request, None, guarded_by=guarded_by)
    if lease is not None:
        lease.finish()
    return charge


MUTANTS: Mapping[str, Mutant] = {
    "plain-read": Mutant("reads is_consume without locking the row", lambda: _with_statements(_plain), (_ONE_CHARGE,)),
    "plain-read-unique": Mutant("the same, and the unique key stays", lambda: _with_statements(_plain)),
    "entry-log": Mutant(
        "charges where there is no ENTER row yet, without locking the row",
        lambda: _with_statements(_by_entry_log),
        (_ONE_CHARGE,),
    ),
    "released-early": Mutant(
        "releases the lock when the charge is begun, and not when it is committed",
        lambda: {"service.charging.Charging.submit": _submit_and_release},
    ),
    "fence-unchecked": Mutant(
        "lets a holder write whose fencing token is older than the row's",
        lambda: {"db.decisions._is_stale": lambda token, fence: False},
    ),
}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """The mutant's code is in force; for handlers that are made meanwhile."""
    if name is None:
        yield
        return
    patches = [patch(target, new) for target, new in MUTANTS[name].patches().items()]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
