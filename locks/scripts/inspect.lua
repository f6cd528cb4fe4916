-- Who holds the lock and who waits, in order; changes nothing and shows no lease id.
-- Returns {} when nobody holds it and nobody waits, else {remaining ms (-1: no expiry, -2: free), the server's us, then of the
-- grant fence, lease in ms and who (0, 0 and '' for a python-redis-lock program), then for each process in line the age of
-- its first waiter in us, how much later the next ones came, its waiter count and its who}.
local holder = call('GET', lock)
local order = call('ZRANGE', queue, 0, -1, 'WITHSCORES')
if not holder and not order[1] then return {} end
local found = {call('PTTL', lock), now_us, 0, 0, ''}
local fence, lease_ms, lease_id, who, left = last_grant()
if holder and holder == lease_id then found[3], found[4], found[5] = fence - left, lease_ms, who end
for i = 1, #order, 2 do
  local wanted = heard(order[i])
  if wanted then
    table.insert(found, now_us - tonumber(order[i + 1]))
    table.insert(found, wanted.later)
    table.insert(found, tonumber(wanted.waiter_count))
    table.insert(found, wanted.who)
  end
end
return found
