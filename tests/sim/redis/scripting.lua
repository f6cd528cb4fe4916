-- What a server puts around the scripts: redis and cjson, globals that cannot be changed, and replies on the wire.
local call, pcall_command, decode, encode_text = ...
local getinfo, format, concat, floor = debug.getinfo, string.format, table.concat, math.floor

local function encode_json(value)
  local kind = type(value)
  if kind == 'string' then return encode_text(value) end
  if kind == 'number' then return format('%.14g', value) end
  if kind == 'boolean' then return tostring(value) end
  local parts = {}
  if #value > 0 then
    for i, each in ipairs(value) do parts[i] = encode_json(each) end
    return '[' .. concat(parts, ',') .. ']'
  end
  for key, each in pairs(value) do parts[#parts + 1] = encode_text(key) .. ':' .. encode_json(each) end
  return '{' .. concat(parts, ',') .. '}'
end

local function error_reply(words)
  return {err = string.sub(words, 1, 1) == '-' and string.sub(words, 2) or 'ERR ' .. words}
end

local seen = {
  redis = {
    call = call, pcall = pcall_command, error_reply = error_reply,
    status_reply = function(words) return {ok = words} end,
  },
  cjson = {encode = encode_json, decode = decode},
  string = string, table = table, math = math, os = {clock = os.clock}, _VERSION = _VERSION,
  assert = assert, error = error, ipairs = ipairs, next = next, pairs = pairs, pcall = pcall, rawequal = rawequal,
  rawget = rawget, rawset = rawset, select = select, setmetatable = setmetatable, getmetatable = getmetatable,
  tonumber = tonumber, tostring = tostring, type = type, unpack = unpack, xpcall = xpcall,
}
local keys_and_arguments = {}
local globals = setmetatable({}, {
  __index = function(_, name)
    local value = keys_and_arguments[name]
    if value == nil then value = seen[name] end
    if value == nil then error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2) end
    return value
  end,
  __newindex = function() error('Attempt to modify a readonly table', 2) end,
})

local function encode(reply)
  local kind = type(reply)
  if kind == 'number' then return format(':%d\r\n', reply) end
  if kind == 'string' then return '$' .. #reply .. '\r\n' .. reply .. '\r\n' end
  if reply == true then return ':1\r\n' end
  if kind ~= 'table' then return '$-1\r\n' end
  if reply.err then return '-' .. reply.err .. '\r\n' end
  if reply.ok then return '+' .. reply.ok .. '\r\n' end
  local count, parts = 0, {}
  while reply[count + 1] ~= nil do -- a nil ends it
    count = count + 1
    parts[count] = encode(reply[count])
  end
  return '*' .. count .. '\r\n' .. concat(parts)
end

return {
  compile = function(source)
    local script, words = loadstring(source, '@user_script')
    if script then setfenv(script, globals) end
    return {script or false, words or ''}
  end,
  run = function(script, key_count, ...)
    local keys, arguments, all = {}, {}, {...}
    for i = 1, key_count do keys[i] = all[i] end
    for i = key_count + 1, #all do arguments[i - key_count] = all[i] end
    keys_and_arguments.KEYS, keys_and_arguments.ARGV = keys, arguments
    return encode(script())
  end,
  -- The line of the script that runs.
  line = function()
    local level = 1
    while true do
      local info = getinfo(level, 'Sl')
      if not info then return 0 end
      if info.source == '@user_script' then return info.currentline end
      level = level + 1
    end
  end,
}
