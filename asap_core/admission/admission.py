"""Admission, one question asked atomically: was this asked before, and is its nonce new.

The idempotency key is asked first: a retry is not a replay. Only what is new claims a nonce, and only what claimed one
reserves its key. Whoever answers, these machines in memory or a store that many processes share, answers with the same
types.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final, assert_never

from attrs import field, frozen

from asap_core.admission.idempotency import Finished, Free, Gone, IdempotencyTable, KeyReused, Lost, SavedKey, Working
from asap_core.admission.policy import Policy
from asap_core.admission.replay import Floored, Fresh, Replayed, ReplayGuard, Saturated
from asap_core.clock import Instant, Moment, WallTime


@frozen(kw_only=True)
class AdmissionQuestion:
    """All that admission depends on.

    `nonce` is None where policy asks for none; `peer` scopes the keys of anonymous callers; `digest` stands for what is
    asked, not for how it's stamped; `deadline` is how many seconds the work may take.
    """

    sender: str
    authenticated: bool
    peer: str
    nonce: str | None = field(repr=False)
    issued: WallTime
    idempotency_key: str | None = field(repr=False)
    digest: bytes = field(repr=False)
    deadline: float


@frozen
class Reservation:
    """A key that is held for one request until its answer is recorded, lost, or given back."""

    key: bytes = field(repr=False)


@frozen
class Admitted:
    """New: go on. `reservation` is there where it has an idempotency key."""

    reservation: Reservation | None


_ADMITTED: Final = Admitted(None)


@frozen
class Stored:
    """Asked before and answered: this was the outcome."""

    outcome: Any


@frozen
class Running:
    """Asked before and still running; worth asking again in `retry_after` seconds.

    `ticket` is there where this process does the work: it then knows when it's over (`LocalAdmission.take_wakes`).
    """

    retry_after: float
    ticket: bytes | None = field(default=None, repr=False, eq=False)


@frozen
class Mismatch:
    """Something else was asked under this key."""


@frozen
class OutcomeUnknown:
    """Asked before and cut off midway."""


@frozen
class AnswerGone:
    """Asked before and answered; the answer is no longer kept."""


@frozen
class Stale:
    """Too old by the store's own clock, which says `wall`."""

    wall: WallTime


@frozen
class Future:
    """Too far ahead by the store's own clock, which says `wall`."""

    wall: WallTime


@frozen
class StoreUnavailable:
    """The store can't be reached; it may be in `retry_after` seconds. Nothing is admitted without it."""

    retry_after: float


AdmissionAnswer = (
    Admitted
    | Stored
    | Running
    | Mismatch
    | OutcomeUnknown
    | AnswerGone
    | Replayed
    | Saturated
    | Floored
    | Stale
    | Future
    | StoreUnavailable
)

ClaimAnswer = Admitted | Replayed | Saturated | Floored
"""What the question of a nonce alone is answered with."""

# Long enough that asking isn't a load, short enough that nobody waits long after the work is done.
ASK_AGAIN: Final = 0.5


_KEY: Final = 16


def scoped_key(question: AdmissionQuestion, key: str, secret: bytes) -> bytes:
    """What an idempotency key is remembered by: 16 bytes, within whoever asks."""
    # An anonymous sender's name is anybody's: its address tells one from another.
    peer = "" if question.authenticated else question.peer
    # Lengths, so that no two scopes run together.
    scope = f"{question.authenticated:d}{len(peer)}:{peer}{len(question.sender)}:{question.sender}{key}"
    return blake2b(scope.encode("utf-8", "surrogatepass"), key=secret, digest_size=_KEY).digest()


