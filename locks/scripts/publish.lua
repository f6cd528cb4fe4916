-- Tells all instances what this one has seen: its picture, which replaces the last one, and what it adds to the counts of all.
-- Idempotent for its number: what was added once is not added again. Returns the server's time in ms.
-- additions: JSON, a list of commands: name, the number of its key, its other arguments.
local index, picture, list, applied, incidents = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local who, number, picture_text, list_text, additions = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local gone_ms, kept_ms, most_incidents = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local call = redis.call
local clock = call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function note(kind, member)
  local instance, host, pid = string.match(member, '^[^\t]*\t([^\t]*)\t([^\t]*)\t([^\t]*)$')
  call('LPUSH', incidents, cjson.encode({
    at = now_ms / 1000, kind = kind, name = '', instance = instance, detail = {host = host, pid = pid},
  }))
end

if call('ZADD', index, string.format('%.0f', now_ms), who) == 1 then note('instance-up', who) end
for _, member in ipairs(call('ZRANGEBYSCORE', index, '-inf', string.format('%.0f', now_ms - gone_ms))) do
  call('ZREM', index, member)
  note('instance-down', member)
end
call('SET', picture, picture_text, 'PX', gone_ms)
-- A list that is too long to be made every time stands a while longer.
if list_text ~= '' then call('SET', list, list_text, 'PX', gone_ms) else call('PEXPIRE', list, gone_ms) end

if call('GET', applied) ~= number then
  for _, addition in ipairs(cjson.decode(additions)) do
    call(addition[1], KEYS[tonumber(addition[2])], unpack(addition, 3))
  end
  call('SET', applied, number, 'PX', kept_ms)
end
call('LTRIM', incidents, 0, most_incidents - 1)
call('PEXPIRE', incidents, kept_ms)
call('PEXPIRE', index, kept_ms)
return string.format('%.0f', now_ms)
