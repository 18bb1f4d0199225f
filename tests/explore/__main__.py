"""Explores the state machines breadth-first: `python -m tests.explore`.

Prints how much there was, as the table of `docs/assurance.md`. Exits with 1 if a law is broken, after the shortest
sequence of inputs that shows it, or if the table there says something else.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.explore.breakers import BreakerWorld
from tests.explore.exchange import ExchangeWorld
from tests.explore.explorer import Explored, Fault, World, explore
from tests.explore.flights import FlightsWorld
from tests.explore.retries import RetriesWorld

DOCS: Final = Path(__file__).parents[2] / "docs" / "assurance.md"


@frozen
class Machine:
    """A world, what holds in each of its states, and the names of inputs that give up."""

    make: Callable[[], World]
    laws: str
    escapes: frozenset[str] = frozenset()

    def explored(self) -> Explored:
        return explore(self.make, escapes=self.escapes)


MACHINES: Final = {
    "an exchange: its bytes, and any answer of limiter, authenticator, store and handler": Machine(
        ExchangeWorld,
        "a state that was left refuses every move; what is running, asked and held adds up; an answer before the "
        "body's end closes",
        frozenset({"abandon", "lost"}),
    ),
    "three callers with one idempotency key, in memory": Machine(
        RetriesWorld,
        "one handler at once; each waiting call has a deadline, and is woken; retries get the answer of the last run",
        frozenset({"leaves", "lost", "vanishes"}),
    ),
    "flights and back-off: two keys": Machine(
        FlightsWorld,
        "one leader for each key; a leader that leaves hands over; each waiter ends once; a late result is refused",
        frozenset({"leave"}),
    ),
    "a circuit breaker: three requests at once": Machine(
        BreakerWorld,
        "one probe at once; it opens after failures in a row only; a refused request is told when to come again",
    ),
}


def row(name: str, explored: Explored) -> str:
    """A line of the table."""
    figures = " | ".join(
        f"{figure:,}" for figure in (explored.inputs, explored.states, explored.transitions, explored.depth)
    )
    return f"| {name} | {MACHINES[name].laws} | {figures} |"


def main() -> int:
    written, held = DOCS.read_text("utf-8"), True
    for name, machine in MACHINES.items():
        began = time.process_time()
        try:
            line = row(name, machine.explored())
        except Fault as fault:
            print(f"{name}: {fault}")
            held = False
            continue
        print(f"{line} {time.process_time() - began:.1f} s")
        if line not in written:
            print("docs/assurance.md says something else")
            held = False
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
