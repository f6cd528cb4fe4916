-- Shared by the scripts of lent leases: a client outside holds one and shows its id; its keeper, the process whose channel
-- stands in the grant, counts it.
local function keeper_in(who)
  return string.match(who, '^[^\t]*')
end

-- Tells the keeper of the lease; returns whether anybody listens there.
local function tell(keeper, word, lease_id, what)
  return call('PUBLISH', keeper, string.format('%s %s %s %s', word, lease_id, what, string.sub(lock, 7, -2))) > 0
end

-- Why the lock is not held under this lease id any more: 'forced', 'released', 'taken' when another has or had it since,
-- 'expired', 'deleted' when the key went before its time, 'unknown' when nothing is known of such a lease.
local function why_over(holder, lease_id)
  if call('HGET', waiters, '.forced') == lease_id then return 'forced' end
  local released = call('HGET', waiters, '.released')
  if released and string.sub(released, 1, #lease_id) == lease_id then return 'released' end
  local _, _, granted_id = last_grant()
  if holder then return 'taken' end
  if granted_id == '' then return 'unknown' end
  if granted_id ~= lease_id then return 'taken' end
  -- The grant stays for KEEP_MS after the end of its lease.
  return call('PTTL', grant) > KEEP_MS and 'deleted' or 'expired'
end

-- The same, and lets the keeper know, who may not have found out.
local function tell_why_over(holder, lease_id)
  local reason = why_over(holder, lease_id)
  local _, _, granted_id, who = last_grant()
  if granted_id == lease_id then tell(keeper_in(who), 'ended', lease_id, reason) end
  return reason
end

-- Whether the lock was held under this lease id, and is not any more, as far as the last of each kind tells.
local function is_remembered(lease_id)
  local released = call('HGET', waiters, '.released') or ''
  local _, _, granted_id = last_grant()
  return granted_id == lease_id or string.sub(released, 1, #lease_id) == lease_id
    or call('HGET', waiters, '.forced') == lease_id
end

-- Gives the lease that was granted the lock last lease_ms from now, and tells its keeper; where nobody listens any more, the asked
-- process (own_who: channel, instance, host and pid) becomes the keeper. It has no less than before, for what is carried out late
-- must not take away what was given since; and the grant says what it has, so that was_given_time_since() knows when it was given.
-- Returns {fencing token, us since its grant, 1 when the asked process is the keeper, for whom, 1 when its client chose the id}.
local function extend_lent(lease_id, lease_ms, own_who)
  local fence, granted_ms, _, who, left = last_grant()
  local remaining_ms = call('PTTL', lock)
  if remaining_ms > tonumber(lease_ms) and remaining_ms <= granted_ms + RUN_MS then lease_ms = remaining_ms end
  local keeper, own_channel = keeper_in(who), keeper_in(own_who)
  local for_whom = string.match(who, '[^\t]*$')
  local is_keeper = keeper == own_channel or not tell(keeper, 'extended', lease_id, lease_ms)
  if is_keeper then who = own_who .. '\t' .. for_whom end
  give(fence, lease_id, lease_ms, lease_ms, who, left)
  local is_chosen = call('PEXPIRE', KEYS[6], lease_ms + KEEP_MS)
  return {fence - left, now_us - (fence - left), is_keeper and 1 or 0, for_whom, is_chosen}
end

-- Whether the lease that was granted the lock last was granted, extended or asked for again less than age_ms ago.
local function was_given_time_since(age_ms)
  local _, lease_ms = last_grant()
  return lease_ms - call('PTTL', lock) < tonumber(age_ms)
end
