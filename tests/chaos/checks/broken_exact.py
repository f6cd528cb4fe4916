"""Checkers of exact histories broken on purpose: each excuse too wide, each bound too far, each thing not looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.chaos.checks import asks, bodies, evidence, holds, patience, quiet, stray
from tests.chaos.checks.breaking import A_YEAR_NS, Broken, fixed, nothing
from tests.chaos.checks.slack import EXACT
from tests.chaos.checks.spans import NO_SPANS, Spans

EVER = Spans([(0, A_YEAR_NS)])


def _store_fault_as_good_as_any(it: evidence.Evidence, begin: int, end: int) -> bool:
    return it.spans_of("redis").touch(begin, end)


def _any_clock(it: evidence.Evidence, _: int | str, begin: int, end: int) -> bool:
    return any(spans.touch(begin, end) for scope, spans in it.fault_spans.items() if scope.startswith("clock:"))


def _without(kinds: set[str], read: Callable[..., None]) -> Callable[..., None]:
    def reading(self: Any, event: dict[str, Any], *more: Any) -> None:
        read(self, {key: event[key] for key in event if key != "until" or event["p"] not in kinds}, *more)

    return reading


def _whatever_has_to_do_with(_: evidence.Evidence) -> dict[str, set[str]]:
    return defaultdict(lambda: {f"p{number}" for number in range(10)})


def _disturbed_by_anybody(it: evidence.Evidence, _: int | str, begin: int, end: int) -> bool:
    return any(spans.touch(begin, end) for spans in quiet.disturbances_of(it).values())


def _ever_disturbed(it: evidence.Evidence, who: int | str, _: int, __: int) -> bool:
    return bool({"store", str(who)} & quiet.disturbances_of(it).keys())


def _by_coming_alone(ask: asks.Ask, grants: Any, it: evidence.Evidence) -> Any:
    return (grant for grant in grants if grant.came > ask.came)


def _in_no_order(it: evidence.Evidence) -> dict[str, list[asks.Ask]]:
    return {name: [ask for ask in found if ask.fence is not None] for name, found in asks.asks_of(it).items()}


def _forgiving(late_ns: Callable[..., int]) -> Callable[..., int]:
    return lambda ask, *more: 0 if more[-1].standstills_of(ask["i"]).touch(0, A_YEAR_NS) else late_ns(ask, *more)


def _all_clear(it: evidence.Evidence) -> list[bodies.Body]:
    return [replace(body, is_clear=True) for body in bodies.bodies_of(it)]


def _of_answered(late_ns: Callable[..., int]) -> Callable[..., int]:
    return lambda ask, stood, answer, *more: 0 if answer is None else late_ns(ask, stood, answer, *more)


BROKEN_EXACT = (
    Broken(
        "exact: takes what is exact for noisy", "slack.EXACT", replace(EXACT, is_exact=False, unseen_ns=150_000_000)
    ),
    Broken("exact: a pause forgets", "evidence.Evidence.store_forgot", _store_fault_as_good_as_any),
    Broken("exact: nothing forgets", "evidence.Evidence.store_forgot", fixed(False)),
    Broken("exact: any clock", "evidence.Evidence.clock_moved", _any_clock),
    Broken("exact: no clock", "evidence.Evidence.clock_moved", fixed(False)),
    Broken("exact: granted as it was heard of", "causes.granted_after", lambda hold, _: hold.began),
    Broken("exact: granted at any time", "causes.granted_after", fixed(0)),
    Broken("exact: forced, whichever", "causes.was_forced", lambda *of: "forcing" in of[-1].points),
    Broken("exact: whoever was first has lost it", "causes._stale_holds", lambda overlap: (overlap.earlier,)),
    Broken("exact: forced, one token a run", "slack.EXACT", replace(EXACT, turns=1)),
    Broken("exact: forced, any older token", "slack.EXACT", replace(EXACT, turns=A_YEAR_NS)),
    Broken(
        "exact: the last word is not heard", "holds._Reading._ended", _without({"releasing"}, holds._Reading._ended)
    ),
    Broken("exact: nothing is adopted", "holds.Hold.is_adopted", property(fixed(False), lambda *_: None)),
    Broken(
        "exact: tokens, forgotten whenever a clock moved",
        "fences.is_forgotten",
        lambda *of: "clock:redis" in of[-1].fault_spans,
    ),
    Broken("exact: tokens, never forgotten", "fences.is_forgotten", fixed(False)),
    Broken("exact: tokens, kept for ever", "fences.KEEP_MS", A_YEAR_NS),
    Broken("exact: tokens, whatever a process had seen", "fences._seen", nothing),
    Broken("exact: tokens, asked for at any time", "fences._asked_after", lambda hold, _: hold.began),
    Broken(
        "exact: tokens, everybody asks for himself", "holds.Hold.was_queued", property(fixed(False), lambda *_: None)
    ),
    Broken("exact: early, nothing takes a lease away", "early.taken_away", fixed(None)),
    Broken("exact: early, everything does", "early.taken_away", fixed("store")),
    Broken("exact: early, of no hold", "early._hold_of", fixed(None)),
    Broken("exact: nobody's, given back whenever", "early.GIVEN_BACK_NS", A_YEAR_NS),
    Broken("exact: nobody's, given back at once", "early.GIVEN_BACK_NS", 0),
    Broken("exact: nobody's, nothing is amiss", "early.disturbances_of", fixed({})),
    Broken("exact: whatever was taken away was passed on", "releases._was_passed_on", lambda stale, holder, it: True),
    Broken("exact: releases, no token is forgotten", "releases.is_forgotten", fixed(False)),
    Broken("exact: releases, every token is forgotten", "releases.is_forgotten", fixed(True)),
    Broken("exact: nothing is passed on", "releases._was_passed_on", fixed(False)),
    Broken("exact: told whenever", "told.TOLD_WITHIN_NS", A_YEAR_NS),
    Broken("exact: told at once", "told.TOLD_WITHIN_NS", 0),
    Broken("exact: told, resuming takes no time", "told.RESUMED_MS", 0),
    Broken("exact: told, resuming takes for ever", "told.RESUMED_MS", A_YEAR_NS),
    Broken("exact: told, every fault suspends", "told.SUSPENDED", ""),
    Broken("exact: told, of every token", "told._with_one_token_at_once", fixed(set())),
    Broken("exact: told, of no token", "told._with_one_token_at_once", lambda holds: {id(hold) for hold in holds}),
    Broken("exact: told, whoever dies had it", "told._had_it", fixed(True)),
    Broken("exact: told, whoever dies had it not", "told._had_it", fixed(False)),
    Broken("exact: told, whoever is forced need not be", "told._ended_by_force", fixed(None)),
    Broken("exact: told of force, never disturbed", "told.is_disturbed", fixed(False)),
    Broken("exact: told of force, always disturbed", "told.is_disturbed", fixed(True)),
    Broken("exact: bodies, end whenever", "bodies.ENDS_WITHIN_NS", A_YEAR_NS),
    Broken("exact: bodies, end at once", "bodies.ENDS_WITHIN_NS", 0),
    Broken("exact: bodies, nobody dies", "bodies.ends_of", fixed({})),
    Broken("exact: bodies, hold for ever", "bodies.Body.over_at", property(fixed(None))),
    Broken("exact: bodies, hold as long by every clock", "bodies.CLOCK_RATES", 0),
    Broken("exact: bodies, hold as long by any clock", "bodies.CLOCK_RATES", 1),
    Broken("exact: bodies, resuming takes no time", "bodies.resuming", nothing),
    Broken("exact: bodies, of whichever lease", "bodies.Body.is_clear", property(fixed(True), lambda *_: None)),
    Broken("exact: losses, never disturbed", "losses.is_disturbed", fixed(False)),
    Broken("exact: losses, always disturbed", "losses.is_disturbed", fixed(True)),
    Broken("exact: losses, disturbed by anything ever", "losses.is_disturbed", _ever_disturbed),
    Broken("exact: losses, disturbed by anybody", "losses.is_disturbed", _disturbed_by_anybody),
    Broken("exact: losses, nobody uses force", "losses.was_forced", fixed(False)),
    Broken("exact: losses, forced, whichever", "losses.was_forced", lambda *of: "forced" in of[-1].points),
    Broken("exact: losses, claims last for ever", "losses.CLAIM_MS", A_YEAR_NS),
    Broken("exact: losses, claims last for no time", "losses.CLAIM_MS", 0),
    Broken("exact: losses, of whichever lease", "losses.bodies_of", _all_clear),
    Broken("exact: patience, answered whenever", "patience.ANSWERED_WITHIN_NS", A_YEAR_NS),
    Broken("exact: patience, answered at once", "patience.ANSWERED_WITHIN_NS", 0),
    Broken("exact: patience, told as soon as one likes", "patience.SOONER_S", 1e9),
    Broken("exact: patience, told later than he would wait", "patience.SOONER_S", -1e9),
    Broken("exact: patience, some milliseconds sooner", "patience.SOONER_S", 0.002),
    Broken("exact: patience, resuming takes no time", "patience.resuming", nothing),
    Broken("exact: patience, clocks are right", "patience.CLOCK_RATES", 0),
    Broken("exact: patience, any clock", "patience.CLOCK_RATES", 1),
    Broken(
        "exact: patience, whoever sleeps is forgiven everything", "patience._late_ns", _forgiving(patience._late_ns)
    ),
    Broken("exact: patience, nobody dies", "patience.ends_of", fixed({})),
    Broken(
        "exact: patience, whoever has no answer does not count", "patience._late_ns", _of_answered(patience._late_ns)
    ),
    Broken("exact: reasons, over at any time", "losses.SLOT_MS", A_YEAR_NS),
    Broken("exact: reasons, over to the last moment", "losses.SLOT_MS", 0),
    Broken("exact: reasons, nothing takes a lease away", "losses.taken_away", fixed(None)),
    Broken("exact: reasons, everything does", "losses.taken_away", fixed("store")),
    Broken("exact: reasons, granted at any time", "losses.granted_after", fixed(0)),
    Broken("exact: losses, whatever is lent is lost", "losses._is_held", fixed(False)),
    Broken("exact: losses, a moment counts", "losses.LEAST_LEFT_MS", 0),
    Broken("exact: losses, no time counts", "losses.LEAST_LEFT_MS", A_YEAR_NS),
    Broken("exact: busy, nobody comes back", "busy.COMES_BACK_NS", -A_YEAR_NS),
    Broken("exact: busy, whoever comes back takes a year", "busy.COMES_BACK_NS", A_YEAR_NS),
    Broken("exact: busy, whatever is told is true", "busy._is_true", fixed(True)),
    Broken("exact: busy, nobody stands in line", "busy.asks_of", fixed({})),
    Broken("exact: busy, all that was ever heard", "busy.HEARD_NS", A_YEAR_NS),
    Broken("exact: busy, heard just now", "busy.HEARD_NS", 0),
    Broken("exact: outages, told whenever", "outages.WAITED_NS", A_YEAR_NS),
    Broken("exact: outages, told at once", "outages.WAITED_NS", 0),
    Broken("exact: outages, nobody dies", "outages.ends_of", fixed({})),
    Broken("exact: outages, resuming takes no time", "outages.resuming", nothing),
    Broken("exact: asked, any number", "moderation.COMMANDS", A_YEAR_NS),
    Broken("exact: asked, nothing", "moderation.COMMANDS", 0),
    Broken("exact: asked, any number of connections", "moderation.CONNECTIONS", A_YEAR_NS),
    Broken("exact: asked, no connection", "moderation.CONNECTIONS", 0),
    Broken("exact: asked, for whatever happens", "moderation.SECOND_NS", A_YEAR_NS),
    Broken("exact: asked, for nothing", "moderation.SECOND_NS", 0),
    Broken("exact: order, by coming alone", "order._overtakers", _by_coming_alone),
    Broken("exact: order, nobody overtakes", "order._overtakers", nothing),
    Broken("exact: order, any number", "order.RUN_TURNS", A_YEAR_NS),
    Broken("exact: order, too few", "order.RUN_TURNS", 15),
    Broken("exact: order, never settled", "order.unsettled_of", fixed(EVER)),
    Broken("exact: order, always settled", "order.unsettled_of", fixed(NO_SPANS)),
    Broken("exact: order, of those who got it", "order.asks_of", _in_no_order),
    Broken("exact: order, everybody counts", "asks._counts", fixed(True)),
    Broken("exact: order, disturbed by anything ever", "order.is_disturbed", _ever_disturbed),
    Broken("exact: order, never disturbed", "order.is_disturbed", fixed(False)),
    Broken("exact: takeovers, disturbed by anybody", "takeover.is_disturbed", _disturbed_by_anybody),
    Broken("exact: takeovers, never disturbed", "takeover.is_disturbed", fixed(False)),
    Broken("exact: takeovers, everybody has to do with it", "takeover.concerned_of", _whatever_has_to_do_with),
    Broken("exact: takeovers, forced, whichever", "takeover.was_forced", lambda *of: "forced" in of[-1].points),
    Broken("exact: takeovers, nobody uses force", "takeover.was_forced", fixed(False)),
    Broken("exact: takeovers, nobody has to do with it", "takeover.concerned_of", fixed(defaultdict(set))),
    Broken("exact: takeovers, the dead one was whole", "takeover.LINK_RECOVERED_NS", -A_YEAR_NS),
    Broken("exact: takeovers, messages take no time", "takeover.DELAYS", 0),
    Broken("exact: takeovers, whatever is cut is told of", "quiet.UNTOLD", frozenset()),
    Broken("exact: takeovers, a reset is not told of", "quiet.UNTOLD", frozenset({"half-open", "reset"})),
    Broken("exact: takeovers, every death is silent", "takeover._offered_ms", fixed(300.0)),
    Broken("exact: takeovers, no death is silent", "takeover._offered_ms", fixed(0.0)),
    Broken("exact: stray, of cancellations alone", "stray.KINDS", stray.KINDS[:1]),
    Broken("exact: stray, of errors alone", "stray.KINDS", stray.KINDS[1:]),
    Broken("exact: idle, everybody has to do with it", "idle_exact.concerned_of", _whatever_has_to_do_with),
    Broken("exact: idle, nobody has to do with it", "idle_exact.concerned_of", fixed({})),
    Broken("exact: idle, never settled", "idle_exact._unsettled", fixed(EVER)),
    Broken("exact: idle, always settled", "idle_exact._unsettled", fixed(NO_SPANS)),
    Broken("exact: idle, no limit", "idle_exact._bounds_ns", fixed((A_YEAR_NS, A_YEAR_NS))),
    Broken("exact: idle, no moment", "idle_exact._bounds_ns", fixed((0, 0))),
    Broken("exact: idle, programs do not go first", "idle_exact.YIELD_MS", 0),
    Broken("exact: idle, no excuse of a waiter", "idle_exact._Excuses.of_waiter", fixed(NO_SPANS)),
    Broken("exact: idle, no excuse of all", "idle_exact._Excuses.windows", nothing),
    Broken("exact: idle, what nobody heard of lasts for ever", "idle_exact.CLAIM_MS", A_YEAR_NS),
    Broken("exact: idle, what nobody heard of lasts for a lease", "idle_exact.CLAIM_MS", 0),
    Broken("exact: idle, the dead stand in line for ever", "idle_exact.ALIVE_MS", A_YEAR_NS),
    Broken("exact: idle, the dead stand in no line", "idle_exact.ALIVE_MS", 0),
    Broken("exact: idle, nothing is on its way", "idle_exact.around_ns_of", fixed(0)),
    Broken("exact: idle, nothing is evicted", "idle_exact.EVICTED", "nothing"),
    Broken("exact: idle, everything is evicted", "idle_exact.EVICTED", "amiss"),
    Broken("exact: idle, free when it is certain to be", "idle_exact._longer_ns", fixed(0)),
    Broken("exact: idle, nobody asks for more", "idle_exact._asks_for_more", fixed(False)),
    Broken("exact: idle, everybody asks for more", "idle_exact._asks_for_more", fixed(True)),
    Broken("exact: takeovers, whoever ends holds up", "takeover._holds_up", fixed(True)),
    Broken("exact: takeovers, whoever ends holds up nobody", "takeover._holds_up", fixed(False)),
    Broken(
        "exact: idle, links come back at once", "idle_exact.link_recovered_at", lambda _, ended, __: ended - A_YEAR_NS
    ),
    Broken("exact: idle, the store comes back at once", "idle_exact.STORE_RECOVERED_NS", 0),
    Broken("exact: idle, a new process is there at once", "quiet.BORN_NS", 0),
    Broken("exact: idle, whoever wakes is there at once", "idle_exact.AWAKE_NS", 0),
)
