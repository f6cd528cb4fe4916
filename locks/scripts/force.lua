-- Ends the lease with this fencing token (0: a python-redis-lock program's, which has none) and tells its holder; the next
-- in line gets the lock. Returns 'free', 'changed' when another lease is the current one, or 'forced'.
local expected_fence = tonumber(ARGV[1])

local holder = call('GET', lock)
if not holder then return 'free' end
local fence, lease_ms, lease_id, who, left = last_grant()
local current_fence = holder == lease_id and fence - left or 0
if current_fence ~= expected_fence then return 'changed' end
if current_fence ~= 0 then
  call('HSET', waiters, '.forced', holder)
  call('PEXPIRE', waiters, lease_ms + KEEP_MS)
  call('PUBLISH', string.match(who, '^[^\t]*'), 'forced ' .. holder .. ' ' .. string.sub(lock, 7, -2))
end
pass_on('', nil)
return 'forced'
