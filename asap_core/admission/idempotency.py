"""What was asked under a key, and what came of it: so that a retry gets the first answer and the work is done once.

A key is scoped by whoever asks. It is `Running` while its handler works, then its answer is kept until its time is
over; where room is short, the oldest finished answers become tombstones, which still keep the work from being done
again.
"""

from collections import OrderedDict
from enum import Enum
from typing import Any, Final, assert_never

from attrs import define, field, frozen

from asap_core.clock import Instant


class _State(Enum):
    """Where the work under a key is."""

    WORKING = "working"
    FINISHED = "finished"
    GONE = "gone"
    LOST = "lost"


@frozen
class Free:
    """Nobody has asked under this key."""


@frozen
class Working:
    """The first request is still running, for `seconds` more at most."""

    seconds: float


@frozen
class Finished:
    """It's done, and this was the answer."""

    answer: Any


@frozen
class Gone:
    """It's done; the answer is no longer kept."""


@frozen
class Lost:
    """It was cut off midway: nobody knows whether it was done."""


@frozen
class KeyReused:
    """Something else was asked under this key."""


KeyStatus = Free | Working | Finished | Gone | Lost | KeyReused
_FREE: Final = Free()
# After its deadline a handler that was killed has this long to be reported, before its outcome counts as unknown.
GRACE: Final = 5.0
# Entries whose time is over, looked at per call: two out for each one in.
_EXPIRED_PER_CALL: Final = 2


@frozen
class SavedKey:
    """A key as it's carried over a restart: what was asked, its answer if there's one, how long it counts still."""

    key: bytes
    digest: bytes
    answer: Any = field(repr=False)
    size: int
    seconds: float
    answered: bool


@define(eq=False)
class _Entry:
    digest: bytes
    state: _State
    until: Instant
    answer: Any = field(default=None, repr=False)
    size: int = 0
    owner: str = ""


@define(eq=False)
class _Share:
    """The answers of one owner, oldest first, and their bytes."""

    answers: OrderedDict[bytes, None] = field(factory=OrderedDict)
    size: int = 0


class IdempotencyTable:
    """Keys and what came of them, for `ttl` seconds, at most `max_entries` and `max_bytes` of answers.

    Keys are opaque strings, already scoped; the caller keeps them short. Short of bytes the oldest answer goes, or the
    oldest of the owner whose work just ended if it has more than half of them: one caller's large answers push out its
    own.
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
        """How many keys are remembered."""
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of answers kept."""
        return self._bytes

    def find(self, key: bytes, digest: bytes, *, now: Instant) -> KeyStatus:
        """What is known of this key, where `digest` stands for what is asked."""
        self._expire(now)
        entry = self._entries.get(key)
        # An entry that expires behind a longer-lived one is still in the table: its own time is what counts.
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
        """Whether another key can be remembered."""
        return len(self._entries) < self._max_entries

    def until_room(self, now: Instant) -> float:
        """How long until the oldest entry goes, in seconds."""
        oldest = next(iter(self._entries.values()), None)
        return 0.0 if oldest is None else max(oldest.until + self._ttl - now, 1.0)

    def begin(self, key: bytes, digest: bytes, *, deadline: float, now: Instant, owner: str = "") -> None:
        """The work begins; it takes `deadline` seconds at most. The caller has found the key free, and room.

        `owner` is who asks, as it's proven; all who prove nothing are one.
        """
        self._forget(key)
        self._entries[key] = _Entry(digest, _State.WORKING, Instant(now + deadline + GRACE), owner=owner)

    def finish(self, key: bytes, answer: Any, *, size: int, now: Instant) -> None:
        """The work is done: keep its answer, which counts for `size` bytes."""
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
        """The work was cut off midway."""
        entry = self._entries.get(key)
        if entry is not None:
            self._settle(key, entry, _State.LOST, now)

    def free(self, key: bytes) -> None:
        """The work never began: the key is as if nobody had asked."""
        self._forget(key)

    # --- across restarts ---------------------------------------------------------------------------------------------

    def export(self, *, now: Instant) -> tuple[SavedKey, ...]:
        """All keys that count still, in the order in which they end. What is running is lost by then."""
        # A backlog goes two a call, but what is over by then would be loaded and forgotten again: leave it here.
        return tuple(
            SavedKey(
                key, entry.digest, entry.answer, entry.size, self._over(entry) - now, entry.state is _State.FINISHED
            )
            for key, entry in self._entries.items()
            if now < self._over(entry)
        )

    def load(self, kept: SavedKey, *, now: Instant) -> None:
        """Remember a key of another process: with its answer, or as lost."""
        self._forget(kept.key)
        state = _State.FINISHED if kept.answered else _State.LOST
        self._entries[kept.key] = _Entry(kept.digest, state, Instant(now + kept.seconds))
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
        """Keep its answer no longer, if there's one."""
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
            key, entry = next(iter(self._entries.items()), (None, None))
            if key is None or entry is None or now < self._over(entry):
                return
            self._forget(key)

    def _over(self, entry: _Entry) -> float:
        # Work that was never reported answers "lost" for as long as an answer would have been kept.
        return entry.until + (self._ttl if entry.state is _State.WORKING else 0.0)
