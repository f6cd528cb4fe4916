-- How a lent lease stands.
-- Returns {remaining ms (-1: no expiry), 1 when own_channel is its keeper}, or why the lease is over.
local lease_id, own_channel = ARGV[1], ARGV[2]

local holder = call('GET', lock)
if holder ~= lease_id then return why_over(holder, lease_id) end
local _, granted_ms, granted_id, who = last_grant()
local remaining_ms = call('PTTL', lock)
-- A lease cannot have more time left than it was given: the clock was set back.
if granted_id == lease_id and remaining_ms > granted_ms + RUN_MS then
  remaining_ms = granted_ms + RUN_MS
  call('PEXPIRE', lock, remaining_ms)
end
local is_keeper = granted_id ~= lease_id or keeper_in(who) == own_channel
return {remaining_ms, is_keeper and 1 or 0}
