-- Gives the lock of a lent lease back, to the next in line where one stands, through whichever process its client asks; its
-- keeper is told. Sent again after a lost answer, it remembers by call_id that it was the one that released; and it ends no
-- lease that was given time since it was asked for, age_ms ago: its client has asked for more.
-- Returns {fencing token, us since its grant, 1 when no other process has booked its end, 1 when handed over, for whom,
-- 1 when its client chose the id}, 'again', 'kept', or why the lease is over. KEYS[6]: as for lent_ask, where it did.
local lease_id, call_id, own_channel, age_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local holder = call('GET', lock)
if holder ~= lease_id then
  if call('HGET', waiters, '.released') == lease_id .. ' ' .. call_id then return 'again' end
  return tell_why_over(holder, lease_id)
end
local fence, _, granted_id, who, left = last_grant()
if granted_id ~= lease_id then
  fence, who, left = now_us, own_channel .. '\t', 0
elseif age_ms ~= '0' and was_given_time_since(age_ms) then
  return 'kept'
end
call('HSET', waiters, '.released', lease_id .. ' ' .. call_id)
call('PEXPIRE', waiters, ALIVE_MS + KEEP_MS)
local is_chosen = call('PEXPIRE', KEYS[6], KEEP_MS)
local handed_over = 0
if call('EXISTS', queue) == 1 then
  handed_over = pass_on('', nil) == 2 and 1 or 0
else
  free(false)
end
local keeper = keeper_in(who)
local is_booked = keeper ~= own_channel and tell(keeper, 'released', lease_id, handed_over)
return {fence - left, now_us - (fence - left), is_booked and 0 or 1, handed_over, string.match(who, '[^\t]*$'), is_chosen}
