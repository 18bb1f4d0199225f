"""Explores a state machine breadth-first: every input in every state that can be reached, each state once.

A world is a machine with those who use it, and offers a small alphabet of inputs. Its states can't be copied, since
closures hold parts of them. So each input is tried on a new world, after the inputs that led to its state.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Final, Protocol

from attrs import define, field, frozen

Step = tuple[Hashable, ...]
"""An input: its name, and what it's about."""


class World(Protocol):
    """One machine."""

    def inputs(self) -> Sequence[Step]:
        """Return what may happen now."""

    def do(self, step: Step) -> None:
        """Let it happen, and check what came of it."""

    def check(self) -> None:
        """Check what holds in every state."""

    def fingerprint(self) -> Hashable:
        """Return all of the state that a later decision depends on. Times are relative to now."""

    def is_over(self) -> bool:
        """Whether nothing is under way."""


@frozen
class Explored:
    """How much was explored.

    inputs: how many kinds of inputs there were.
    depth: how many inputs the farthest state needs.
    """

    inputs: int
    states: int
    transitions: int
    depth: int


class Fault(AssertionError):
    """What is wrong after the shortest sequence of inputs that shows it."""

    def __init__(self, path: Sequence[Step], wrong: object) -> None:
        self.path: Final = path
        told = " → ".join(" ".join(map(str, step)) for step in path)
        super().__init__(f"after {told or 'nothing'}: {wrong}")


@define
class _Search:
    """What was found: the shortest way to each state, its inputs, whence it's reached, and which states are over."""

    make: Callable[[], World]
    escapes: Collection[str]
    paths: dict[Hashable, Sequence[Step]] = field(factory=dict)
    offered: dict[Hashable, Sequence[str]] = field(factory=dict)
    before: defaultdict[Hashable, set[Hashable]] = field(factory=lambda: defaultdict(set))
    over: set[Hashable] = field(factory=set)

    def reach(self, path: Sequence[Step], origin: Hashable = None) -> Hashable | None:
        """Return the state that the inputs lead to, if it's a new one."""
        world = self.make()
        try:
            for step in path:
                world.do(step)
            world.check()
        except Exception as error:
            raise Fault(path, f"{type(error).__name__}: {error}") from error
        state = world.fingerprint()
        if path and path[-1][0] not in self.escapes:
            self.before[state].add(origin)
        if world.is_over():
            self.over.add(state)
        names = sorted(str(step[0]) for step in world.inputs())
        if names != self.offered.setdefault(state, names):
            raise Fault(path, f"the fingerprint hides something: the inputs were {self.offered[state]}, now {names}")
        return None if self.paths.setdefault(state, path) is not path else state

    def inputs(self, path: Sequence[Step]) -> Sequence[Step]:
        world = self.make()
        for step in path:
            world.do(step)
        return world.inputs()

    def find_traps(self) -> None:
        ends, queue = set(self.over), deque(self.over)
        while queue:
            new = self.before[queue.popleft()] - ends
            queue.extend(new)
            ends |= new
        if trapped := [path for state, path in self.paths.items() if state not in ends]:
            raise Fault(min(trapped, key=len), "there's no way to an end")


def explore(make: Callable[[], World], *, escapes: Collection[str] = ()) -> Explored:
    """Explore all states. Raises Fault if a check fails, an input raises, or a state is a trap.

    escapes: names of inputs that give up. From every state without them a sequence must lead to one that is over.
    """
    search, transitions = _Search(make, escapes), 0
    queue = deque([search.reach(())])
    while queue:
        state = queue.popleft()
        path = search.paths[state]
        for step in search.inputs(path):
            transitions += 1
            new = search.reach((*path, step), state)
            queue.extend([] if new is None else [new])
    search.find_traps()
    kinds = {name for names in search.offered.values() for name in names}
    return Explored(len(kinds), len(search.paths), transitions, max(map(len, search.paths.values())))
