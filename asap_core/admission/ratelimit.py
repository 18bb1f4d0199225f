"""Rate limits by GCRA, the generic cell rate algorithm (ITU-T I.371).

Rule 1: a limit of N per P lets a key that was idle take N at once, and then one every P/N.

Rule 2: so in any window of length W it grants at most N + W·N/P, and in a window of length P fewer than 2N.

Rule 3: several limits are checked and taken as one: what one of them refuses costs nothing in the others.

How it works: per key and limit one number is kept, the *theoretical arrival time* at which the key's allowance is whole
again. Each unit taken moves it P/N ahead, from now or from where it is, whichever is later. A request is granted if the
result is at most P ahead of now.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network
from itertools import islice
from typing import Final

from attrs import field, frozen, validators

from asap_core.clock import Instant
from asap_core.net.addresses import read_address

_UNITS: Final = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
_LIMIT: Final = re.compile(r"\s*(\d{1,9})\s*(?:/|\s+per\s+)\s*(?:(\d{1,5})\s+)?(second|minute|hour|day)s?\s*", re.ASCII)
# Each request costs one step per limit.
_MAX_LIMITS: Final = 8


@frozen
class Limit:
    """`amount` per `per` seconds."""

    amount: int = field(validator=validators.gt(0))
    per: float = field(validator=validators.gt(0))

    def __str__(self) -> str:
        """Return the limit in the reference's notation: `10 per 1 second`."""
        unit, length = next(
            (name, size) for name, size in reversed(_UNITS.items()) if self.per % size == 0 or size == 1
        )
        return f"{self.amount} per {self.per / length:g} {unit}"


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Read limits in the reference's notation: `10/second;100/minute`, `5 per 2 hours`. Empty text is no limit.

    Raises ValueError, which shows a valid example.
    """
    parts = [part for part in text.split(";") if part.strip()]
    matches = [_LIMIT.fullmatch(part) for part in parts]
    if len(parts) > _MAX_LIMITS or None in matches or any(match and int(match[1]) == 0 for match in matches):
        raise ValueError("expected limits such as 10/second;100/minute (second, minute, hour or day; 8 at most)")
    return tuple(Limit(int(match[1]), int(match[2] or 1) * _UNITS[match[3]]) for match in matches if match)


@frozen
class Taken:
    """The request was within all limits."""


@frozen
class Limited:
    """The request was over `limit`. It would be granted in `retry_after` seconds if nothing else is taken."""

    retry_after: float
    limit: str


@frozen
class Left:
    """What is left by one limit: `amount` may be taken now; in `seconds` the whole allowance is back."""

    limit: Limit
    amount: int
    seconds: float


@frozen
class Granted:
    """A shared limiter's answer: `amount` was taken; `left` is what remains of each limit."""

    amount: int
    left: tuple[Left, ...]


_TAKEN: Final = Taken()
# Tolerance for rounding in sums of floats, in seconds: a request isn't refused because of it.
_EPSILON: Final = 1e-9
# The record that all new keys share while the table is full. No caller's key is empty.
_OVERFLOW: Final = ""
# How many shards, and records in each, are searched for a whole allowance when a new key needs room: constant work.
_SEARCHED: Final = 8
# 100,000 keys make 400 to a shard, which takes 10 µs to grow; a single table would stall for milliseconds.
_SHARDS: Final = 256
_SHARD_SHIFT: Final = 64 - 8
_SHARDED_FROM: Final = 4_096

_Record = tuple[float, ...]
"""The theoretical arrival time for each limit."""


