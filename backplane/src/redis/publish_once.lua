-- Fans out without history, once per idempotency key.
-- KEYS: pub/sub name, result of the key. ARGV: 1 message, 2 ttl of the result ms, 3 publish command.
-- Returns outcome (0 published, 1 repeated), offset, epoch.
local result = redis.call('GET', KEYS[2])
if result then
  local offset, epoch = string.match(result, '^(%d+):(.*)$')
  if not offset then return {1, '', ''} end
  return {1, offset, epoch}
end
redis.call('SET', KEYS[2], '-', 'PX', ARGV[2])
redis.call(ARGV[3], KEYS[1], ARGV[1])
return {0, '', ''}
