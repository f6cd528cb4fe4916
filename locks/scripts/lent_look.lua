-- How a lent lease stands; changes nothing.
-- Returns {remaining ms (-1: no expiry), 1 when own_channel is its keeper}, or why the lease is over.
local lease_id, own_channel = ARGV[1], ARGV[2]

local holder = call('GET', lock)
if holder ~= lease_id then return why_over(holder, lease_id) end
local _, _, granted_id, who = last_grant()
local is_keeper = granted_id ~= lease_id or keeper_in(who) == own_channel
return {call('PTTL', lock), is_keeper and 1 or 0}
