"""Who holds a lock, and how that one hears of a forced release: in words for the page, a terminal, the audit log."""

from __future__ import annotations

from locks import Party, PartyKind

NOT_SAID = "a python-redis-lock program"


def holder_words(holder: Party | None) -> str:
    """In one line, the owner first where a client outside holds; None is a program that does not say who it is."""
    if holder is None:
        return NOT_SAID
    owner = "" if holder.owner is None else f"“{holder.owner}”"
    if holder.kind is PartyKind.CLIENT:
        return f"{owner or 'a client'} over HTTP, kept by {_process(holder)}"
    return f"{owner}, {_process(holder)}" if owner else _process(holder)


def told_words(holder: Party | None) -> str:
    """How this holder hears that its lease was ended by force, and what it does until then."""
    match holder.kind if holder is not None else None:
        case PartyKind.LOCKER:
            return "Its process is told at once, and its work under the lock is cancelled."
        case PartyKind.CLIENT:
            return (
                "The client is not told: it works on, and learns of it from the answer 410 to its next request for"
                " this lease."
            )
        case PartyKind.SAFE_LOCK:
            return "The program is not told: it works on, and learns of it when it next renews or releases."
        case None:
            return "The program is not told: it works on as if it held the lock."


def audited_words(holder: Party | None) -> str:
    """As it is written to lock_audit: instance, host, pid and request, and behind them what else is known."""
    if holder is None:
        return NOT_SAID
    words = f"{holder.instance_id} {holder.host} {holder.pid} {holder.request_id}".rstrip()
    if holder.kind is PartyKind.CLIENT:
        words += ", over HTTP"
    return words if holder.owner is None else f"{words}, owner {holder.owner}"


def _process(holder: Party) -> str:
    request = f", request {holder.request_id}" if holder.request_id else ""
    return f"{holder.instance_id} (host {holder.host}, pid {holder.pid}{request})"
