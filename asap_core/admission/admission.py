"""Admission: one atomic decision whether a request is new, by its idempotency key and its nonce.

Rule 1: the idempotency key is looked up first, since a retry isn't a replay.

Rule 2: only a request whose key is unknown claims its nonce.

Rule 3: only a request that claimed its nonce reserves its key.

`LocalAdmission` answers from this process's memory. Stores that processes share answer with the same types
(`asap_core.admission.redis`).
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, assert_never

from attrs import field

from asap_core.admission.idempotency import Finished, Free, Gone, IdempotencyTable, KeyReused, Lost, SavedKey, Working
from asap_core.admission.policy import Policy
from asap_core.admission.replay import Floored, Fresh, Replayed, ReplayGuard, Saturated
from asap_core.clock import Instant, Moment, WallTime
from asap_core.request_values import frozen


@frozen
class AdmissionQuestion:
    """Everything that admission depends on.

    peer: the caller's address, within which the idempotency keys of anonymous callers are unique.
    nonce: None if policy asks for none.
    digest: a digest of what is asked, without timestamp and nonce, which a retry renews.
    deadline: how long the work may take, in seconds.
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
    """An idempotency key held for one request, until its answer is recorded, lost, or the key given back."""

    key: bytes = field(repr=False)


@frozen
class Admitted:
    """The request is new. `reservation` is None if it has no idempotency key."""

    reservation: Reservation | None


_ADMITTED: Final = Admitted(None)


@frozen
class Stored:
    """The same was asked before, and this was the outcome."""

    outcome: object


@frozen
class Running:
    """The same was asked before, and the work is still running.

    retry_after: seconds until asking again is worthwhile.
    ticket: identifies the work if this process does it; `LocalAdmission.take_wakes` returns it when the work has ended.
    """

    retry_after: float
    ticket: bytes | None = field(default=None, repr=False, eq=False)


@frozen
class Mismatch:
    """Something else was asked under the same idempotency key."""


@frozen
class OutcomeUnknown:
    """The same was asked before, and the work was cut off: nobody knows whether it was done."""


@frozen
class AnswerGone:
    """The same was asked before and answered, and the answer is no longer kept."""


@frozen
class Stale:
    """The timestamp is too old by the store's own clock, which shows `wall`."""

    wall: WallTime


@frozen
class Future:
    """The timestamp is too far ahead by the store's own clock, which shows `wall`."""

    wall: WallTime


@frozen
class StoreUnavailable:
    """The store can't be reached, so nothing is admitted; try again in `retry_after` seconds."""

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
"""The answers to a request without an idempotency key."""

# Seconds: long enough that polling isn't a load, short enough that nobody waits long after the work is done.
ASK_AGAIN: Final = 0.5

# Bytes of a scoped key: 128 bits, so that no two of a hundred thousand collide.
_KEY: Final = 16


def key_hash(secret: bytes) -> blake2b:
    """Return the keyed hash of `scoped_key`. To copy it takes a third of the time of making it."""
    return blake2b(key=secret, digest_size=_KEY)


def scoped_key(question: AdmissionQuestion, key: str, secret: blake2b) -> bytes:
    """Return the 16 bytes by which an idempotency key is remembered. The same key of another caller gives others.

    secret: from `key_hash`; it isn't changed.
    """
    # Anonymous callers can claim any sender, so their addresses tell them apart.
    peer = "" if question.authenticated else question.peer
    # The lengths keep two scopes whose texts concatenate to the same from being one.
    scope = f"{question.authenticated:d}{len(peer)}:{peer}{len(question.sender)}:{question.sender}{key}"
    digest = secret.copy()
    digest.update(scope.encode("utf-8", "surrogatepass"))
    return digest.digest()


