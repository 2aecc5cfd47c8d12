-- Reads a session. KEYS: record, revocation. Returns revision, data, 1 if it is revoked; nothing if there is none.
local record = redis.call('HMGET', KEYS[1], 'v', 'd', 'a')
if not record[1] then return {} end
local revoked = tonumber(redis.call('GET', KEYS[2]) or '0')
return {record[1], record[2], tonumber(record[3]) <= revoked and 1 or 0}