class LocalAdmission:
    """Answers from this process's memory."""

    def __init__(self, *, guard: ReplayGuard, table: IdempotencyTable, key: bytes) -> None:
        self._guard = guard
        self._table = table
        self._key = key
        # Keys whose end somebody waits for, with how many do; and those of them that have ended.
        self._held: dict[bytes, int] = {}
        self._wakes: dict[bytes, None] = {}

    @classmethod
    def of(cls, policy: Policy, *, key: bytes, wall: WallTime) -> "LocalAdmission":
        """Make it as policy says, with an empty memory."""
        guard = ReplayGuard(
            key=key,
            max_age=policy.max_age,
            skew=policy.skew,
            capacity=policy.nonce_capacity,
            per_sender=policy.nonces_per_sender,
            start=policy.start,
            wall=wall,
        )
        table = IdempotencyTable(
            ttl=policy.idempotency_ttl, max_entries=policy.idempotency_entries, max_bytes=policy.idempotency_bytes
        )
        return cls(guard=guard, table=table, key=key)

    def ask(self, question: AdmissionQuestion, *, at: Moment) -> AdmissionAnswer:
        """Answer one question, and remember what follows from the answer."""
        if question.idempotency_key is None:
            return self._claim(question, at)
        key = scoped_key(question, question.idempotency_key, self._key)
        known = self._what_is_known(key, question, at.now)
        if known is not None:
            return known
        if not self._table.room():
            return Saturated(self._table.until_room(at.now))
        claimed = self._claim(question, at)
        if claimed is not _ADMITTED:
            return claimed
        owner = question.sender if question.authenticated else ""
        self._table.begin(key, question.digest, deadline=question.deadline, now=at.now, owner=owner)
        return Admitted(Reservation(key))

    def _what_is_known(self, key: bytes, question: AdmissionQuestion, now: Instant) -> AdmissionAnswer | None:
        found = self._table.find(key, question.digest, now=now)
        if isinstance(found, Free):
            return None
        match found:
            case Working(seconds):
                return Running(min(seconds, ASK_AGAIN), key)
            case Finished(outcome):
                return Stored(outcome)
            case Gone():
                return AnswerGone()
            case Lost():
                return OutcomeUnknown()
            case KeyReused():
                return Mismatch()
            case _:
                assert_never(found)

    def _claim(self, question: AdmissionQuestion, at: Moment) -> "ClaimAnswer":
        return self.claim(question.sender, question.authenticated, question.nonce, question.issued, at=at)

    def claim(
        self,
        sender: str,
        authenticated: bool,  # noqa: FBT001 - as in Question
        nonce: str | None,
        issued: WallTime,
        *,
        at: Moment,
    ) -> "ClaimAnswer":
        """Answer the question of a request without an idempotency key: is its nonce new."""
        if nonce is None:
            return _ADMITTED
        verdict = self._guard.admit(sender, nonce, authenticated=authenticated, issued=issued, at=at)
        return _ADMITTED if isinstance(verdict, Fresh) else verdict

    def record(self, reservation: Reservation, outcome: object, *, size: int, now: Instant) -> None:
        """Keep what the handler answered, for whoever asks again."""
        self._table.finish(reservation.key, outcome, size=size, now=now)
        self._wake(reservation.key)

    def lose(self, reservation: Reservation, *, now: Instant) -> None:
        """The handler was killed midway: the key answers `OutcomeUnknown` from now on."""
        self._table.lose(reservation.key, now=now)
        self._wake(reservation.key)

    def give_back(self, reservation: Reservation, *, now: Instant) -> None:
        """The handler never ran: the key is free again. The nonce stays used: fresh at most once, ever."""
        del now
        self._table.free(reservation.key)
        self._wake(reservation.key)

    # --- across restarts ---------------------------------------------------------------------------------------------

    @property
    def floor(self) -> WallTime | None:
        """What's dated at or before it is refused from everybody; None where nothing is."""
        return self._guard.floor

    def snapshot(self, *, now: Instant) -> tuple[bytes, tuple[SavedKey, ...]]:
        """All that it remembers: the guard's, and the keys with their answers."""
        return self._guard.snapshot(now=now), self._table.export(now=now)

    def snapshot_of_keys(self, *, now: Instant) -> tuple[SavedKey, ...]:
        """The keys alone."""
        return self._table.export(now=now)

    def restore(self, guard: bytes | None, kept: Iterable[SavedKey], *, floor: WallTime | None, now: Instant) -> None:
        """Take over what another process remembered. Without a guard's snapshot `floor` stands for all it had accepted.

        Raises ValueError where `guard` isn't a snapshot.
        """
        if guard is not None:
            self._guard.restore(guard, now=now)
        elif floor is not None:
            self._guard.raise_floor(floor)
        for one in kept:
            self._table.load(one, now=now)

    # --- those who wait for work that is running ---------------------------------------------------------------------

    def hold(self, ticket: bytes) -> None:
        """One more waits for the end of this work."""
        self._held[ticket] = self._held.get(ticket, 0) + 1

    def let_go(self, ticket: bytes) -> None:
        """One less waits for it."""
        left = self._held.pop(ticket) - 1
        if left:
            self._held[ticket] = left
        else:
            self._wakes.pop(ticket, None)

    def take_wakes(self) -> tuple[bytes, ...]:
        """The tickets of work that has ended since it was asked last, of those that somebody holds."""
        wakes, self._wakes = tuple(self._wakes), {}
        return wakes

    def _wake(self, key: bytes) -> None:
        if key in self._held:
            self._wakes[key] = None
