"""Counters of what was decided, and their text in the exposition format that Prometheus reads (OpenMetrics 1.0).

They're kept in rows of plain memory, one row for each process that serves the agent. Every process that shares the
memory shows the sum of all rows. A row has one writer. Its counts are 8 bytes each and aligned, so a reader sees each
before or after a change, never in between. A process that replaces one that died continues its row.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from attrs import define, field

from asap_core.clock import WallTime
from asap_core.server.events import Decision, What

CONTENT_TYPE: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"

# A row: a count for each of these, then three more, then a count and a name for each payload type that was accepted.
_DECISIONS: Final = tuple(What)
_CELL_OF: Final = {what: cell for cell, what in enumerate(_DECISIONS)}
_FAILURES: Final = len(_DECISIONS)
_ACTIVE: Final = _FAILURES + 1
_SINCE: Final = _FAILURES + 2
_FIRST_KIND: Final = _FAILURES + 3
# An agent has a few types. One without room is counted in `asap_decisions` only.
_MOST_KINDS: Final = 64
_NAME_SIZE: Final = 96
_CELLS_SIZE: Final = 8 * (_FIRST_KIND + _MOST_KINDS)
_ROW_SIZE: Final = _CELLS_SIZE + _NAME_SIZE * _MOST_KINDS


def counters_size(processes: int) -> int:
    """Return how many bytes of memory so many processes need for their counters. The bytes must be zero at first."""
    return processes * _ROW_SIZE


@define(eq=False)
class _Row:
    """The counters of one process."""

    cells: memoryview
    names: memoryview
    kinds: dict[str, int] = field(factory=dict)

    @classmethod
    def of(cls, memory: memoryview) -> "_Row":
        return cls(memory[:_CELLS_SIZE].cast("Q"), memory[_CELLS_SIZE:])

    def accepted(self) -> Iterator[tuple[str, int]]:
        """Yield the payload types that have a cell in this row, with the cell."""
        for cell in range(_FIRST_KIND, _FIRST_KIND + _MOST_KINDS):
            name = bytes(self._name(cell)).rstrip(b"\0")
            if not name:
                return
            yield name.decode("ascii", "replace"), cell

    def cell_of(self, kind: str) -> int | None:
        """Return the cell of a payload type, and assign one if needed; None if there's no room. For the writer only."""
        if kind in self.kinds:
            return self.kinds[kind]
        self.kinds = dict(self.accepted())
        name, cell = kind.encode("ascii", "replace"), _FIRST_KIND + len(self.kinds)
        if kind not in self.kinds and len(name) <= _NAME_SIZE and len(self.kinds) < _MOST_KINDS:
            self._name(cell)[: len(name)] = name
            self.kinds[kind] = cell
        return self.kinds.get(kind)

    def _name(self, cell: int) -> memoryview:
        start = (cell - _FIRST_KIND) * _NAME_SIZE
        return self.names[start : start + _NAME_SIZE]


class Counters:
    """An observer that counts decisions by what they were, and accepted envelopes by payload type.

    memory: `counters_size(processes)` bytes, shared by the processes that serve the agent; by default this process's.
    row: which row of it is this process's, from 0 on.

    Raises ValueError if memory and row don't fit together.
    """

    def __init__(self, memory: memoryview | bytearray | None = None, *, row: int = 0) -> None:
        shared = memoryview(bytearray(_ROW_SIZE) if memory is None else memory).cast("B")
        if len(shared) % _ROW_SIZE or not 0 <= row < len(shared) // _ROW_SIZE:
            raise ValueError("expected memory of counters_size(processes) bytes, and a row of these, from 0 on")
        # Every series starts at 0, or `rate()` misses its first increment.
        self._rows = [_Row.of(shared[start : start + _ROW_SIZE]) for start in range(0, len(shared), _ROW_SIZE)]
        self._mine = self._rows[row]
        self._failed_before = self._mine.cells[_FAILURES]
        self._since = 0
        self.set_now(active=0, observer_failures=0)

    def began(self, wall: WallTime) -> None:
        """Note when an agent begins to be served. A row that a process continues keeps its first time."""
        self._failed_before = self._mine.cells[_FAILURES]
        self._since = max(int(wall * 1e6), 1)
        self._mine.cells[_SINCE] = self._mine.cells[_SINCE] or self._since

    def __call__(self, decision: Decision) -> None:
        """Count one decision."""
        mine = self._mine
        mine.cells[_CELL_OF[decision.what]] += 1
        if decision.what is What.ACCEPTED and decision.payload_type is not None:
            cell = mine.cell_of(decision.payload_type)
            if cell is not None:
                mine.cells[cell] += 1

    def set_now(self, *, active: int, observer_failures: int) -> None:
        """Set how many handlers are running in this process, and how often its observer has raised."""
        self._mine.cells[_ACTIVE] = active
        self._mine.cells[_FAILURES] = self._failed_before + observer_failures

    def __getitem__(self, what: What) -> int:
        """How many decisions of this sort there were."""
        return self._sum(_CELL_OF[what])

    def text(self, *, active: int, uptime: float, observer_failures: int = 0) -> bytes:
        """Write the sums over all processes.

        active: how many handlers are running in this process.
        uptime: for how many seconds this process has served the agent.
        observer_failures: how often this process's observer has raised.
        """
        self.set_now(active=active, observer_failures=observer_failures)
        accepted: Counter[str] = Counter()
        for row in self._rows:
            accepted.update({kind: row.cells[cell] for kind, cell in row.accepted()})
        lines = ["# TYPE asap_decisions counter", "# HELP asap_decisions What admission decided."]
        lines += [f'asap_decisions_total{{what="{what.value}"}} {self[what]}' for what in _DECISIONS]
        lines += ["# TYPE asap_accepted counter", "# HELP asap_accepted Envelopes let in, by payload type."]
        lines += [f'asap_accepted_total{{payload_type="{kind}"}} {count}' for kind, count in accepted.items()]
        lines += [
            "# TYPE asap_observer_failures counter",
            "# HELP asap_observer_failures Exceptions that the observer of decisions has raised.",
            f"asap_observer_failures_total {self._sum(_FAILURES)}",
            "# TYPE asap_handlers_active gauge",
            "# HELP asap_handlers_active Handlers at work.",
            f"asap_handlers_active {self._sum(_ACTIVE)}",
            "# TYPE asap_uptime_seconds gauge",
            "# UNIT asap_uptime_seconds seconds",
            "# HELP asap_uptime_seconds Time since the agent began to serve.",
            f"asap_uptime_seconds {uptime + self._longer():.3f}",
            "# EOF",
            "",
        ]
        return "\n".join(lines).encode("ascii")

    def _sum(self, cell: int) -> int:
        return sum(row.cells[cell] for row in self._rows)

    def _longer(self) -> float:
        """How many seconds before this process the first one began."""
        first = min((since for row in self._rows if (since := row.cells[_SINCE])), default=self._since)
        return max(self._since - first, 0) / 1e6
