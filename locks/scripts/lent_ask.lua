-- Answers a client that has chosen its lease id: the lease is lent under it once, and asked for again it is the same one,
-- with lease_ms from now. Idempotent for its own_id: under that and own_fence the asked process holds the lock for this
-- client just now, with own_token: as a turn of a run that the server may not have heard of yet; '' and 0 where it only looks. KEYS[6] says under which one it was lent, until KEEP_MS after the lease's end.
-- Returns what extend_lent does, and 1 when lent for own_id; or why the lease is over, or 'none' when nothing is known of it, and
-- the lock is not held under own_id.
local asked = KEYS[6]
local lease_id, lease_ms, own_who, for_whom = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local own_id, own_fence, own_token = ARGV[5], ARGV[6], ARGV[7]

local holder, lent_for = call('GET', lock), call('GET', asked)
local _, _, granted_id = last_grant()
if holder == lease_id and granted_id == lease_id then
  local reply = extend_lent(lease_id, lease_ms, own_who)
  reply[6] = lent_for == own_id and 1 or 0
  return reply
end
if lent_for or is_remembered(lease_id) then return tell_why_over(holder, lease_id) end
local fence = held_grant(own_id, own_fence, own_token)
if not fence then return 'none' end
give(fence, lease_id, lease_ms, lease_ms, own_who .. '\t' .. for_whom, fence - own_token)
call('SET', asked, own_id, 'PX', lease_ms + KEEP_MS)
-- The client may wait in another process too, where its first request went.
for _, channel in ipairs(call('ZRANGE', queue, 0, -1)) do
  call('PUBLISH', channel, string.format('lent %s %s', lease_id, string.sub(lock, 7, -2)))
end
return {tonumber(own_token), now_us - own_token, 1, for_whom, 1, 1}
