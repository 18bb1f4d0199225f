"""What users write who keep admission in a store of their own, for the type checker alone: it isn't run."""

from typing import assert_never

from asap_core import (
    AdmissionAnswer,
    AdmissionQuestion,
    Admit,
    Admitted,
    AnswerGone,
    ClaimProof,
    Floored,
    Future,
    Left,
    Limit,
    Mismatch,
    OutcomeUnknown,
    Record,
    Refusal,
    Replayed,
    Replied,
    Reservation,
    Running,
    Saturated,
    Stale,
    Stored,
    StoreUnavailable,
    TakeLimit,
    WallTime,
    outcome_to_json,
    read_outcome,
)
from asap_core.testing import check_store


class Store:
    def __init__(self) -> None:
        self.nonces: set[tuple[str, str]] = set()
        self.outcomes: dict[bytes, tuple[bytes, Replied | Refusal | None]] = {}

    def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        key = (question.idempotency_key or "").encode()
        digest, outcome = self.outcomes.get(key, (question.digest, None))
        if digest != question.digest:
            return Mismatch()
        if key in self.outcomes:
            return Running(question.deadline, ticket=None) if outcome is None else Stored(outcome)
        if question.nonce is not None:
            self.nonces.add((question.sender, question.nonce))
        return Admitted(Reservation(key)) if key else Admitted(None)

    def record(self, reservation: Reservation, outcome: Replied | Refusal, size: int) -> None:
        assert size >= 0
        self.outcomes[reservation.key] = (b"", read_outcome(outcome_to_json(outcome)))

    def lose(self, reservation: Reservation) -> None:
        del self.outcomes[reservation.key]

    def give_back(self, reservation: Reservation) -> None:
        del self.outcomes[reservation.key]


check_store(lambda _clock: Store, examples=10, threads=0)


def keep(store: Store, state: Record) -> None:
    store.record(state.reservation, state.outcome, state.size)


def ask(store: Store, state: Admit | ClaimProof) -> str:
    if isinstance(state, ClaimProof) and not store.nonces:
        state.unavailable()
    answer = store.ask(state.question)
    match answer:
        case Admitted() | Stored() | Running() | Mismatch() | OutcomeUnknown() | AnswerGone() | Replayed():
            return type(answer).__name__
        case Saturated(retry_after) | Floored(retry_after) | StoreUnavailable(retry_after):
            return f"in {retry_after} s"
        case Stale(wall) | Future(wall):
            assert isinstance(wall, float), WallTime
            return f"at {wall}"
        case _:
            assert_never(answer)


def take(state: TakeLimit) -> None:
    limit = Limit(10, per=60.0)
    state.taken(granted=state.cost, left=(Left(limit, amount=9, seconds=6.0),))
