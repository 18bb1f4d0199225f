"""Programs: what a client does, as generators that yield effects. A driver carries the effects out.

    program ──▶ Effect ──▶ the driver carries it out ──▶ Outcome ──▶ program ──▶ … ──▶ a result, or an exception

Rules for a driver. It has two verbs: `step`, with the outcome of the last effect, and `close`; nothing is ever thrown
into a program. It closes every program that it doesn't finish; closing needs no clock, and yields nothing. After each
step and after each `close` it wakes the tickets that `Client.take_wakes` returns. `take_wakes` also cleans up after
programs that the garbage collector closed. After each step, and after each call of a plain method, it removes the files
that `Client.take_removals` returns, before it does anything else. Nothing is open while a program is suspended, except
the sources of `Next`, which the run owns, and a `WriteFile` that goes on.

Failures are outcomes, values: a program decides what they mean, and raises if there's no result.
"""

from collections.abc import Generator, Sequence
from enum import Enum
from typing import Final, Generic, TypeVar

from attrs import define, evolve, field, frozen

from asap_core.client.body_reader import BodyReader
from asap_core.client.file_to_write import FileToWrite
from asap_core.clock import Clock, Instant
from asap_core.errors import Remedy
from asap_core.mdns.dnssd import Event
from asap_core.net.addresses import Proximity
from asap_core.net.outbound import Dial, OutboundPolicy, Resolve

T = TypeVar("T")

# --- outcomes --------------------------------------------------------------------------------------------------------


class Stage(Enum):
    """How far a request got."""

    QUEUED = "queued"
    """It waited for a free connection, or for a free thread to resolve a name."""
    CONNECTING = "connecting"
    """Its name was being resolved, or its connection made. Nothing was sent."""
    SENT = "sent"
    """Its head was written: from now on the server may act on it. Also for drivers that can't tell."""
    ANSWERED = "answered"
    """The head of the response arrived."""


@frozen
class Received:
    """A whole response arrived; the `BodyReader` of the `Fetch` has it.

    address: the IP address that this request connected to. None if it used an open connection, or isn't known.
    """

    address: str | None = None


@frozen
class Unanswered:
    """The request failed at this stage.

    problem: why, as text for people; without anything that the peer sent.
    silent: whether the peer closed the connection without sending anything.
    """

    stage: Stage
    problem: str
    silent: bool = False


@frozen
class Expired:
    """The effect's `seconds` are over, and what it began is ended. `stage`: how far a request got."""

    stage: Stage = Stage.SENT


@frozen
class Barred:
    """The request may not be made: `Route.choose` refused the addresses, or the driver can't request such a URL."""

    reason: str
    remedy: Remedy


@frozen
class Completed:
    """The ticket is ready; the time is over; the file is written, or needn't be."""


@frozen
class Heard:
    """An event of the local network."""

    event: Event


@frozen
class FileIdentity:
    """Changes if a file is replaced or written to: its inode, its size in bytes, and mtime and ctime in nanoseconds."""

    inode: int
    size: int
    modified: int
    changed: int


@frozen
class FileRead:
    """The effect's reader has the file, or as much of it as it wanted.

    identity: of a private file. If it's the effect's `unless`, the file wasn't read.
    """

    identity: FileIdentity | None = None


@frozen
class Unavailable:
    """The file, or the local network, can't be used.

    reason: why, as text for people.
    number: the system's number of the error (errno), if it's the system's.
    """

    reason: str
    number: int | None = None


Outcome = Received | Unanswered | Expired | Barred | Completed | Heard | FileRead | Unavailable

# --- effects ---------------------------------------------------------------------------------------------------------


