"""The Lua scripts of shared admission, as text. Redis or Valkey runs each as one atomic step.

Rule 1: they decide as the machines in memory do (`replay`, `idempotency`, `ratelimit`).

Rule 2: one clock decides: the server's, under a watermark, so that it never runs backwards. Times are microseconds
since 1970, which a double holds exactly.

Rule 3: a server that restarted, or took over after a failover, has another run id and may have lost its latest writes.
Each process begins on each connection, learns the run id there, and sends it with each question. If it isn't the one
that this memory belongs to, the script answers `begin`.

Rule 4: expired nonces raise the floor, so neither a small step back of the clock nor a watermark that was reset by hand
makes an old nonce acceptable.

The keys of one agent:

    meta      hash: run id and epoch of the memory, secret key, watermark, floor, window, bytes of answers
    nonces    sorted set: digests of sender and nonce, by the time until which they're kept
    live      hash: the number of nonces of each sender
    ends      sorted set: idempotency keys, by the time at which they expire
    work      hash: the entry of each such key (state, until when, digest of what was asked, token of the reservation)
    answers   hash: the answers of finished work
    finished  sorted set: keys with an answer, by the time at which it was recorded
    shares    hash: the theoretical arrival times of each limited key
    whole     sorted set: those keys, by the time at which their whole allowance is back
"""

from hashlib import sha1
from typing import Final

from attrs import field, frozen


@frozen
class Script:
    """A script: its text, and the SHA-1 by which EVALSHA runs it after the server has loaded it."""

    text: str = field(repr=False)
    sha: str


def _script(*parts: str) -> Script:
    text = "".join(parts)
    return Script(text, sha1(text.encode("ascii"), usedforsecurity=False).hexdigest())


_CLOCK: Final = """
local function time()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end
local function text(number) return string.format('%.0f', number) end
"""

# A key's entry: state (W, F, G or L, as in `idempotency`), until when, digest of what was asked, reservation's token.
_WORK: Final = """
local meta, nonces, live, ends, work, answers, finished = unpack(KEYS)
local ENTRY = '>c1dc16c8'
local function bury(key)
  redis.call('ZREM', finished, key)
  local size = redis.call('HSTRLEN', answers, key)
  if size > 0 then
    redis.call('HDEL', answers, key)
    redis.call('HINCRBY', meta, 'bytes', -size)
  end
end
local function forget(key)
  bury(key)
  redis.call('HDEL', work, key)
  redis.call('ZREM', ends, key)
end
local function known(key)
  local entry = redis.call('HGET', work, key)
  if entry then return struct.unpack(ENTRY, entry) end
end
local function keep(key, state, till, asked, token, over)
  redis.call('HSET', work, key, struct.pack(ENTRY, state, till, asked, token))
  redis.call('ZADD', ends, text(over), key)
end
"""

_WATERMARK: Final = """
local wall = math.max(time(), tonumber(redis.call('HGET', meta, 'watermark') or 0))
"""

BEGIN: Final = _script(
    _CLOCK,
    """
local meta = KEYS[1]
local key, epoch, start, max_age, skew = unpack(ARGV)
local eviction = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:(%S+)')
if eviction ~= 'noeviction' then return {'evicts'} end
local known = redis.call('HMGET', meta, 'run', 'key', 'epoch', 'max_age', 'skew', 'watermark', 'floor')
if known[2] and (known[4] ~= max_age or known[5] ~= skew) then return {'window', known[4], known[5]} end
local this = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if known[1] == this then return {'begun', this, known[2], known[3]} end
local wall = math.max(time(), tonumber(known[6] or 0))
local floors = {exact = wall + skew, floor = wall, open = 0}
local floor = math.max(floors[start], tonumber(known[7] or 0))
if not known[2] then
  redis.call('HSET', meta, 'key', key, 'epoch', epoch, 'max_age', max_age, 'skew', skew)
  known[2], known[3] = key, epoch
end
redis.call('HSET', meta, 'watermark', text(wall), 'floor', text(floor), 'run', this)
return {'begun', this, known[2], known[3]}
""",
)
"""Begin: tie the memory to this server. Returns `begun` with run id, key and epoch; or `evicts`; or `window` with the
`max_age` and `skew` that the other processes have."""

