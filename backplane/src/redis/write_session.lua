-- Writes a session if its record is the one expected, in one atomic step.
-- KEYS: record, written, revocation.
-- ARGV: 1 expected revision or '', 2 data, 3 '1' if authorised, 4 ttl ms, 5 encoded session id, 6 records of one user.
-- Returns 1 and the revision, or 0 and what load_session.lua returns.
local record = redis.call('HMGET', KEYS[1], 'v', 'a')
local is_new = not record[1]
local revoked = tonumber(redis.call('GET', KEYS[3]) or '0')
if (record[1] or '') ~= ARGV[1] then
  if is_new then return {0} end
  return {0, record[1], redis.call('HGET', KEYS[1], 'd'), tonumber(record[2]) <= revoked and 1 or 0}
end

local most = tonumber(ARGV[6])
if is_new and redis.call('ZCARD', KEYS[2]) >= most then
  -- Names of keys are made here, which is allowed because all of them share the hash tag of those given.
  local stem = string.sub(KEYS[1], 1, #KEYS[1] - #ARGV[5])
  local oldest
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    if redis.call('EXISTS', stem .. id) == 0 then redis.call('ZREM', KEYS[2], id)
    else oldest = oldest or id end
  end
  if redis.call('ZCARD', KEYS[2]) >= most then
    redis.call('DEL', stem .. oldest)
    redis.call('ZREM', KEYS[2], oldest)
  end
end

-- One clock for all sessions of the user: the server's time, or more where that went back. So a revision is not given
-- twice even if writes were lost, the order of revisions is that of writes, and a write after a revocation is above it.
local clock = redis.call('TIME')
local last = tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'REV', 'WITHSCORES')[2] or '0')
local revision = math.max(clock[1] * 1000000 + clock[2], last + 1, tonumber(record[1] or '0') + 1, revoked + 1)
-- tostring() would write large numbers with an exponent.
revision = string.format('%.0f', revision)
local authorised = (is_new or ARGV[3] == '1') and revision or record[2]
redis.call('HSET', KEYS[1], 'v', revision, 'd', ARGV[2], 'a', authorised)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], revision, ARGV[5])
-- A key without an expiry counts as immortal for GT.
if redis.call('PEXPIRE', KEYS[2], ARGV[4], 'NX') == 0 then redis.call('PEXPIRE', KEYS[2], ARGV[4], 'GT') end
redis.call('PEXPIRE', KEYS[3], ARGV[4], 'GT')
return {1, revision}