class LocalAdmission:
    """Admission in this process's memory: a replay guard and a table of idempotency keys. One event loop owns it."""

    def __init__(self, *, guard: ReplayGuard, table: IdempotencyTable, key: bytes) -> None:
        self._guard = guard
        self._table = table
        self._key_hash = key_hash(key)
        # How many calls wait for each key's work to end, and the keys among them whose work has ended.
        self._held: dict[bytes, int] = {}
        self._wakes: dict[bytes, None] = {}

    @classmethod
    def of(cls, policy: Policy, *, key: bytes, wall: WallTime) -> "LocalAdmission":
        """Make one with the bounds of `policy` and an empty memory. `key` is the secret of all digests."""
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

    def ask(self, question: AdmissionQuestion, at: Moment) -> AdmissionAnswer:
        """Answer one question, and remember its nonce and key if it's admitted."""
        if question.idempotency_key is None:
            return self._claim(question, at)
        key = scoped_key(question, question.idempotency_key, self._key_hash)
        found = self._table.find(key, question.digest, at.now)
        if not isinstance(found, Free):
            return self._what_is_known(found, key)
        if not self._table.room():
            return Saturated(self._table.until_room(at.now))
        claimed = self._claim(question, at)
        if claimed is not _ADMITTED:
            return claimed
        owner = question.sender if question.authenticated else ""
        self._table.begin(key, question.digest, question.deadline, at.now, owner)
        return Admitted(Reservation(key))

    def _what_is_known(
        self, found: Working | Finished | Gone | Lost | KeyReused, key: bytes
    ) -> Running | Stored | AnswerGone | OutcomeUnknown | Mismatch:
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
        return self.claim(question.sender, question.authenticated, question.nonce, question.issued, at)

    def claim(
        self,
        sender: str,
        authenticated: bool,  # noqa: FBT001 - positional, as in ReplayGuard.admit
        nonce: str | None,
        issued: WallTime,
        at: Moment,
    ) -> "ClaimAnswer":
        """Claim the nonce of a request without an idempotency key."""
        if nonce is None:
            return _ADMITTED
        verdict = self._guard.admit(sender, nonce, authenticated, issued, at)
        return _ADMITTED if isinstance(verdict, Fresh) else verdict

    def record(self, reservation: Reservation, outcome: object, *, size: int, now: Instant) -> None:
        """Keep the outcome for retries; it counts for `size` bytes."""
        self._table.finish(reservation.key, outcome, size=size, now=now)
        self._wake(reservation.key)

    def lose(self, reservation: Reservation, *, now: Instant) -> None:
        """Note that the handler was cut off: the key answers `OutcomeUnknown` from now on."""
        self._table.lose(reservation.key, now=now)
        self._wake(reservation.key)

    def give_back(self, reservation: Reservation, *, now: Instant) -> None:
        """Free the key, since the handler never ran. The nonce stays used: it may be fresh only once."""
        del now
        self._table.free(reservation.key)
        self._wake(reservation.key)

    # --- across restarts ---------------------------------------------------------------------------------------------

    @property
    def floor(self) -> WallTime | None:
        """What is dated at or before it is refused from every sender. None if nothing is."""
        return self._guard.floor

    def snapshot(self, *, now: Instant) -> tuple[bytes, tuple[SavedKey, ...]]:
        """Return everything that is remembered: the guard's snapshot, and the keys with their answers."""
        return self._guard.snapshot(now=now), self._table.export(now=now)

    def snapshot_of_keys(self, *, now: Instant) -> tuple[SavedKey, ...]:
        """Return the keys with their answers."""
        return self._table.export(now=now)

    def restore(self, guard: bytes | None, kept: Iterable[SavedKey], *, floor: WallTime | None, now: Instant) -> None:
        """Take over what another process remembered.

        floor: used if `guard` is None: the latest timestamp that the other process may have accepted.

        Raises ValueError if `guard` isn't a snapshot.
        """
        if guard is not None:
            self._guard.restore(guard, now=now)
        elif floor is not None:
            self._guard.raise_floor(floor)
        for one in kept:
            self._table.load(one, now=now)

    # --- calls that wait for running work ----------------------------------------------------------------------------

    def hold(self, ticket: bytes) -> None:
        """Count one more call that waits for this work to end."""
        self._held[ticket] = self._held.get(ticket, 0) + 1

    def let_go(self, ticket: bytes) -> None:
        """Count one call less."""
        left = self._held.pop(ticket) - 1
        if left:
            self._held[ticket] = left
        else:
            self._wakes.pop(ticket, None)

    def take_wakes(self) -> tuple[bytes, ...]:
        """Return the held tickets whose work has ended since the last call."""
        wakes, self._wakes = tuple(self._wakes), {}
        return wakes

    def _wake(self, key: bytes) -> None:
        if key in self._held:
            self._wakes[key] = None
