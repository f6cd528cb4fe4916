-- Frees the lock if it is still ours, and wakes python-redis-lock's waiters; Locker's hear of it through client tracking.
-- grant_fence: as for sync_extend. Idempotent for its call: sent again after a lost answer, it remembers that it was the one that freed the lock.
-- Returns 'released', or why it is not ours any more: 'forced', 'taken', 'deleted'.
local released = KEYS[6]
local lease_id, call_id, signal_ms, grant_fence = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if call('GET', lock) == lease_id and not is_another_grant(lease_id, grant_fence) then
  call('DEL', lock)
  leave_signal()
  call('PEXPIRE', signal, signal_ms)
  call('PEXPIRE', grant, KEEP_MS)
  call('SET', released, call_id, 'PX', KEEP_MS)
  return 'released'
end
if call('GET', released) == call_id then return 'released' end
return why_lost(lease_id)
