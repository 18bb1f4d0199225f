"""The matrix: which laws each switch breaks, found by running all of them on an agent with that switch.

A law that no switch breaks may be one that can't fail. A switch that breaks no law is a hole in the laws.
"""

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from asap_core.testing.laws.catalogue import LAWS
from asap_core.testing.laws.law import Law
from asap_core.testing.laws.runner import LawResult
from asap_core.testing.planted.found_by import SWITCHES_OF, UNFOUND, WIDER
from asap_core.testing.planted.switches import SWITCHES
from asap_core.testing.planted.trial import asked_for, tried

Matrix = Mapping[str, tuple[str, ...]]
"""For each switch the ids of the laws that it breaks."""

_LARGE: Final = ("limits.", "compression.")
# Laws that move tens of megabytes, or make a thousand calls, take a second each. They're tried with the switches of
# these groups only.
EXPENSIVE: Final[Mapping[str, tuple[str, ...]]] = {
    "limits.a_large_body": _LARGE,
    "limits.a_large_chunked_body": _LARGE,
    "compression.bombs": _LARGE,
    "replay.many_calls_later": ("replay.",),
    "idempotency.many_calls_later": ("idempotency.",),
}


def broken_by(switch: str | None, laws: Sequence[Law]) -> tuple[str, ...]:
    """Try laws on an agent with this switch, or on the correct one, and return the ids of those that it breaks."""
    results = tried(laws, *(() if switch is None else (switch,)))
    return tuple(each.law.id for each in results if each.outcome is LawResult.FAILED)


def candidates(switches: Iterable[str], laws: Sequence[Law] = LAWS) -> dict[str, list[Law]]:
    """For each switch the laws that it may break: those during which the correct agent asks for it."""
    asked = {law.id: asked_for(law) for law in laws}
    return {
        name: [law for law in laws if name in asked[law.id] and name.startswith(EXPENSIVE.get(law.id, ""))]
        for name in switches
    }


def measure(switches: Iterable[str] = SWITCHES, *, processes: int = 1) -> Matrix:
    """Run the matrix. `processes`: how many work at it."""
    names = [*switches]
    if processes == 1:
        return {name: broken_by(name, laws) for name, laws in candidates(names).items()}
    context = multiprocessing.get_context("spawn")
    parts = [names[start::processes] for start in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        found = {name: broken for part in pool.map(measure, parts) for name, broken in part.items()}
    return {name: found[name] for name in names}


def complaints(matrix: Matrix, laws: Sequence[Law] = LAWS) -> Iterator[str]:
    """Compare a matrix with `found_by`. Yields what is wrong; nothing if all is as the tables say."""
    explained = {name for names in WIDER.values() for name in names}
    for name, broken in matrix.items():
        others = [law for law in broken if _switches_of(law) != name.partition(".")[0]]
        if not broken and name not in UNFOUND:
            yield f"{name} breaks no law, and isn't in UNFOUND"
        if broken and name in UNFOUND:
            yield f"{name} is in UNFOUND, and breaks {', '.join(broken)}"
        if others and name not in explained:
            yield f"{name} breaks laws of other groups, and isn't in WIDER: {', '.join(others)}"
    found = {law for broken in matrix.values() for law in broken}
    yield from (f"{law.id} is broken by no switch" for law in laws if law.id not in found)


def _switches_of(law: str) -> str:
    group = law.partition(".")[0]
    return SWITCHES_OF.get(group, group)


def lines(matrix: Matrix) -> Iterator[str]:
    """Write the matrix for people."""
    for name, broken in matrix.items():
        yield f"{name:44} {' '.join(broken) or '-'}"
    unfound = [name for name, broken in matrix.items() if not broken]
    yield ""
    yield f"{len(LAWS)} laws, {len(matrix)} switches, of which {len(unfound)} break no law"