class Limiter:
    """Rate limits for any number of keys.

    capacity: the largest number of keys remembered. A full table first drops records whose allowance is whole again,
    which loses nothing. If a search finds none, new keys share one overflow record: a flood of new names gets one share
    and evicts nobody.
    """

    def __init__(self, limits: tuple[Limit, ...], *, capacity: int) -> None:
        self._limits = limits
        self._capacity = capacity
        self._rates = tuple((limit.per, limit.amount) for limit in limits)
        self._whole: _Record = (float("-inf"),) * len(limits)
        # Many dicts, since a large one stalls for milliseconds when it grows. Each is in the order of the last change,
        # so the key that was idle longest comes first.
        self._shards: list[dict[str, _Record]] = [{} for _ in range(_SHARDS if capacity >= _SHARDED_FROM else 1)]
        self._count = 0
        self._searched = 0

    def __len__(self) -> int:
        """Return the number of keys."""
        return self._count

    def _shard(self, key: str) -> dict[str, _Record]:
        # The top bits of the hash, since the shard's own table uses the low ones. Hashes are signed: hence the modulo.
        return self._shards[(hash(key) >> _SHARD_SHIFT) % len(self._shards)]

    def take(self, key: str, *, cost: int = 1, now: Instant) -> Taken | Limited:
        """Take `cost` from the share of `key`, or nothing. A cost above a limit's amount is never granted."""
        shard = self._shard(key)
        record = shard.get(key)
        if record is None:
            key = self._place(key, now)
            shard = self._shard(key)
            record = shard.get(key)
        taken: list[float] = []
        over, wait = None, _EPSILON
        for (per, amount), arrival in zip(self._rates, record or self._whole, strict=True):
            after = max(now, arrival) + cost * per / amount
            if after - now - per > wait:
                over, wait = len(taken), after - now - per
            taken.append(after)
        if over is not None:  # only after all limits were checked: `wait` is the longest, or a retry would fail again
            return Limited(wait, str(self._limits[over]))
        if record is None:
            self._count += 1
        else:
            del shard[key]  # to the end of the order
        shard[key] = tuple(taken)
        return _TAKEN

    def take_up_to(self, key: str, *, cost: int, now: Instant) -> int:
        """Take as much of `cost` as is left, and return that amount."""
        granted = min([cost, *(left.amount for left in self.left(key, now=now))])
        if granted > 0:
            self.take(key, cost=granted, now=now)
        return max(granted, 0)

    def left(self, key: str, *, now: Instant) -> tuple[Left, ...]:
        """Return what is left of the share of `key` by each limit. Takes nothing."""
        key = self._place(key, now)
        record = self._shard(key).get(key, self._whole)
        ahead = [max(one - now, 0.0) for one in record]
        return tuple(
            Left(limit, int((limit.per - owed) * limit.amount / limit.per + _EPSILON), owed)
            for limit, owed in zip(self._limits, ahead, strict=True)
        )

    def _place(self, key: str, now: Instant) -> str:
        """Return `key`, or the overflow key if there's no room for a new one."""
        if self._count < self._capacity or key in self._shard(key) or self._made_room(now):
            return key
        return _OVERFLOW

    def _made_room(self, now: Instant) -> bool:
        """Drop one record whose allowance is whole again, if a short search finds one. Each resumes the last search."""
        for _ in range(_SEARCHED):
            shard = self._shards[self._searched % len(self._shards)]
            self._searched += 1
            for candidate in list(islice(shard, _SEARCHED)):
                if max(shard[candidate]) <= now:
                    del shard[candidate]
                    self._count -= 1
                    return True
        return False


# An address with its scope takes at most 60 characters; longer text isn't one.
_MAX_KEY: Final = 64
# A site gets at least a /64 (RFC 6177 §2), so all its 2**64 addresses are one peer.
_PREFIX: Final = 64


def peer_key(address: str) -> str:
    """Return the limiter's key for a peer: its IPv4 address, its IPv6 /64, or the text if it isn't an address.

    All peers with an unknown address (`""`) share one key. IPv4-mapped addresses are unmapped first. A link-local
    address isn't shortened, and keeps its scope.
    """
    return _peer_key(address[:_MAX_KEY])


def _read_peer_key(address: str) -> str:
    parsed = read_address(address)
    if parsed is None:
        return address or "unknown"
    if isinstance(parsed, IPv4Address) or parsed.is_link_local:
        return str(parsed)
    return str(IPv6Network((int(parsed) >> _PREFIX << _PREFIX, _PREFIX)))


# Parsing an address takes 3 µs; a server talks to few peers at a time.
_peer_key: Callable[[str], str] = lru_cache(maxsize=1024)(_read_peer_key)


def is_address(peer: str) -> bool:
    """Whether `peer` is an IP address that a host can have.

    Callers without one (UNIX sockets, ASGI's `client: None`) can't be told apart.
    """
    return len(peer) <= _MAX_KEY and _is_address(peer)


@lru_cache(maxsize=1024)
def _is_address(peer: str) -> bool:
    address = read_address(peer)
    return address is not None and not address.is_unspecified
