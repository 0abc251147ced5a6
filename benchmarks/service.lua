-- For wrk, with one thread: files in turn as bodies, of pictures or of what -H says; a 503 is followed by the wait that Retry-After asks for.
-- wrk -t 1 -s service.lua URL -- picture...            Prints a line of JSON.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(pictures)
  statuses, unasked, waiting = {}, 0, {}
  requests, turn = {}, 0
  local headers = {["Content-Type"] = "image/jpeg"}
  for name, value in pairs(wrk.headers) do headers[name] = value end
  for _, name in ipairs(pictures) do
    local file = assert(io.open(name, "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function response(status, headers)
  statuses[tostring(status)] = (statuses[tostring(status)] or 0) + 1
  if status == 503 then
    local seconds
    for name, value in pairs(headers) do
      if name:lower() == "retry-after" then seconds = tonumber(value) end
    end
    if seconds then waiting[#waiting + 1] = seconds * 1000 else unasked = unasked + 1 end
  end
end

function delay()
  return table.remove(waiting) or 0
end

function done(summary, latency)
  local counts = {}
  for status, count in pairs(threads[1]:get("statuses")) do
    counts[#counts + 1] = string.format('"%s": %d', status, count)
  end
  local errors = summary.errors
  io.write(string.format(
    '{"seconds": %.3f, "p50_ms": %.1f, "p99_ms": %.1f, "max_ms": %.1f, "statuses": {%s}, "time_outs": %d, "broken": %d, "without_retry_after": %d}\n',
    summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000,
    table.concat(counts, ", "), errors.timeout, errors.connect + errors.read + errors.write, threads[1]:get("unasked")))
end
