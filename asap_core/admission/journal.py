"""What must be on disk before a caller can know of it, and what the next process makes of what it finds.

Pure: it says which records to write and when they count; whoever has the file writes and syncs them. The order for each
question: the record of `before` is on disk, `promised` says so, `ask` answers, the record of `after` is on disk.
"""

from typing import Final

from attrs import evolve, frozen

from asap_core.admission.admission import Admitted, Answer, LocalAdmission, Question, Reservation
from asap_core.admission.policy import Policy
from asap_core.admission.replay import StartPolicy
from asap_core.admission.state_file import (
    Identity,
    identity,
    lease,
    read_state,
    reserved,
    snapshot,
    state_file,
)
from asap_core.clock import Instant, Moment, WallTime
from asap_core.errors import BadState

# A lease is a sync; one every five seconds is no load, and five seconds of refusals after a crash are soon over.
_LEASE_SECONDS: Final = 5.0


@frozen
class Promise:
    """A lease to be written: nothing dated after `until` is accepted before there's another one on disk."""

    until: WallTime
    record: bytes


class Ledger:
    """Admission in memory, and the records that no crash may lose. Made by `begin`."""

    def __init__(self, who: Identity, local: LocalAdmission, leased: WallTime | None) -> None:
        self._identity = who
        self._local = local
        # What is on disk, and what may be: a file that's written meanwhile must not have less than was promised.
        self._leased = leased
        self._written = leased

    @classmethod
    def begin(cls, data: bytes | None, *, agent_id: str, policy: Policy, key: bytes, at: Moment) -> "Ledger":
        """Take over what a state file says, or begin anew where there's none; `key` is a new secret for that.

        Raises `BadState` where it isn't this agent's, or can't be used. Before the first question `whole` must be on
        disk: else a crash would bring an old snapshot back.
        """
        if data is None:
            who = Identity(agent_id, key, policy.max_age, policy.skew)
            local = LocalAdmission.of(policy, key=key, wall=at.wall)
            # Before it had a file, the agent may have run without one: what policy refuses after a start stays refused.
            return cls(who, local, local.floor)
        found = read_state(data)
        _check(found.identity, agent_id, policy)
        # The file knows better than any rule for starts without one.
        known = evolve(policy, start=StartPolicy.OPEN)
        local = LocalAdmission.of(known, key=found.identity.key, wall=at.wall)
        # Of what was reserved nobody knows for how long yet: the time in between counts as none.
        kept = (
            found.kept
            if found.guard is not None
            else [evolve(one, seconds=policy.idempotency_ttl) for one in found.kept]
        )
        try:
            local.restore(found.guard, kept, floor=found.leased, now=at.now)
        except ValueError as error:
            raise BadState(str(error)) from None
        return cls(found.identity, local, found.leased)

    # --- a question --------------------------------------------------------------------------------------------------

    def before(self, question: Question) -> Promise | None:
        """What must be on disk before this question is asked: None where a lease covers its date."""
        if self._leased is not None and question.issued <= self._leased:
            return None
        until = WallTime(question.issued + _LEASE_SECONDS)
        self._written = WallTime(max(until, self._written or until))
        return Promise(until, lease(until))

    def promised(self, promise: Promise) -> None:
        """It's on disk."""
        self._leased = WallTime(max(promise.until, self._leased or promise.until))

    def ask(self, question: Question, *, at: Moment) -> Answer:
        """Answer it, and remember what follows."""
        return self._local.ask(question, at=at)

    def after(self, question: Question, answer: Answer) -> bytes | None:
        """What must be on disk before this answer counts: the key, where work under one begins."""
        if isinstance(answer, Admitted) and answer.reservation is not None:
            return reserved(answer.reservation.key, question.digest)
        return None

    def record(self, reservation: Reservation, outcome: object, *, size: int, now: Instant) -> None:
        """Keep an answer, in memory: on disk its key is kept from a second run already."""
        self._local.record(reservation, outcome, size=size, now=now)

    def lose(self, reservation: Reservation, *, now: Instant) -> None:
        """The work was cut off midway."""
        self._local.lose(reservation, now=now)

    def give_back(self, reservation: Reservation, *, now: Instant) -> None:
        """The work never began."""
        self._local.give_back(reservation, now=now)

    # --- whole files -------------------------------------------------------------------------------------------------

    def whole(self, *, now: Instant) -> bytes:
        """A file that says what all records up to now say: the lease, and every key that counts still."""
        kept = self._local.snapshot_of_keys(now=now)
        return state_file([*self._head(), *(reserved(one.key, one.digest) for one in kept)])

    def final(self, *, now: Instant) -> bytes:
        """The file of an orderly end: all that's remembered."""
        guard, kept = self._local.snapshot(now=now)
        return state_file([*self._head(), snapshot(guard, kept)])

    def _head(self) -> list[bytes]:
        return [identity(self._identity), *([] if self._written is None else [lease(self._written)])]


def _check(who: Identity, agent_id: str, policy: Policy) -> None:
    if who.agent_id != agent_id:
        raise BadState(f"expected the state of {agent_id}; it's that of another agent")
    if (who.max_age, who.skew) != (policy.max_age, policy.skew):
        raise BadState(f"expected the state of an agent with max_age={policy.max_age}, skew={policy.skew}")
