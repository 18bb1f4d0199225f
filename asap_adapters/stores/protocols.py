"""What a store of your own must do: remember admission, or count what callers take, for processes that share it."""

from typing import Protocol

from asap_core.admission.admission import AdmissionAnswer, AdmissionQuestion, Reservation, StoreUnavailable
from asap_core.admission.ratelimit import Granted, Limited
from asap_core.server.exchange import TakeLimit


class Store(Protocol):
    """Remembers admission, for an agent bound with `shared_admission=True`."""

    async def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        """Answer one question, atomically. Returns `StoreUnavailable` if it can't."""
        ...

    async def record(self, reservation: Reservation, outcome: object, size: int) -> None:
        """Keep what the handler answered. This and the next two methods finish their work even if they're cancelled."""
        ...

    async def lose(self, reservation: Reservation) -> None:
        """Note that the handler was stopped midway."""
        ...

    async def give_back(self, reservation: Reservation) -> None:
        """Note that the handler never ran."""
        ...


class SharedLimiter(Protocol):
    """Counts what callers take, for an agent bound with `shared_limits`."""

    async def take(self, state: TakeLimit) -> Granted | Limited | StoreUnavailable:
        """Take what `state` asks for, atomically. Returns `StoreUnavailable` if it can't."""
        ...
