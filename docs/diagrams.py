"""Diagrams of the state machines, drawn from their own types and tables: `python -m docs.diagrams` writes them.

A machine whose states are classes says in the return types of its methods where each move leads, and mypy holds the
code to that. The task's lifecycle is a table. The breaker is tried: each outcome in each of its states.

Each state is a box, and each of its moves a line to the right. A coloured line leads into the box of its colour; a dot
on it means that the move may lead there.
"""

import inspect
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, Final, get_args, get_type_hints

from attrs import frozen

from asap_core import CallState, Exchange
from asap_core.auth.jwt import TokenState
from asap_core.client.breaker import Breaker, BreakerPolicy, BreakerState, Permit, RequestOutcome
from asap_core.clock import Instant
from asap_core.wire.task_status import TRANSITIONS

FOLDER: Final = Path(__file__).parent / "states"


@frozen
class Move:
    """One way out of a state: what it's called, and the states that it may lead to."""

    name: str
    to: tuple[str, ...]


Machine = Mapping[str, tuple[Move, ...]]
"""The moves of each state, in the order in which they're drawn."""


def of_union(union: UnionType, *, end: str | None = None) -> Machine:
    """The machine whose states are the classes of `union`.

    end: the name of one box for all states without moves; by default each has its own.

    `abandon` is left out: every state has it that isn't an end, and it leads nowhere else than out.
    """
    states: tuple[type, ...] = get_args(union)
    name_of = {state: state.__name__ if end is None or _methods(state) else end for state in states}
    return {
        name_of[state]: tuple(
            Move(name, _unique(name_of[one] for one in targets))
            for name, targets in ((name, _leads_to(method, states)) for name, method in _methods(state))
            if targets
        )
        for state in states
    }


def _methods(state: type) -> list[tuple[str, Any]]:
    methods = [item for item in vars(state).items() if inspect.isfunction(item[1]) and not item[0].startswith("_")]
    return [(name, method) for name, method in methods if name != "abandon"]


def _leads_to(method: Any, states: tuple[type, ...]) -> list[type]:
    returned = get_type_hints(method)["return"]
    members = get_args(returned) or (returned,)
    return [state for state in states if state in members]


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def task() -> Machine:
    """The lifecycle of a task, as its table says."""
    return {
        status.value: tuple(Move(to.value, (to.value,)) for to in type(status) if to in after)
        for status, after in TRANSITIONS.items()
    }


def breaker() -> Machine:
    """The breaker, found by trying each outcome in each of its states. Here two failures in a row open it."""
    policy = BreakerPolicy(threshold=2, rest=1.0)
    ways: dict[str, dict[str, list[str]]] = {state.value: {} for state in BreakerState}
    for failures, seconds, outcome in product(range(3), (0.0, policy.rest), RequestOutcome):
        tried, now = _failed(policy, failures), Instant(seconds)
        moves, permit = ways[tried.state(now=now).value], tried.ask(now=now)
        if isinstance(permit, Permit):
            tried.give_back(permit, outcome, now=now)
            move = f"{'probe' if permit.probe else 'request'} {outcome.value}"
        else:
            now, move = Instant(now + permit.retry_after), "time passes"
        moves.setdefault(move, []).append(tried.state(now=now).value)
    return {state: tuple(Move(name, _unique(to)) for name, to in moves.items()) for state, moves in ways.items()}


def _failed(policy: BreakerPolicy, times: int) -> Breaker:
    breaker = Breaker(policy)
    for _ in range(times):
        permit = breaker.ask(now=Instant(0.0))
        if isinstance(permit, Permit):
            breaker.give_back(permit, RequestOutcome.FAILED, now=Instant(0.0))
    return breaker


def machines() -> dict[str, Machine]:
    """All diagrams, by the name of their file."""
    return {
        "exchange": of_union(Exchange),
        "call": of_union(CallState),
        "token": of_union(TokenState, end="a verdict"),
        "task": task(),
        "breaker": breaker(),
    }


