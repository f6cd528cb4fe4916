-- Gives a lent lease lease_ms from now, through whichever process its client asks. Idempotent. Its keeper is told; where
-- nobody listens any more, the asked process (own_who: channel, instance, host and pid) becomes the keeper.
-- Returns {fencing token, us since its grant, 1 when the asked process is the keeper, request id}, or why the lease is over.
local lease_id, lease_ms, own_who = ARGV[1], ARGV[2], ARGV[3]

local holder = call('GET', lock)
local fence, _, granted_id, who, left = last_grant()
if holder ~= lease_id or granted_id ~= lease_id then return tell_why_over(holder, lease_id) end
local keeper, own_channel = keeper_in(who), keeper_in(own_who)
local request_id = string.match(who, '[^\t]*$')
local is_keeper = keeper == own_channel or not tell(keeper, 'extended', lease_id, lease_ms)
if is_keeper then who = own_who .. '\t' .. request_id end
give(fence, lease_id, lease_ms, lease_ms, who, left)
return {fence - left, now_us - (fence - left), is_keeper and 1 or 0, request_id}
