-- Takes or renews a lease.
-- KEYS: lease, last token. ARGV: 1 holder, 2 ttl ms, 3 ttl of the last token ms. Returns holder and token.

-- Read first, because nothing may be written when the lineage is not known.
local _, _, lineage = string.find(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if not lineage then return redis.error_reply('NOLINEAGE INFO replication shows no master_replid') end

local lease = redis.call('HMGET', KEYS[1], 'h', 't', 'l')
local holder, token = lease[1], lease[2]
if holder and holder ~= ARGV[1] then return {holder, token} end
if not holder or lease[3] ~= lineage then
  -- Free, or another data set than the one that gave the token: it may have lost that the lease went on to others. The
  -- clock leads beyond every token given so far; the last one counts where the clock was set back.
  local clock = redis.call('TIME')
  local last = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(token or '0'))
  -- tostring() would write large numbers with an exponent.
  token = string.format('%.0f', math.max(last + 1, clock[1] * 1000000 + clock[2]))
  redis.call('HSET', KEYS[1], 'h', ARGV[1], 't', token, 'l', lineage)
  redis.call('SET', KEYS[2], token, 'PX', ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {ARGV[1], token}