# Checks whose memory it is, and reads the clock. Once a second, or while expired nonces are left, it also writes the
# watermark, compares the server's own run id (a tenth of the whole cost), and removes up to 32 expired nonces (half a
# millisecond). The first 8 bytes of a nonce's entry are its sender's digest.
_HEAD: Final = """
issued, most, capacity = tonumber(issued), tonumber(most), tonumber(capacity)
max_age, skew = tonumber(max_age), tonumber(skew)
local state = redis.call('HMGET', meta, 'run', 'epoch', 'watermark', 'floor')
if state[1] ~= run or state[2] ~= epoch then return {'begin'} end
local wall, mark, floor = math.max(time(), state[3]), tonumber(state[3]), tonumber(state[4])
if wall >= mark + 1000000 then
  if not string.find(redis.call('INFO', 'server'), 'run_id:' .. run, 1, true) then return {'begin'} end
  local gone = redis.call('ZRANGEBYSCORE', nonces, '-inf', text(wall), 'WITHSCORES', 'LIMIT', 0, 32)
  if #gone > 0 then
    floor = math.max(floor, gone[#gone] - max_age)
    redis.call('HSET', meta, 'floor', text(floor))
  end
  for i = 1, #gone, 2 do
    redis.call('ZREM', nonces, gone[i])
    local its = string.sub(gone[i], 1, 8)
    if redis.call('HINCRBY', live, its, -1) <= 0 then redis.call('HDEL', live, its) end
  end
  if #gone < 64 then redis.call('HSET', meta, 'watermark', text(wall)) end
end
if issued < wall - max_age then return {'stale', text(wall)} end
if issued > wall + skew then return {'future', text(wall)} end
"""

_CLAIM: Final = """
if nonce ~= '' then
  local full = redis.call('ZCARD', nonces) >= capacity
  if issued > floor and not full then
    if redis.call('ZADD', nonces, 'NX', text(wall + max_age + skew), nonce) == 0 then return {'replayed'} end
    local sender = string.sub(nonce, 1, 8)
    if redis.call('HINCRBY', live, sender, 1) > most then
      redis.call('HINCRBY', live, sender, -1)
      redis.call('ZREM', nonces, nonce)
      full = true
    end
  elseif redis.call('ZSCORE', nonces, nonce) then
    return {'replayed'}
  elseif issued <= floor then
    return {'floored', text(floor - wall)}
  end
  if full then return {'saturated', text(redis.call('ZRANGE', nonces, 0, 0, 'WITHSCORES')[2] - wall)} end
end
"""

CLAIM: Final = _script(
    """
local meta, nonces, live = KEYS[1], KEYS[2], KEYS[3]
local run, epoch, issued, nonce, most, capacity, max_age, skew = unpack(ARGV)
""",
    _CLOCK,
    _HEAD,
    _CLAIM,
    "return {'admitted'}\n",
)
"""Claim a nonce. Returns `begin`, or the name of an answer of admission, followed by its time in microseconds if any.
"""

ADMIT: Final = _script(
    _CLOCK,
    _WORK,
    """
local run, epoch, issued, nonce, most, capacity, max_age, skew = unpack(ARGV, 1, 8)
local key, asked, token, deadline, ttl, entries = unpack(ARGV, 9, 14)
""",
    _HEAD,
    """
for _, over in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', text(wall), 'LIMIT', 0, 2)) do forget(over) end
local was, till, what = known(key)
if was and (was == 'W' or till > wall) then
  if what ~= asked then return {'mismatch'} end
  if was == 'F' then return {'stored', redis.call('HGET', answers, key)} end
  if was == 'G' then return {'gone'} end
  if was == 'W' and wall < till then return {'running', text(till - wall)} end
  return {'lost'}
end
if redis.call('ZCARD', ends) >= tonumber(entries) then
  return {'saturated', text(redis.call('ZRANGE', ends, 0, 0, 'WITHSCORES')[2] - wall)}
end
""",
    _CLAIM,
    """
if was then forget(key) end
till = wall + deadline
keep(key, 'W', till, asked, token, till + ttl)
return {'admitted'}
""",
)
"""The same for a request with an idempotency key: looks it up, then claims the nonce, then reserves the key."""

