"""The switches: each breaks the agent at one decision."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from asap_core.testing.planted.break_table import BREAKS


@dataclass(frozen=True)
class Switch:
    """A way to break the agent. name: `group.break`. breaks: completes "the agent …"."""

    name: str
    breaks: str


SWITCHES: Final = {
    f"{group}.{name}": Switch(f"{group}.{name}", breaks)
    for group, switches in BREAKS.items()
    for name, breaks in switches.items()
}
"""All switches, by name."""


class Breaks:
    """The switches that are set: `broken("json_text.nan")`. Raises ValueError for a name that isn't in the table.

    asked: the switches that decisions have asked for. Another one would have changed nothing.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.asked: set[str] = set()
        self.names = frozenset(names)
        if unknown := self.names - SWITCHES.keys():
            raise ValueError(f"expected switches of SWITCHES, not {', '.join(sorted(unknown))}")

    def __call__(self, name: str) -> bool:
        """Whether this switch is set."""
        self.asked.add(name)
        return name in self.names

    @property
    def any(self) -> bool:
        """Whether any switch is set."""
        return bool(self.names)
