"""Idempotency keys and their outcomes: a retry gets the first answer, and the work is done once.

    free ─▶ WORKING ─▶ FINISHED ─▶ GONE      finish; then `max_bytes` is exceeded and the answer dropped
               ├─────▶ LOST                  lose; or the deadline has passed without a result
               └─────▶ free                  the work never began

A key is free again `ttl` seconds after its work ended, whatever came of it. Keys in `GONE` are tombstones: they take no
bytes of answers, and still keep the work from being done again.
"""

from collections import OrderedDict
from enum import Enum
from typing import Final, assert_never, cast

from attrs import define, field, frozen

from asap_core.clock import Instant


class _State(Enum):
    """The state of the work under a key."""

    WORKING = "working"
    FINISHED = "finished"
    GONE = "gone"
    LOST = "lost"


@frozen
class Free:
    """The key is unknown. Next: `begin`."""


@frozen
class Working:
    """The first request is still running, for at most `seconds` more. Next: Finished, Lost or Free."""

    seconds: float


@frozen
class Finished:
    """The work is done, and this was its answer. Next: Gone or Free."""

    answer: object


@frozen
class Gone:
    """The work is done, and its answer is no longer kept. Next: Free."""


@frozen
class Lost:
    """The work was cut off: nobody knows whether it was done. Next: Free."""


@frozen
class KeyReused:
    """Something else was asked under this key."""


KeyStatus = Free | Working | Finished | Gone | Lost | KeyReused
_FREE: Final = Free()
# Seconds after its deadline within which the end of a handler must be reported; then its outcome counts as unknown.
GRACE: Final = 5.0
# Expired entries removed per call: two for each one added, so that a backlog shrinks with every call.
_EXPIRED_PER_CALL: Final = 2


@frozen
class SavedKey:
    """A key as it's saved for the next process.

    digest: of what was asked.
    size: bytes that the answer counts for.
    seconds: how long the key is still remembered.
    answered: if False, `answer` is None and the outcome is unknown.
    """

    key: bytes
    digest: bytes
    answer: object = field(repr=False)
    size: int
    seconds: float
    answered: bool


@define(eq=False)
class _Entry:
    digest: bytes
    state: _State
    until: Instant
    owner: str = ""
    answer: object = field(default=None, repr=False)
    size: int = 0


@define(eq=False)
class _Share:
    """The answers of one owner, oldest first, and their total size."""

    answers: OrderedDict[bytes, None] = field(factory=OrderedDict)
    size: int = 0