@frozen
class Route:
    """Where a request may be connected to. A value, which any thread may use.

    host, port, scheme: the URL's.
    announced: if not empty, only these addresses are connected to; the host was announced at them on the local network.
    policy, reach: decide on other addresses.
    """

    host: str
    port: int
    scheme: str
    announced: tuple[str, ...] = ()
    policy: OutboundPolicy = field(factory=OutboundPolicy, repr=False)
    reach: Proximity = Proximity.MACHINE

    @property
    def name(self) -> str | None:
        """The name to resolve, whose addresses `choose` takes. None if nothing is to be resolved."""
        way = Dial(self.announced) if self.announced else self.policy.destination(self.host)
        return way.name if isinstance(way, Resolve) else None

    @property
    def server_name(self) -> str:
        """The name that TLS asks for and checks the certificate for: the host, without a trailing dot and a zone.

        Source: RFC 6066 §3; RFC 9844 §6.
        """
        return self.host.partition("%")[0].removesuffix(".")

    def choose(self, answers: Sequence[str] = ()) -> Dial | Barred | Unanswered:
        """Return the addresses to connect to, in order, and to no other; or else the outcome of the request.

        answers: what `name` resolved to.
        """
        if self.announced:
            return Dial(self.announced)
        way = self.policy.destination(self.host)
        found = way.addresses if isinstance(way, Dial) else answers
        if not found:
            return Unanswered(Stage.CONNECTING, "its name can't be resolved: it has no address")
        chosen = self.policy.choose(self.host, found, port=self.port, reach=self.reach, scheme=self.scheme)
        return chosen if isinstance(chosen, Dial) else Barred(chosen.reason, chosen.remedy)


@frozen
class Fetch:
    """Make this request, once, without following redirects, and read the whole response into `reader`.

    Answered by Received, Unanswered, Expired or Barred. Nothing of it is open any longer then.

    seconds: for all of it, body included.
    patience: seconds that it may wait for a free connection. It leaves time for the exchange itself.
    route: the addresses that it may be connected to. Requests share a connection only if their routes' `host`, `port`,
        `scheme` and `announced` are equal.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes | None = field(repr=False)
    seconds: float
    patience: float
    route: Route = field(repr=False)
    reader: BodyReader = field(repr=False, eq=False)

    def __iter__(self) -> "Generator[Fetch, Outcome, Received | Unanswered | Expired | Barred]":
        outcome = yield self
        if not isinstance(outcome, Received | Unanswered | Expired | Barred):
            raise TypeError(f"a Fetch is answered by Received, Unanswered, Expired or Barred, not {outcome!r}")
        return outcome


@define(eq=False)
class Ticket:
    """A place in a queue. `ready` stays true once it's set, so a driver that looks late misses nothing."""

    ready: bool = False
    parked: bool = False
    """Whether its program waits, so that a driver must be told."""


@frozen
class Wait:
    """Wait until this ticket is ready: look first, then wait for `Client.take_wakes` to return it.

    Answered by Completed, or by Expired after `seconds` (None: no limit).
    """

    ticket: Ticket
    seconds: float | None = None

    def __iter__(self) -> "Generator[Wait, Outcome, Completed | Expired]":
        outcome = yield self
        if not isinstance(outcome, Completed | Expired):
            raise TypeError(f"a Wait is answered by Completed or Expired, not {outcome!r}")
        return outcome


@frozen
class Sleep:
    """Let this many seconds pass. Answered by Completed."""

    seconds: float

    def __iter__(self) -> "Generator[Sleep, Outcome, Completed]":
        outcome = yield self
        if not isinstance(outcome, Completed):
            raise TypeError(f"a Sleep is answered by Completed, not {outcome!r}")
        return outcome


@define(eq=False)
class LocalNetwork:
    """A source of `Next`: the announcements on the local network, since the first `Next` that names this object."""


@frozen
class Next:
    """Wait for the next event of this source. The run opens it at its first `Next`, and closes it at its own end.

    Answered by Heard, Unavailable, or Expired after `seconds` (None: no limit).
    """

    source: LocalNetwork
    seconds: float | None = None

    def __iter__(self) -> "Generator[Next, Outcome, Heard | Unavailable | Expired]":
        outcome = yield self
        if not isinstance(outcome, Heard | Unavailable | Expired):
            raise TypeError(f"a Next is answered by Heard, Unavailable or Expired, not {outcome!r}")
        return outcome


