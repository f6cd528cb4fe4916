"""A SafeLock is used while its program ends, in `atexit` or in `__del__`: the program ends all the same."""

from __future__ import annotations

import pytest
import redis

from tests.harness import PATIENCE_S
from tests.integration.compat_helpers import program, says

BEGIN = """
import atexit, os, sys, threading, time
from locks import LocksError
from locks.compat import SafeLock, client
from locks.sync_lease import KEEPER

redis_client = client(sys.argv[1])

def new_lock(name=sys.argv[2]):
    return SafeLock(redis_client, name, expire=30, auto_renewal=True, on_lost=print)
"""

# Modules are being taken apart while this runs: redis-py may connect no more, which is said as LockStoreDown.
OWNER = """
class Owner:
    def __init__(self):
        self.lock = new_lock()
        {begin}

    def __del__(self, write=os.write, LocksError=LocksError):
        try:
            {end}
        except LocksError:
            pass
        write(1, b"done\\n")

owner = Owner()
"""

IN_DEL = {
    "a release": OWNER.format(begin="self.lock.acquire()", end="self.lock.release()"),
    "a release of what is lost": OWNER.format(
        begin="self.lock.acquire()", end="self.lock._lease._ends_at_s = 0.0; self.lock.release()"
    ),
    "an acquire": OWNER.format(begin="pass", end="self.lock.acquire(timeout=5) and self.lock.release()"),
    "an extension": OWNER.format(begin="self.lock.acquire()", end="self.lock.extend(20)"),
}


@pytest.mark.parametrize("source", IN_DEL.values(), ids=IN_DEL.keys())
def test_a_program_that_uses_a_lock_in_del_at_its_end_ends(redis_url: str, name: str, source: str) -> None:
    with program(BEGIN + source, redis_url, name) as process:
        assert says(process) == "done"
        assert process.wait(PATIENCE_S) == 0


LAST_TURN = """
@atexit.register
def last_turn():
    {before}
    with new_lock() as lock:
        assert lock.remaining_s() > 0
    os.write(1, b"done\\n")
"""

IN_ATEXIT = {
    "before the keeper ends": LAST_TURN.format(before="pass"),
    "after the keeper has ended": LAST_TURN.format(before="KEEPER.end()"),
    # As Python 3.12 says of every thread at this moment; an older one where there is no memory for its stack.
    "where no thread can be started": LAST_TURN.format(before="threading.stack_size(1 << 46)"),
}


@pytest.mark.parametrize("source", IN_ATEXIT.values(), ids=IN_ATEXIT.keys())
def test_a_program_has_a_lock_in_atexit(redis_url: str, their_client: redis.Redis, name: str, source: str) -> None:
    with program(BEGIN + source, redis_url, name) as process:
        assert says(process) == "done"
        assert process.wait(PATIENCE_S) == 0
    assert their_client.get(f"lock:{{{name}}}") is None
