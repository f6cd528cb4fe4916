-- Gives the lock back if it is still ours, to the next in line where one stands; or leaves the queue if we stood there.
-- Returns 0 not ours, 1 freed, 2 handed over, {fence, lease id, turns} handed over to other waiters of the same process.
-- Repeating it is harmless: the second call finds the lock not ours. grant_fence: the token of the grant's last turn, 0 for
-- whatever was granted under this id. The rest of ARGV, where it is there, is what this process wants next.
local lease_id, grant_fence, fencing_token, channel = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local is_granted = held_grant(lease_id, grant_fence, fencing_token)
if is_granted or grant_fence == '0' and call('GET', lock) == lease_id then
  if ARGV[5] then
    return pass_on(channel, {
      age_us = ARGV[5], later = ARGV[6], waiter_count = ARGV[7], lease_ms = ARGV[8], lease_id = ARGV[9], who = ARGV[10],
    })
  end
  if call('EXISTS', queue) == 1 then return pass_on(channel, nil) end
  free(false)
  return 1
end

local stood = heard(channel)
if stood and stood.lease_id == lease_id then
  local was_head = call('ZRANGE', queue, 0, 0)[1] == channel
  drop(channel)
  if was_head then
    -- Whoever is first now must know: only the first watches the lock, and sets its timer by the holder's end.
    if call('EXISTS', lock) == 0 then offer() else wake_head() end
  end
end
return 0
