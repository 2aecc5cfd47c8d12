-- Lists the nodes whose reports count: id and age in microseconds of each, with the report if reports are asked for.
-- KEYS: times, and the reports if they are asked for. ARGV: how long a report counts in microseconds.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local oldest = '(' .. string.format('%.0f', now - ARGV[1])
local nodes, answer = redis.call('ZRANGE', KEYS[1], oldest, '+inf', 'BYSCORE', 'WITHSCORES'), {}
for i = 1, #nodes, 2 do
  local age = math.max(now - tonumber(nodes[i + 1]), 0)
  if not KEYS[2] then
    answer[#answer + 1] = nodes[i]
    answer[#answer + 1] = age
  else
    local report = redis.call('HGET', KEYS[2], nodes[i])
    if report then
      answer[#answer + 1] = nodes[i]
      answer[#answer + 1] = age
      answer[#answer + 1] = report
    end
  end
end
return answer
