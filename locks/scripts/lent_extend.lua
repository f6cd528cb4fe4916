-- Gives a lent lease lease_ms from now, through whichever process its client asks; see extend_lent. Idempotent.
-- KEYS[6]: as for lent_ask, where the client chose the id. Returns as extend_lent does, or why the lease is over.
local lease_id, lease_ms, own_who = ARGV[1], ARGV[2], ARGV[3]

local holder = call('GET', lock)
local _, _, granted_id = last_grant()
if holder ~= lease_id or granted_id ~= lease_id then return tell_why_over(holder, lease_id) end
return extend_lent(lease_id, lease_ms, own_who)