@frozen
class ReadFile:
    """Read a file of this machine into `reader`, to its end or until the reader wants no more.

    Answered by FileRead, Unavailable, or Expired after `seconds` (None: no limit).

    private: if true, refuse links, files that aren't regular, and files that other users may write.
    unless: the identity of a private file that needn't be read.
    """

    path: str
    reader: BodyReader = field(repr=False, eq=False)
    private: bool = False
    unless: FileIdentity | None = None
    seconds: float | None = None

    def __iter__(self) -> "Generator[ReadFile, Outcome, FileRead | Unavailable | Expired]":
        outcome = yield self
        if not isinstance(outcome, FileRead | Unavailable | Expired):
            raise TypeError(f"a ReadFile is answered by FileRead, Unavailable or Expired, not {outcome!r}")
        return outcome


@frozen
class WriteFile:
    """Write a file of this machine that only this user may read: beside the old one, then in its place.

    Answered by Completed, Unavailable, or Expired after `seconds` (None: no limit). What was begun may go on after
    that, and after the program was closed. The file is replaced whole or not at all. A driver without files answers
    Unavailable; then copies of registries are in memory only.

    path: its directory is made if it doesn't exist.
    """

    path: str
    file: FileToWrite = field(repr=False, eq=False)
    seconds: float | None = None

    def __iter__(self) -> "Generator[WriteFile, Outcome, Completed | Unavailable | Expired]":
        outcome = yield self
        if not isinstance(outcome, Completed | Unavailable | Expired):
            raise TypeError(f"a WriteFile is answered by Completed, Unavailable or Expired, not {outcome!r}")
        return outcome


Effect = Fetch | Wait | Sleep | Next | ReadFile | WriteFile
Program = Generator[Effect, Outcome, T]
"""Returns a `T`, or raises one of this library's exceptions. `yield from` composes programs."""

# --- running ---------------------------------------------------------------------------------------------------------


@frozen
class Returned(Generic[T]):
    """The program returned this value."""

    value: T


def step(program: Program[T], outcome: Outcome | None = None) -> Effect | Returned[T]:
    """Run a program up to its next effect, or its end.

    outcome: that of the last effect; None at the first step.

    Raises: what the program raises. RuntimeError for an outcome after its end, TypeError at the first step.
    """
    try:
        if outcome is None:
            return next(program)  # unchecked: to ask an unstarted generator for its frame takes 60 ns
        if not program.gi_suspended and program.gi_frame is None:  # type: ignore[attr-defined]
            raise RuntimeError("this program has ended: it has returned, raised or been closed")
        return program.send(outcome)
    except StopIteration as end:
        return Returned(end.value)
    except (AttributeError, TypeError):
        _check_step(program)
        raise  # the program's own


def _check_step(program: object) -> None:
    """Raise TypeError if the driver made a mistake."""
    if isinstance(program, list):
        raise TypeError("expected a program, not a list: keep_fresh returns several; step each of them") from None
    if not isinstance(program, Generator):
        raise TypeError(f"expected a program, such as client.discover(url), not {type(program).__name__}") from None
    if program.gi_frame is not None:  # type: ignore[attr-defined]  # it hasn't begun; after an exception there's none
        raise TypeError("the first step of a program has no outcome") from None


class Late(Enum):
    """The result of a program that was closed at its deadline."""

    LATE = "late"


LATE: Final = Late.LATE


def within(seconds: float | None, program: Program[T], clock: Clock) -> Program[T | Late]:
    """Run a program for at most so long (None: no limit); return LATE, and close it, if it isn't finished then.

    Each effect gets what is left. The outcome decides if it's late, not the clock: the last moment counts.
    """
    if seconds is None:
        return (yield from program)
    end = Instant(clock.monotonic() + seconds)
    try:
        moved = step(program)
        while not isinstance(moved, Returned):
            left = max(end - clock.monotonic(), 0.0)
            clipped = moved.seconds is None or left < moved.seconds
            outcome = yield evolve(moved, seconds=left) if clipped else moved
            if clipped and (isinstance(outcome, Expired) or isinstance(moved, Sleep)):
                return LATE
            moved = step(program, outcome)
        return moved.value
    finally:
        program.close()
