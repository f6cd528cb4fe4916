"""Every view and its place: its address, its name in the menu, what reads it, and its table for export."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.dashboard.asked import Asked
from service.dashboard.looking import Looking
from service.dashboard.views import charges, happened, heatmap, hot, locks, overview

Read = Callable[[Looking, Asked], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One view: its templates are <key>.html, and _<key>.html for the part that is kept up to date."""

    key: str
    title: str
    path: str
    read: Read
    period_s: float = 1.0
    menu: str  # the entry that it belongs to
    in_menu: bool = True


VIEWS: Mapping[str, View] = {
    view.key: view
    for view in (
        View(key="overview", title="Overview", path="", read=overview.overview, menu="overview"),
        View(key="locks", title="Locks", path="/locks", read=locks.locks, menu="locks"),
        View(key="lock", title="Lock", path="/locks/{name}", read=locks.one_lock, menu="locks", in_menu=False),
        View(key="hot", title="Hot locks", path="/hot", read=hot.hot, menu="hot"),
        View(key="heatmap", title="Heatmap", path="/heatmap", read=heatmap.heatmap, period_s=2.0, menu="heatmap"),
        View(key="incidents", title="Incidents", path="/incidents", read=happened.incidents, menu="incidents"),
        View(key="instances", title="Instances", path="/instances", read=happened.instances, menu="instances"),
        View(key="charges", title="Charges", path="/charges", read=charges.charges, period_s=2.0, menu="charges"),
        View(
            key="appointment",
            title="Appointment",
            path="/appointments/{appointment_id}",
            read=charges.appointment,
            period_s=2.0,
            menu="charges",
            in_menu=False,
        ),
        View(
            key="audit_log",
            title="Audit log",
            path="/audit-log",
            read=happened.audit_log,
            period_s=2.0,
            menu="audit_log",
        ),
    )
}
