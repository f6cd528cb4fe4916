"""What docs/locks.md promises in figures, written down a second time: a broken product must not move its judge."""

MS = 1_000_000  # ns

# Of locks.store.QueueLimits, in ms.
ALIVE_MS = 900
CLAIM_MS = 700
GRACE_MS = 300
YIELD_MS = 20
SLACK_MS = 5
RUN_MS = 50
RUN_TURNS = 16
KEEP_MS = 10_000

RETURN_MS = 1_000  # the longest pause between two tries to give back
BOOKS_MS = 10_000  # whoever keeps the books of a lease that is lent looks at it so often at least
RECONNECT_MS = 250  # the longest pause between two tries to connect
TAKEOVER_MS = 50  # after the end of a dead holder's lease
SLOT_MS = 4  # leases that end within it are looked at together
RESUMED_MS = 100  # after the machine was suspended a process has looked at its clocks
COMMAND_TIMEOUT_MS = 500  # a connection that is silent for so long is given up
CONNECT_MS = 1_000  # an address that is silent for so long is given up
CLOCK_RATES = 0.01  # by which clocks may differ
MARGIN_MS = (
    2  # for which a lease lasts longer at the server than by its holder's clock, beside what clocks may differ by
)
