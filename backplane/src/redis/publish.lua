-- Publishes into a stream, in one atomic step.
-- KEYS: meta, stream, pub/sub name, and the result of the idempotency key if there is one.
-- ARGV: 1 record, 2 size, 3 stream ttl ms, 4 epoch for a new stream, 5 random number below 2048, 6 meta ttl ms,
--       7 version as 20 digits, 8 version epoch, 9 ttl of the result ms, 10 publish command.
-- Returns outcome (0 published, 1 repeated, 2 outdated), offset, epoch, replication id of the data set.

-- Read first, because nothing may be written when the lineage is not known.
local _, _, lineage = string.find(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if not lineage then return redis.error_reply('NOLINEAGE INFO replication shows no master_replid') end

if KEYS[4] then
  local result = redis.call('GET', KEYS[4])
  if result then
    local offset, epoch = string.match(result, '^(%d+):(.*)$')
    if not offset then return {1, '', '', lineage} end
    return {1, offset, epoch, lineage}
  end
end

-- 20 digits compare as text; numbers here would lose those above 2^53.
local version, version_epoch = ARGV[7], ARGV[8]
local is_versioned = version ~= '00000000000000000000'
local meta
if is_versioned then meta = redis.call('HMGET', KEYS[1], 's', 'e', 'l', 'v', 've')
else meta = redis.call('HMGET', KEYS[1], 's', 'e', 'l') end
local previous, epoch = meta[1] or '0', meta[2]
local top, is_new, is_same = tonumber(previous), not epoch, meta[3] == lineage

if not is_new and is_versioned and meta[4] and version <= meta[4]
    and (version_epoch == '' or version_epoch == (meta[5] or '')) then
  redis.call('PEXPIRE', KEYS[1], ARGV[6], 'GT')
  if KEYS[4] then redis.call('SET', KEYS[4], previous .. ':' .. epoch, 'PX', ARGV[9]) end
  return {2, previous, epoch, lineage}
end

local offset
if is_new then
  -- The position was forgotten or evicted: publications that remain belong to an epoch nobody knows.
  epoch, offset = ARGV[4], 1
elseif is_same then
  offset = top + 1
else
  -- Another data set than the one that gave the last offset: it may have given more of them, which are lost here.
  -- The clock leads beyond those, so that none is given twice.
  local now = redis.call('TIME')
  offset = math.max(top + 1, (now[1] * 1000 + math.floor(now[2] / 1000)) * 2048 + tonumber(ARGV[5]))
end
-- tostring() would write large numbers with an exponent.
local offset_text = string.format('%.0f', offset)
if is_versioned then
  redis.call('HSET', KEYS[1], 's', offset_text, 'e', epoch, 'l', lineage, 'v', version, 've', version_epoch)
elseif is_same and not is_new then
  redis.call('HSET', KEYS[1], 's', offset_text)
else
  redis.call('HSET', KEYS[1], 's', offset_text, 'e', epoch, 'l', lineage)
end
-- After the first write, which a server without memory refuses: one that was freed before would let all others pass.
if is_new then redis.call('DEL', KEYS[2]) end
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[2], offset_text .. '-0', 'd', ARGV[1], 'p', previous)
-- A longer life that an earlier use was promised is kept; a key without an expiry counts as immortal for GT.
if is_new then redis.call('PEXPIRE', KEYS[1], ARGV[6]) else redis.call('PEXPIRE', KEYS[1], ARGV[6], 'GT') end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if KEYS[4] then redis.call('SET', KEYS[4], offset_text .. ':' .. epoch, 'PX', ARGV[9]) end
redis.call(ARGV[10], KEYS[3], 'p' .. offset_text .. ':' .. previous .. ':' .. epoch .. ':' .. ARGV[1])
return {0, offset_text, epoch, lineage}