# At most 1,000 old answers are dropped for each new one, which takes a few milliseconds; the next call continues.
FINISH: Final = _script(
    _CLOCK,
    _WORK,
    _WATERMARK,
    """
local key, token, answer, ttl, most = unpack(ARGV)
local was, till, asked, whose = known(key)
if not was or whose ~= token then return {'late'} end
bury(key)
redis.call('HSET', answers, key, answer)
redis.call('ZADD', finished, text(wall), key)
keep(key, 'F', wall + ttl, asked, token, wall + ttl)
local bytes = redis.call('HINCRBY', meta, 'bytes', #answer)
for _ = 1, 1000 do
  if bytes <= tonumber(most) then break end
  local oldest = redis.call('ZRANGE', finished, 0, 0)[1]
  if not oldest then break end
  bury(oldest)
  local _, its, what, whose = known(oldest)
  redis.call('HSET', work, oldest, struct.pack(ENTRY, 'G', its, what, whose))
  bytes = tonumber(redis.call('HGET', meta, 'bytes'))
end
return {'kept'}
""",
)
"""Keep an answer. Returns `kept`, or `late` if the key no longer belongs to this reservation."""

SETTLE: Final = _script(
    _CLOCK,
    _WORK,
    _WATERMARK,
    """
local key, token, how, ttl = unpack(ARGV)
local was, till, asked, whose = known(key)
if was ~= 'W' or whose ~= token then return {'late'} end
if how == 'free' then
  forget(key)
else
  keep(key, 'L', wall + ttl, asked, token, wall + ttl)
end
return {'kept'}
""",
)
"""End a reservation without an answer: its key becomes `free`, or `lost`. Returns `kept` or `late`, as FINISH does."""

# A record from before the clock was set back lies too far ahead: it refuses once more, and is dropped.
TAKE: Final = _script(
    _CLOCK,
    """
local shares, whole = unpack(KEYS)
local key, cost, partial, capacity = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local count = (#ARGV - 4) / 2
local now = time()
local record = redis.call('HGET', shares, key)
if not record and redis.call('HLEN', shares) >= capacity then
  local full = redis.call('ZRANGEBYSCORE', whole, '-inf', text(now), 'LIMIT', 0, 8)
  for _, each in ipairs(full) do
    redis.call('HDEL', shares, each)
    redis.call('ZREM', whole, each)
  end
  if #full == 0 then
    key = ''
    record = redis.call('HGET', shares, key)
  end
end
local arrivals, granted, ahead, wait, over = {}, cost, false, 0, 0
for i = 1, count do
  local per, amount = tonumber(ARGV[3 + 2 * i]), tonumber(ARGV[4 + 2 * i])
  local arrival = now
  if record and #record == 8 * count then
    arrival = math.max(struct.unpack('>d', record, 8 * i - 7), now)
    ahead = ahead or arrival > now + per + 1
    arrival = math.min(arrival, now + per)
  end
  arrivals[i] = arrival
  local free = math.floor((now + per - arrival) * amount / per + 0.001)
  if partial then
    granted = math.max(math.min(granted, free), 0)
  elseif free < cost then
    local its = math.max(arrival + cost * per / amount - now - per, 1)
    if its > wait then wait, over = its, i end
  end
end
if over > 0 then
  if ahead then
    redis.call('HDEL', shares, key)
    redis.call('ZREM', whole, key)
  end
  return {'limited', text(wait), tostring(over - 1)}
end
local packed, latest, reply = '', now, {'taken', tostring(granted)}
for i = 1, count do
  local after = arrivals[i] + granted * ARGV[3 + 2 * i] / ARGV[4 + 2 * i]
  packed = packed .. struct.pack('>d', after)
  latest = math.max(latest, after)
  reply[#reply + 1] = text(after - now)
end
if granted > 0 then
  redis.call('HSET', shares, key, packed)
  redis.call('ZADD', whole, text(math.ceil(latest)), key)
end
return reply
""",
)
"""Take from a share. Returns `taken`, the amount and what is owed to each limit, or `limited`, the wait and the
limit."""
