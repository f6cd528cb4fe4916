-- Frees the lock if it is still ours, and wakes python-redis-lock's waiters; Locker's hear of it through client tracking.
-- Idempotent for its call: sent again after a lost answer, it remembers that it was the one that freed the lock.
-- Returns 'released', or why it is not ours any more: 'forced', 'taken', 'deleted'.
local released = KEYS[6]
local lease_id, call_id, signal_ms = ARGV[1], ARGV[2], ARGV[3]

local holder = call('GET', lock)
if holder == lease_id then
  call('DEL', lock)
  leave_signal()
  call('PEXPIRE', signal, signal_ms)
  call('PEXPIRE', grant, KEEP_MS)
  call('SET', released, call_id, 'PX', KEEP_MS)
  return 'released'
end
if call('GET', released) == call_id then return 'released' end
if call('HGET', waiters, '.forced') == lease_id then return 'forced' end
return holder and 'taken' or 'deleted'
