"""The replay guard: no nonce is accepted twice, whatever the wall clock does, at a constant cost per request.

Law 1: (sender, nonce, issued) is `Fresh` at most once in the life of a guard.

Law 2: (sender, nonce) is `Fresh` at most once within `max_age + skew` seconds of monotonic time.

How it works: a nonce is *live* for `max_age + skew` seconds after it arrived. When it expires, the *floor* of its
sender rises to the timestamp that it carried, and what is dated at or below the floor is refused from then on. So an
expired nonce can't be replayed even if the wall clock is set back. While clocks run steadily no honest request meets
the floor, since it's older than the whole window.

Cost: there's no sweep. Each call removes up to two expired entries and adds one. Digests are spread over 256 dicts,
since a single one stalls for 188 ms when it grows. The queue of entries by age is packed into byte arrays, which the
garbage collector doesn't scan.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from hashlib import sha256
from heapq import heappop, heappush
from struct import Struct, error as struct_error
from typing import Any, Final

from attrs import define, frozen

from asap_core.clock import Instant, Moment, WallTime
from asap_core.wire.json import read_json, write_json


class StartPolicy(Enum):
    """What is refused after a start without memory of the process before it.

    All three assume that the wall clock wasn't set back across the restart.
    """

    EXACT = "exact"
    """Everything dated up to `skew` after the start: requests of the first half minute are refused, and no envelope is
    accepted twice."""
    FLOOR = "floor"
    """Everything dated at or before the start. An envelope dated ahead, by up to `skew`, that was accepted just before
    a crash may be accepted once more."""
    OPEN = "open"
    """Nothing. Envelopes that were accepted before the start may be accepted once more."""


@frozen
class Fresh:
    """Not seen before; remembered from now on."""


@frozen
class Replayed:
    """Seen before."""


@frozen
class Saturated:
    """No room to remember another nonce; in `retry_after` seconds there may be."""

    retry_after: float


@frozen
class Floored:
    """Dated at or below the floor; a request with a new timestamp passes in `retry_after` seconds."""

    retry_after: float


NonceVerdict = Fresh | Replayed | Saturated | Floored
_FRESH: Final = Fresh()
_REPLAYED: Final = Replayed()

# 120 bits: a chance of 1e-30 per call that a fresh nonce collides with one of a million. A 15-byte `bytes` takes 48
# bytes of memory, a 16-byte one 64.
_DIGEST: Final = 15
# A digest's first byte chooses its shard. A million entries make 4,000 to a shard, whose growth takes 0.2 ms. Of 4,096
# shards the own fields don't stay in the processor's cache, so that a call takes 0.5 µs more.
_SHARDS: Final = 256
# An entry of the queue: digest, arrival (monotonic), the timestamp that it carried, the index of its sender.
_Entry = tuple[bytes, Instant, WallTime, int]
_ENTRY: Final = Struct(f"={_DIGEST}sddI")
_SIZE: Final = _ENTRY.size
_pack = _ENTRY.pack
# Bytes of one block of the queue, 1,024 entries: the queue grows and shrinks by 35 KB.
_BLOCK: Final = 1024 * _SIZE
# Two are removed for each one added, so that a backlog after a quiet time shrinks with every call.
_FORGOTTEN_PER_CALL: Final = 2
# Expired entries that are held back after the wall clock was set back: 20 s at 3,000 per second.
_MAX_HELD_BACK: Final = 65_536
# Senders without live nonces whose floors are remembered one by one, some 200 bytes each.
_MAX_IDLE_SENDERS: Final = 65_536
_NEVER: Final = WallTime(float("-inf"))
_NOTHING_DUE: Final = float("inf")
# The shortest `retry_after`. When one sender's own nonces expire isn't indexed, so this is also the hint for that.
_LEAST_WAIT: Final = 1.0


@define(eq=False)
class _Sender:
    """A sender: its index, how many live nonces it has and may have, and its floor.

    `name` is None for all anonymous senders together.
    """

    name: str | None
    index: int
    capacity: int
    live: int = 0
    floor: WallTime = _NEVER


class ReplayGuard:
    """Remembers the nonces of the last `max_age + skew` seconds.

    key: a secret of at least 16 bytes. Digests are keyed with it, so that nobody can choose nonces that collide.
    capacity: the largest number of live nonces.
    per_sender: the largest number of live nonces of one authenticated sender. Anonymous senders, whose names prove
    nothing, share one floor and half of `capacity`.
    start: what is refused at first; `wall` is the time of the start.
    """

    def __init__(
        self,
        *,
        key: bytes,
        max_age: float,
        skew: float,
        capacity: int,
        per_sender: int,
        start: StartPolicy,
        wall: WallTime,
    ) -> None:
        # An anonymous request that names alice as its sender must not use up the nonces of the authenticated alice.
        self._seeds = (sha256(key + b"anonymous:"), sha256(key + b"proven:"))
        self._max_age = max_age
        self._keep = max_age + skew
        self._capacity = capacity
        self._per_sender = per_sender
        self._shards: list[dict[bytes, None]] = [{} for _ in range(_SHARDS)]
        # Live nonces, oldest first: `_oldest`, the rest of its block, then the blocks of the queue. The last block is
        # being filled. Without live nonces `_next_due` is `_NOTHING_DUE`, and `_oldest` doesn't count.
        self._oldest: _Entry
        self._rest: Iterator[_Entry] = iter(())
        self._queue = deque([bytearray()])
        self._next_due: float = _NOTHING_DUE
        self._held_back: list[tuple[WallTime, bytes, int]] = []
        self._live = 0
        self._anonymous = _Sender(None, 0, capacity // 2)
        self._senders: dict[str, _Sender] = {}
        # Not a plain dict: removing from its front leaves holes, which every search for its first key passes over.
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._senders_by_index: list[_Sender] = [self._anonymous]
        self._free_indexes: list[int] = []
        self._floor = _start_floor(start, wall=wall, skew=skew)

    def __len__(self) -> int:
        """Return the number of live nonces."""
        return self._live

    # Positional parameters: Python 3.11 enters a function with keyword-only ones the slow way.
    def admit(
        self,
        sender: str,
        nonce: str,
        authenticated: bool,  # noqa: FBT001 - as above
        issued: WallTime,
        at: Moment,
    ) -> NonceVerdict:
        """Judge one nonce, and remember it if it's fresh. Never raises, whatever the strings.

        issued: the timestamp that the envelope carries. The caller has checked that it's within the window.
        """
        now, wall = at.now, at.wall
        if now >= self._next_due or self._held_back:
            self._forget(now, wall)
        known = self._senders.get(sender) if authenticated else self._anonymous
        digest = self._digest(sender, nonce, authenticated)
        shard = self._shards[digest[0]]
        if digest in shard:
            return _REPLAYED
        floor = self._floor if known is None or known.floor < self._floor else known.floor
        if issued <= floor:
            # A timestamp of now passes once `wall` is above the floor; the margin is for the sender's own clock.
            return Floored(max(floor - wall, 0.0) + _LEAST_WAIT)
        if self._live >= self._capacity or (known is not None and known.live >= known.capacity):
            return Saturated(max(self._next_due - now, _LEAST_WAIT))
        self._remember(digest, known or self._new_sender(sender), issued, now)
        shard[digest] = None
        return _FRESH

    def _digest(self, sender: str, nonce: str, authenticated: bool) -> bytes:  # noqa: FBT001 - an index, on a hot path
        # SHA-256 with a secret prefix is a sufficient keyed function here: no digest is ever shown, so none can be
        # extended. The length keeps two pairs whose texts concatenate to the same from being one.
        digest = self._seeds[authenticated].copy()
        digest.update(f"{len(sender)}:{sender}{nonce}".encode("utf-8", "surrogatepass"))
        return digest.digest()[:_DIGEST]

    def _remember(self, digest: bytes, sender: _Sender, issued: WallTime, now: Instant) -> None:
        block = self._queue[-1]
        if len(block) >= _BLOCK:
            block = bytearray()
            self._queue.append(block)
        block += _pack(digest, now, issued, sender.index)
        if sender.live == 0:
            self._idle.pop(sender.name or "", None)
        sender.live += 1
        self._live += 1
        if self._next_due == _NOTHING_DUE:
            self._advance()

    # --- across restarts ---------------------------------------------------------------------------------------------

    def snapshot(self, *, now: Instant) -> bytes:
        """Return everything that is remembered, for `restore` in another process, whose monotonic clock differs."""
        head = {
            "floor": _jsonable(self._floor),
            "anonymous": _jsonable(self._anonymous.floor),
            "senders": [[sender.name, sender.index, _jsonable(sender.floor)] for sender in self._senders.values()],
            "held_back": [[issued, digest.hex(), index] for issued, digest, index in self._held_back],
        }
        text = write_json(head)
        parts = [len(text).to_bytes(4, "big"), text]
        # Ages instead of arrivals. The time between two processes doesn't count, so no nonce expires earlier.
        parts += [_pack(digest, now - arrived, issued, index) for digest, arrived, issued, index in self._entries()]
        return b"".join(parts)

    def _entries(self) -> Iterator[_Entry]:
        """Yield all entries, oldest first."""
        if self._next_due == _NOTHING_DUE:
            return
        rest = tuple(self._rest)
        self._rest = iter(rest)
        yield self._oldest
        yield from rest
        for block in self._queue:
            yield from _ENTRY.iter_unpack(block)

    def restore(self, data: bytes, *, now: Instant) -> None:
        """Take over the snapshot of a guard with the same key and window. This one must be new.

        Raises ValueError if `data` isn't a snapshot; the guard can't be used then.
        """
        try:
            size = int.from_bytes(data[:4], "big")
            head: Any = read_json(data[4 : 4 + size])
            self._floor = max(self._floor, _floor_of(head["floor"]))
            self._anonymous.floor = _floor_of(head["anonymous"])
            by_index = {0: self._anonymous}
            for name, index, floor in head["senders"]:
                by_index[index] = sender = self._new_sender(name)
                sender.floor = _floor_of(floor)
            for digest, age, issued, index in _ENTRY.iter_unpack(data[4 + size :]):
                self._remember(digest, by_index[index], WallTime(issued), Instant(now - age))
                self._shards[digest[0]][digest] = None
            for issued, digest, index in head["held_back"]:
                self._restore_held_back(by_index[index], bytes.fromhex(digest), WallTime(issued))
        except (ValueError, LookupError, TypeError, struct_error) as error:
            raise ValueError("expected a snapshot of a replay guard") from error
        for sender in self._senders.values():
            if sender.live == 0:
                self._idle[sender.name or ""] = None

    def _restore_held_back(self, sender: _Sender, digest: bytes, issued: WallTime) -> None:
        heappush(self._held_back, (issued, digest, sender.index))
        self._shards[digest[0]][digest] = None
        sender.live += 1
        self._live += 1

    @property
    def floor(self) -> WallTime | None:
        """The floor for all senders: what is dated at or before it is refused. None if nothing is."""
        return None if self._floor == _NEVER else self._floor

    def raise_floor(self, floor: WallTime) -> None:
        """Refuse everything dated at or before `floor` from now on, since it may have been accepted and forgotten."""
        self._floor = max(self._floor, floor)

    # --- expiry ------------------------------------------------------------------------------------------------------

    def _forget(self, now: Instant, wall: WallTime) -> None:
        forgotten = 0
        while now >= self._next_due and forgotten < _FORGOTTEN_PER_CALL:
            digest, _, issued, index = self._oldest
            self._advance()
            if wall > issued + self._max_age:
                self._drop(issued, digest, index)
            else:
                self._hold_back(issued, digest, index)
            forgotten += 1
        while self._held_back and wall > self._held_back[0][0] + self._max_age and forgotten < 2 * _FORGOTTEN_PER_CALL:
            self._drop(*heappop(self._held_back))
            forgotten += 1

    def _advance(self) -> None:
        """Make the next entry in the queue the oldest."""
        oldest = next(self._rest, None)
        if oldest is None:
            self._rest = _ENTRY.iter_unpack(self._queue.popleft())
            if not self._queue:
                self._queue.append(bytearray())
            oldest = next(self._rest, None)
        if oldest is None:
            self._next_due = _NOTHING_DUE
        else:
            self._oldest = oldest
            self._next_due = oldest[1] + self._keep

    def _hold_back(self, issued: WallTime, digest: bytes, index: int) -> None:
        """Keep an expired entry whose timestamp is still in the window, because the wall clock was set back.

        Otherwise the floor would rise to it and refuse its honest sender for as long as the clock was set back.
        """
        heappush(self._held_back, (issued, digest, index))
        if len(self._held_back) > _MAX_HELD_BACK:
            self._drop(*heappop(self._held_back))

    def _drop(self, issued: WallTime, digest: bytes, index: int) -> None:
        del self._shards[digest[0]][digest]
        sender = self._senders_by_index[index]
        if issued > sender.floor:  # noqa: PLR1730 - `max` takes three times as long
            sender.floor = issued
        sender.live -= 1
        self._live -= 1
        if sender.live == 0 and sender.name is not None:
            self._mark_idle(sender.name)

    def _mark_idle(self, name: str) -> None:
        """Remember the floor of an idle sender; if there are too many, raise everybody's to the longest idle one's."""
        self._idle[name] = None
        if len(self._idle) > _MAX_IDLE_SENDERS:
            oldest, _ = self._idle.popitem(last=False)
            gone = self._senders.pop(oldest)
            self._free_indexes.append(gone.index)
            self._floor = WallTime(max(self._floor, gone.floor))

    def _new_sender(self, name: str) -> _Sender:
        index = self._free_indexes.pop() if self._free_indexes else len(self._senders_by_index)
        sender = _Sender(name, index, self._per_sender)
        if index == len(self._senders_by_index):
            self._senders_by_index.append(sender)
        else:
            self._senders_by_index[index] = sender
        self._senders[name] = sender
        return sender


def _jsonable(floor: float) -> float | None:
    return None if floor == _NEVER else floor


def _floor_of(value: float | None) -> WallTime:
    return _NEVER if value is None else WallTime(float(value))


def _start_floor(start: StartPolicy, *, wall: WallTime, skew: float) -> WallTime:
    floors: dict[StartPolicy, Callable[[], float]] = {
        StartPolicy.EXACT: lambda: wall + skew,
        StartPolicy.FLOOR: lambda: wall,
        StartPolicy.OPEN: lambda: _NEVER,
    }
    return WallTime(floors[start]())
