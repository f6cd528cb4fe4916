-- Gives a lease that is still ours lease_ms from now. Idempotent. grant_fence: its token, 0 for whatever was granted under its
-- id. Returns 'extended', 'unexpiring' when it is ours and needs no time, or why it is not ours any more: 'forced', 'taken',
-- 'deleted'.
local lease_id, lease_ms, grant_fence = ARGV[1], ARGV[2], ARGV[3]

if call('GET', lock) ~= lease_id or is_another_grant(lease_id, grant_fence) then return why_lost(lease_id) end
if call('PTTL', lock) < 0 then return 'unexpiring' end
local fence, _, granted_id, who, left = last_grant()
if granted_id == lease_id then
  give_again(fence, lease_id, lease_ms, lease_ms, who, left)
else
  call('PEXPIRE', lock, lease_ms)
end
return 'extended'