class IdempotencyTable:
    """Idempotency keys with their outcomes.

    ttl: seconds for which a key is remembered after its work has ended.
    max_entries: the largest number of keys.
    max_bytes: the largest total size of answers. Past it the oldest answer is dropped or, if the owner whose work just
    ended has more than half of all bytes, the oldest of that owner: so one caller's large answers push out its own.

    Keys are opaque and already scoped by caller.
    """

    def __init__(self, *, ttl: float, max_entries: int, max_bytes: int) -> None:
        self._ttl = ttl
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._answers: OrderedDict[bytes, None] = OrderedDict()
        self._shares: dict[str, _Share] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._entries)

    @property
    def size(self) -> int:
        """The total size of the kept answers in bytes."""
        return self._bytes

    def find(self, key: bytes, digest: bytes, now: Instant) -> KeyStatus:
        """Return the status of a key, for a request with this `digest`."""
        self._expire(now)
        entry = self._entries.get(key)
        # Entries are removed in order, so an expired one behind a longer-lived one may still be in the table.
        if entry is None or (entry.until <= now and entry.state is not _State.WORKING):
            return _FREE
        if entry.digest != digest:
            return KeyReused()
        match entry.state:
            case _State.WORKING:
                return Working(entry.until - now) if now < entry.until else Lost()
            case _State.FINISHED:
                return Finished(entry.answer)
            case _State.GONE:
                return Gone()
            case _State.LOST:
                return Lost()
            case _:
                assert_never(entry.state)

    def room(self) -> bool:
        """Whether there's room for another key."""
        return len(self._entries) < self._max_entries

    def until_room(self, now: Instant) -> float:
        """Return the seconds until the oldest entry expires, at least 1 if there's one."""
        oldest = next(iter(self._entries.values()), None)
        return 0.0 if oldest is None else max(oldest.until + self._ttl - now, 1.0)

    def begin(self, key: bytes, digest: bytes, deadline: float, now: Instant, owner: str = "") -> None:
        """Reserve a key, since its work begins. The caller has checked that it's free and that there's room.

        deadline: how long the work may take, in seconds.
        owner: the authenticated sender; all anonymous senders are one owner, "".
        """
        self._forget(key)
        until = cast("Instant", now + deadline + GRACE)  # a third of the time of a NewType's call
        self._entries[key] = _Entry(digest, _State.WORKING, until, owner)

    def finish(self, key: bytes, answer: object, *, size: int, now: Instant) -> None:
        """Keep the answer of finished work, which counts for `size` bytes."""
        entry = self._entries.get(key)
        if entry is None:
            return
        self._settle(key, entry, _State.FINISHED, now)
        self._let_go(key, entry)
        share = self._shares.setdefault(entry.owner, _Share())
        entry.answer, entry.size = answer, size
        self._answers[key] = share.answers[key] = None
        self._bytes += size
        share.size += size
        while self._bytes > self._max_bytes:
            self._bury(next(iter(share.answers if share.size > self._max_bytes // 2 else self._answers)))

    def lose(self, key: bytes, *, now: Instant) -> None:
        """Note that the work was cut off."""
        entry = self._entries.get(key)
        if entry is not None:
            self._settle(key, entry, _State.LOST, now)

    def free(self, key: bytes) -> None:
        """Forget the key, since its work never began."""
        self._forget(key)

    # --- across restarts ---------------------------------------------------------------------------------------------

    def export(self, *, now: Instant) -> tuple[SavedKey, ...]:
        """Return all keys that haven't expired, in the order in which they do. Running work counts as lost."""
        # The backlog of expired keys is left out: the next process would only load and forget them.
        return tuple(
            SavedKey(
                key, entry.digest, entry.answer, entry.size, self._over(entry) - now, entry.state is _State.FINISHED
            )
            for key, entry in self._entries.items()
            if now < self._over(entry)
        )

    def load(self, kept: SavedKey, *, now: Instant) -> None:
        """Remember a key that another process saved: with its answer or, if it has none, as lost."""
        self._forget(kept.key)
        self._entries[kept.key] = _Entry(kept.digest, _State.LOST, Instant(now + kept.seconds))
        if kept.answered:
            self.finish(kept.key, kept.answer, size=kept.size, now=now)
            self._entries[kept.key].until = Instant(now + kept.seconds)

    def _settle(self, key: bytes, entry: _Entry, state: _State, now: Instant) -> None:
        entry.state, entry.until = state, Instant(now + self._ttl)
        self._entries.move_to_end(key)

    def _bury(self, key: bytes) -> None:
        entry = self._entries[key]
        self._let_go(key, entry)
        entry.state = _State.GONE

    def _let_go(self, key: bytes, entry: _Entry) -> None:
        """Drop the entry's answer, if it has one."""
        if key not in self._answers:
            return
        share = self._shares[entry.owner]
        del self._answers[key], share.answers[key]
        self._bytes -= entry.size
        share.size -= entry.size
        entry.answer, entry.size = None, 0
        if not share.answers:
            del self._shares[entry.owner]

    def _forget(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._let_go(key, entry)

    def _expire(self, now: Instant) -> None:
        for _ in range(_EXPIRED_PER_CALL):
            key = next(iter(self._entries), None)
            if key is None:
                return
            entry = self._entries[key]
            # The first comparison decides for nearly all: what hasn't ended isn't over.
            if now < entry.until or now < self._over(entry):
                return
            self._forget(key)

    def _over(self, entry: _Entry) -> float:
        # Work whose end was never reported answers "lost" for as long as its answer would have been kept.
        return entry.until + (self._ttl if entry.state is _State.WORKING else 0.0)
