"""How many files and connections the system lets a process have open, and limits that fit it."""

from __future__ import annotations

import contextlib
import resource

from service.settings import PREFIX, Settings, SettingsError

# The log, the sockets to listen on, the metrics' files, Redis and who connects anew while the old one is closing.
OF_THE_PROCESS = 64
# One for each thread or task that looks at the database beside those that are configured: health, audit, sessions.
LOOKING = 3
FEWEST_REQUESTS = 16
MACOS_LIMIT = 10_240  # OPEN_MAX: more is refused there, although "unlimited" is what it says


def raise_limit() -> int:
    """As many as the system allows may be open from now on, in our children too. Returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MACOS_LIMIT if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def lowered_limits(settings: Settings, open_files: int) -> dict[str, int]:
    """The limits that one worker cannot keep with so many open files, and what they have to be.

    Each request under way has a connection; who waits for a lock is one of those. A quarter is for connections that are
    idle, or are told that there are too many. Raises SettingsError where what is left is too little to serve with.
    """
    lanes = settings.charge_lanes + settings.charge_solo_lanes + settings.charge_repeat_lanes
    connections = lanes + settings.read_threads + LOOKING
    requests = (open_files - OF_THE_PROCESS - connections) * 3 // 4
    if requests < FEWEST_REQUESTS:
        raise SettingsError(
            f"{PREFIX}CHARGE_LANES and the like: {connections} database connections leave no room for requests in the"
            f" {open_files} files that a process may have open (ulimit -Hn)"
        )
    lowered = {}
    if settings.max_requests_in_flight > requests:
        lowered["max_requests_in_flight"] = requests
        if settings.lease_waits >= requests:
            lowered["max_lease_waits"] = requests // 2
    return lowered
