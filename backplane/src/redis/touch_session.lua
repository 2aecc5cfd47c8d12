-- Gives a session another ttl. KEYS: record, written, revocation. ARGV: ttl ms. Returns 1 if there is one.
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[1], 'GT')
redis.call('PEXPIRE', KEYS[3], ARGV[1], 'GT')
return 1
