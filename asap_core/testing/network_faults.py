"""What happens to connections of a network in memory. Plain values, without Hypothesis."""

from enum import Enum

from attrs import field, frozen, validators

from asap_core.wire.rules import integer, number


class Cut(Enum):
    """How a connection ends in one direction."""

    RESET = "reset"
    """Both ends see that it broke."""
    CLOSED = "closed"
    """The reader sees its end, as if the writer had closed it; the writer sees that it broke."""
    LOST = "lost"
    """Nothing arrives any longer, and nobody is told."""


@frozen(kw_only=True)
class DirectionFaults:
    """What happens to the bytes in one direction of a connection.

    delay: seconds that each piece is under way.
    piece: the most bytes that arrive at once.
    cut_after: the number of bytes that arrive, before the connection is cut; None if it isn't.
    cut: how it's cut.

    Raises: ValueError if a number is out of range.
    """

    delay: float = field(default=0.0, validator=number(least=0.0))
    piece: int = field(default=65_536, validator=integer(least=1))
    cut_after: int | None = field(default=None, validator=validators.optional(integer(least=0)))
    cut: Cut = Cut.RESET


@frozen(kw_only=True)
class ConnectionFaults:
    """What happens to one connection. Without arguments: nothing.

    refused: whether it can't be made.
    connect_delay: seconds until it's made, or refused. Later connections may overtake it.
    to_server, to_client: what happens to the bytes in each direction.
    """

    refused: bool = False
    connect_delay: float = field(default=0.0, validator=number(least=0.0))
    to_server: DirectionFaults = field(factory=DirectionFaults)
    to_client: DirectionFaults = field(factory=DirectionFaults)