# --- drawing ---------------------------------------------------------------------------------------------------------

# In pixels. A character of the labels' font is 7.2 wide.
ROW: Final = 26
GAP: Final = 22
BOX: Final = 132
LANE: Final = 26
MARGIN: Final = 10
CHARACTER: Final = 7.2
# One for each state, dark enough to be read on white, and different to most who are colour-blind (after Okabe and Ito).
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#b5478c", "#7a5c00", "#b00020", "#555555", "#6a3fc0", "#808000")


def drawn(machine: Machine) -> str:
    """The machine as SVG."""
    place = _Places(machine)
    size = f'width="{place.width:g}" height="{place.height:g}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="12">',
            f'<rect {size} fill="#ffffff"/>',
            *(part for name in place.lanes for part in place.lane(name)),
            *(part for name in machine for part in place.box(name)),
            "</svg>",
            "",
        ]
    )


class _Places:
    """Where everything is: boxes below each other, and right of them a lane down to each box that a move leads to."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.colours = dict(zip(machine, COLOURS, strict=False))
        longest = max(len(move.name) for moves in machine.values() for move in moves)
        entered = {name for moves in machine.values() for move in moves for name in move.to}
        start = MARGIN + BOX + longest * CHARACTER + 24
        self.lanes = {name: start + LANE * at for at, name in enumerate(one for one in machine if one in entered)}
        self.width = start + LANE * len(self.lanes)
        self.tops: dict[str, int] = {}
        self.height = MARGIN
        for name, moves in machine.items():
            self.tops[name] = self.height
            self.height += ROW * (len(moves) + 1) + GAP
        self.height += MARGIN - GAP

    def row(self, state: str, number: int) -> int:
        """The middle of a row: of the state's name, 0, or of one of its moves."""
        return self.tops[state] + ROW * number + ROW // 2

    def lane(self, name: str) -> list[str]:
        """The line that leads into the box of a state, from all moves to it."""
        entry, colour, x = self.row(name, 0), self.colours[name], self.lanes[name]
        ends = [
            self.row(state, number)
            for state, moves in self.machine.items()
            for number, move in enumerate(moves, 1)
            if name in move.to
        ]
        line = f"M{x:g} {min(*ends, entry)}V{max(*ends, entry)}M{x:g} {entry}H{MARGIN + BOX + 8}"
        return [
            f'<path d="{line}" stroke="{colour}" stroke-width="2" fill="none"/>',
            f'<path d="M{MARGIN + BOX} {entry}l10 -5v10z" fill="{colour}"/>',
        ]

    def box(self, name: str) -> list[str]:
        """A state, and its moves with a dot on each lane that they may take."""
        moves, colour = self.machine[name], self.colours[name]
        corner = f'x="{MARGIN}" y="{self.tops[name]}" width="{BOX}" height="{ROW * (len(moves) + 1)}" rx="5"'
        parts = [
            f'<rect {corner} fill="#ffffff" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{MARGIN + 10}" y="{self.row(name, 0) + 4}" font-weight="bold" fill="{colour}">{name}</text>',
        ]
        for number, move in enumerate(moves, 1):
            y, edge = self.row(name, number), MARGIN + BOX
            end = max(self.lanes[to] for to in move.to)
            parts += [
                f'<path d="M{edge} {y}H{end:g}" stroke="#888888" fill="none"/>',
                f'<text x="{edge + 8}" y="{y - 4}" fill="#222222">{move.name}</text>',
            ]
            parts += [f'<circle cx="{self.lanes[to]:g}" cy="{y}" r="4.5" fill="{self.colours[to]}"/>' for to in move.to]
        return parts


def main() -> None:
    """Write all diagrams."""
    FOLDER.mkdir(exist_ok=True)
    for name, machine in machines().items():
        (FOLDER / f"{name}.svg").write_text(drawn(machine), "utf-8")


if __name__ == "__main__":
    main()
