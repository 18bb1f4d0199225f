"""Which records a state file needs before a caller learns an answer, and what the next process makes of them.

Pure: this module decides which records to write and when they count. A driver that owns the file writes and syncs them.

Rule: what was admitted is on disk before its caller can know. For each question the driver therefore

1. asks `lease_for`; if that returns a `Lease`, writes its record and then calls `leased`;
2. calls `ask`;
3. asks `reservation_record`; if that returns a record, writes it before it passes on the answer.

A lease covers every question dated up to its end, so most questions cost no write.
"""

from typing import Final

from attrs import evolve, frozen

from asap_core.admission.admission import AdmissionAnswer, AdmissionQuestion, Admitted, LocalAdmission, Reservation
from asap_core.admission.policy import Policy
from asap_core.admission.replay import StartPolicy
from asap_core.admission.state_file import (
    StateOwner,
    identity_record,
    lease_record,
    read_state,
    reservation_record,
    snapshot_record,
    write_state,
)
from asap_core.clock import Instant, Moment, WallTime
from asap_core.errors import BadState

# A lease costs one sync. One sync per five seconds is no load, and after a crash requests are refused for no longer.
_LEASE_SECONDS: Final = 5.0


@frozen
class Lease:
    """A lease to be written: until the next one is on disk, nothing dated after `until` is accepted."""

    until: WallTime
    record: bytes


class Journal:
    """Admission in memory, and the records that must survive a crash. Made by `begin`."""

    def __init__(self, owner: StateOwner, local: LocalAdmission, leased: WallTime | None) -> None:
        self._owner = owner
        self._local = local
        # The end of the lease that is certainly on disk, and of the one that may be. A file that is compacted between
        # the two must hold the later one.
        self._leased = leased
        self._written = leased

    @classmethod
    def begin(cls, data: bytes | None, *, agent_id: str, policy: Policy, key: bytes, at: Moment) -> "Journal":
        """Take over the state in `data`, or begin anew if `data` is None.

        key: a new random secret, used only if `data` is None.

        Write `compacted` to disk before the first question; otherwise a crash would bring an old snapshot back.
        Raises `BadState` if the file belongs to another agent, was written with another window, or is damaged.
        """
        if data is None:
            owner = StateOwner(agent_id, key, policy.max_age, policy.skew)
            local = LocalAdmission.of(policy, key=key, wall=at.wall)
            # The agent may have run without a file before: what `policy.start` refuses after a start stays refused.
            return cls(owner, local, local.floor)
        found = read_state(data)
        _check_owner(found.owner, agent_id, policy)
        # The file says what was accepted, so no rule for a start without memory is needed.
        known = evolve(policy, start=StartPolicy.OPEN)
        local = LocalAdmission.of(known, key=found.owner.key, wall=at.wall)
        # After a crash nobody knows how old a reservation is: it counts for the whole TTL from now.
        kept = (
            found.kept
            if found.guard is not None
            else [evolve(one, seconds=policy.idempotency_ttl) for one in found.kept]
        )
        try:
            local.restore(found.guard, kept, floor=found.leased, now=at.now)
        except ValueError as error:
            raise BadState(str(error)) from None
        return cls(found.owner, local, found.leased)

    # --- a question --------------------------------------------------------------------------------------------------

    def lease_for(self, question: AdmissionQuestion) -> Lease | None:
        """Return the lease to write before `question` is asked, or None if one on disk covers its date."""
        if self._leased is not None and question.issued <= self._leased:
            return None
        until = WallTime(question.issued + _LEASE_SECONDS)
        self._written = WallTime(max(until, self._written or until))
        return Lease(until, lease_record(until))

    def leased(self, lease: Lease) -> None:
        """Note that the record of `lease` is on disk."""
        self._leased = WallTime(max(lease.until, self._leased or lease.until))

    def ask(self, question: AdmissionQuestion, *, at: Moment) -> AdmissionAnswer:
        """Answer the question, and remember what follows from the answer."""
        return self._local.ask(question, at=at)

    def reservation_record(self, question: AdmissionQuestion, answer: AdmissionAnswer) -> bytes | None:
        """Return the record to write before `answer` counts: that of its idempotency key, if it reserved one."""
        if isinstance(answer, Admitted) and answer.reservation is not None:
            return reservation_record(answer.reservation.key, question.digest)
        return None

    def record(self, reservation: Reservation, outcome: object, *, size: int, now: Instant) -> None:
        """Keep an answer, in memory only: its reservation on disk already prevents a second run after a crash."""
        self._local.record(reservation, outcome, size=size, now=now)

    def lose(self, reservation: Reservation, *, now: Instant) -> None:
        """Note that the work was cut off."""
        self._local.lose(reservation, now=now)

    def give_back(self, reservation: Reservation, *, now: Instant) -> None:
        """Note that the work never began."""
        self._local.give_back(reservation, now=now)

    # --- whole files -------------------------------------------------------------------------------------------------

    def compacted(self, *, now: Instant) -> bytes:
        """Return a file equivalent to all records so far: the lease, and every key that hasn't expired."""
        kept = self._local.snapshot_of_keys(now=now)
        return write_state([*self._head(), *(reservation_record(one.key, one.digest) for one in kept)])

    def final(self, *, now: Instant) -> bytes:
        """Return the file of an orderly shutdown: everything that is remembered."""
        guard, kept = self._local.snapshot(now=now)
        return write_state([*self._head(), snapshot_record(guard, kept)])

    def _head(self) -> list[bytes]:
        return [identity_record(self._owner), *([] if self._written is None else [lease_record(self._written)])]


def _check_owner(owner: StateOwner, agent_id: str, policy: Policy) -> None:
    if owner.agent_id != agent_id:
        raise BadState(f"expected the state of {agent_id}; it's that of another agent")
    if (owner.max_age, owner.skew) != (policy.max_age, policy.skew):
        raise BadState(f"expected the state of an agent with max_age={policy.max_age}, skew={policy.skew}")
