"""What the programs of one client share: its clock and randomness, who waits, what to remove, and what to log.

The core's tables (documents, tokens, introspection) return effects that name the look-up they are for; `give` delivers
them. A program that is closed, perhaps by the garbage collector in another thread, must change no table there: it
only notes what to undo, and `take_wakes` undoes it.
"""

from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from attrs import define, field, frozen

from asap_core.arguments import ArgumentRule, expect_function, has_methods
from asap_core.client.programs import Program, Ticket, Wait
from asap_core.clock import Clock, Instant, Moment, WallTime

E = TypeVar("E")


@define(eq=False)
class Place(Ticket, Generic[E]):
    """A ticket of one look-up, and the effect that its table has for it."""

    effect: E | None = field(default=None, repr=False)

    def take(self) -> E | None:
        """Return the effect, once; None if there's none yet."""
        effect, self.effect, self.parked = self.effect, None, False
        return effect

    def wait(self) -> Wait:
        """Return the effect that waits until there's one."""
        self.parked, self.ready = True, False
        return Wait(self)


class PlacedEffect(Protocol):
    """An effect of a table, for the look-up whose place is `waiter`."""

    @property
    def waiter(self) -> Place[Any]:
        """Whom it's for."""
        ...


@frozen
class Remark:
    """A message to log."""

    logger: str
    level: Literal["info", "warning"]
    text: str


_CLOCK: Final = ArgumentRule("a Clock, an object with monotonic() and wall()", has_methods("monotonic", "wall"))


@define(eq=False)
class Runtime:
    """What the programs of one client share. A driver makes it, and gives it to `Client.bind`.

    A driver of a `Client` calls no method of it: `Client.take_wakes`, `take_removals` and `take_remarks` call its own.
    The other methods are for programs.

    clock: read by programs when they decide.
    new_id: makes ids: of envelopes, calls and idempotency keys.
    new_token: makes nonces that can't be guessed, of 128 bits.
    fraction: returns a number in [0, 1), for jitter.

    Raises: ValueError if an argument can't be that.
    """

    clock: Clock
    new_id: Callable[[], str]
    new_token: Callable[[], str]
    fraction: Callable[[], float]
    _undone: deque[Callable[[], None]] = field(factory=deque, init=False, repr=False)
    _wakes: list[Ticket] = field(factory=list, init=False, repr=False)
    _remarks: list[Remark] = field(factory=list, init=False, repr=False)
    _removals: list[str] = field(factory=list, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _CLOCK.check("clock", self.clock)
        expect_function("new_id", self.new_id, "() -> str", asynchronous=False)
        expect_function("new_token", self.new_token, "() -> str", asynchronous=False)
        expect_function("fraction", self.fraction, "() -> float", asynchronous=False)

    # --- time --------------------------------------------------------------------------------------------------------

    def now(self) -> Instant:
        """Return the monotonic time."""
        return self.clock.monotonic()

    def wall(self) -> WallTime:
        """Return the wall time."""
        return self.clock.wall()

    def moment(self) -> Moment:
        """Read both clocks."""
        return Moment.read(self.clock)

    # --- who waits ---------------------------------------------------------------------------------------------------

    def give(self, effects: Iterable[PlacedEffect]) -> None:
        """Hand every effect to the look-up that it's for."""
        for effect in effects:
            place = effect.waiter
            place.effect, place.ready = effect, True
            if place.parked:
                self._wakes.append(place)

    def wake(self, ticket: Ticket) -> None:
        """Let the program go on that waits for this ticket."""
        ticket.ready = True
        if ticket.parked:
            self._wakes.append(ticket)

    def next_for(self, place: Place[E]) -> Program[E]:
        """Wait until there's an effect for this place, and return it."""
        while (effect := place.take()) is None:
            yield place.wait()  # whatever its outcome: the loop looks again
        return effect

    def undoing(self, undo: Callable[[], None]) -> "Undoing":
        """Return a context manager: if its block is left by an exception or by `close`, `undo` is called."""
        return Undoing(self, undo)

    def undo_after(self, error: BaseException, undo: Callable[[], None]) -> None:
        """Call `undo`, since this exception ends a program. If it's closed, only note it: it may be another thread."""
        if isinstance(error, GeneratorExit):
            self._undone.append(undo)
        else:
            undo()

    # --- files to remove ---------------------------------------------------------------------------------------------

    def remove(self, path: str) -> None:
        """Note a file to remove. It isn't an effect, so that plain methods can do it too."""
        self._removals.append(path)

    # --- what is logged ----------------------------------------------------------------------------------------------

    def warn(self, logger: str, text: object) -> None:
        """Note a warning."""
        self._remarks.append(Remark(logger, "warning", str(text)))

    def inform(self, logger: str, text: object) -> None:
        """Note a message of level info."""
        self._remarks.append(Remark(logger, "info", str(text)))

    # --- for drivers: `Client` has the three that take ---------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether there's nothing to wake, to remove or to log."""
        return not (self._undone or self._wakes or self._removals or self._remarks)

    def take_wakes(self) -> tuple[Ticket, ...]:
        """Undo what closed programs left, and return whom to wake."""
        while self._undone:
            self._undone.popleft()()
        if not self._wakes:
            return ()
        wakes = tuple(self._wakes)
        self._wakes.clear()
        return wakes

    def take_removals(self) -> tuple[str, ...]:
        """Return the files to remove at once, if they exist. It takes microseconds.

        Under one lock with a `WriteFile` that asks `FileToWrite.wanted` and puts its file in place.
        """
        if not self._removals:
            return ()
        removals = tuple(self._removals)
        self._removals.clear()
        return removals

    def take_remarks(self) -> tuple[Remark, ...]:
        """Return what is to be logged, once."""
        if not self._remarks:
            return ()
        remarks = tuple(self._remarks)
        self._remarks.clear()
        return remarks


class Undoing:
    """Undoes what its block did if that is left by an exception, or by `close`."""

    __slots__ = ("_runtime", "_undo")

    def __init__(self, runtime: Runtime, undo: Callable[[], None]) -> None:
        self._runtime = runtime
        self._undo = undo

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._runtime.undo_after(error, self._undo)
