-- Gives a lease up. KEYS: lease. ARGV: holder. Returns 1 if it was held.
if redis.call('HGET', KEYS[1], 'h') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
