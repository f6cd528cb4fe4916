-- Takes the lock where it is free, past the queue, as python-redis-lock's SET NX does. Idempotent for its own id: a call
-- whose answer was lost, sent again, finds the lock its own. lease_ms '': no expiry; the grant then says granted_ms, to
-- which waiters cut an expiry that somebody gives the lock later.
-- Returns {fencing token} when held now, else {false, the holder's remaining ms (-1: no expiry)}.
local lease_id, lease_ms, granted_ms, who, seen_fence = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local holder = call('GET', lock)
local fence, last_lease_ms, last_lease_id, last_who, left = last_grant()
if holder and holder ~= lease_id then
  local remaining_ms = call('PTTL', lock)
  -- A lease cannot have more time left than it was given, and a run's a little more: the clock was set back.
  if holder == last_lease_id and remaining_ms > last_lease_ms + RUN_MS then
    remaining_ms = last_lease_ms + RUN_MS
    call('PEXPIRE', lock, remaining_ms)
  end
  return {false, remaining_ms}
end

if holder and last_lease_id == lease_id then
  give_again(fence, lease_id, granted_ms, granted_ms, last_who, left)
  if lease_ms == '' then call('PERSIST', lock) end
  return {fence}
end
fence = next_fence(seen_fence)
-- A turn past the queue counts as a python-redis-lock program's.
if call('EXISTS', queue, waiters) == 2 then count_sync_turn(lease_id, tonumber(granted_ms)) end
give(fence, lease_id, granted_ms, granted_ms, who)
if lease_ms == '' then call('PERSIST', lock) end
call('HDEL', waiters, '.grace_until', '.yield_until', '.handoffs')
return {fence}
