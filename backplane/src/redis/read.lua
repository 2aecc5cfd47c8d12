-- Reads a part of a stream and what the coverage rule needs to know, in one atomic step.
-- KEYS: meta, stream.
-- ARGV: 1 epoch for a new stream, 2 meta ttl ms, 3 since offset or '', 4 since epoch, 5 count or '', 6 '1' for reverse.
-- Returns top offset, epoch, entries, 1 if the entry of the since offset is retained, what the oldest entry says of its
-- predecessor ('' if there is none).
local meta = redis.call('HMGET', KEYS[1], 's', 'e')
local top, epoch = meta[1], meta[2]
if not epoch then
  -- The position was forgotten or evicted: publications that remain belong to an epoch nobody knows.
  top, epoch = '0', ARGV[1]
  local _, _, lineage = string.find(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  redis.call('HSET', KEYS[1], 's', top, 'e', epoch)
  -- After the first write, which a server without memory refuses.
  redis.call('DEL', KEYS[2])
  -- Without it the first publish takes its offset from the clock, which is harmless.
  if lineage then redis.call('HSET', KEYS[1], 'l', lineage) end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {top, epoch, {}, 0, ''}
end
redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT')
local since, count = ARGV[3], ARGV[5]
-- Offsets of different epochs cannot be compared.
local is_elsewhere = since ~= '' and ARGV[4] ~= '' and ARGV[4] ~= epoch
if is_elsewhere or count == '0' then return {top, epoch, {}, 0, ''} end

local command, from, to
if ARGV[6] == '1' then
  -- Nothing is below 0, and Redis refuses such a range.
  if since == '0' then return {top, epoch, {}, 0, ''} end
  command, from, to = 'XREVRANGE', since == '' and '+' or '(' .. since .. '-0', '-'
else
  command, from, to = 'XRANGE', since == '' and '-' or '(' .. since .. '-0', '+'
end
local entries
if count == '' then entries = redis.call(command, KEYS[2], from, to)
else entries = redis.call(command, KEYS[2], from, to, 'COUNT', count) end
if since == '' or ARGV[6] == '1' then return {top, epoch, entries, 0, ''} end

if #redis.call('XRANGE', KEYS[2], since .. '-0', since .. '-0') > 0 then return {top, epoch, entries, 1, ''} end
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
return {top, epoch, entries, 0, oldest and oldest[2][4] or ''}
