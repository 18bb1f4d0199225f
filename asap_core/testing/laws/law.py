"""A law as data: what an agent must do, where that is written, how it's provoked and judged.

A law is a generator that reads like a test. It yields effects, mostly through the methods of `Lab`, and judges the
answers by the functions of `checks`. They raise `LawBroken` or `LawNotTried`, which the runner turns into values: an
author can't forget to return a verdict. A law that returns is kept.

One clause is one law; variants of an input are examples inside it. A law's id is its group and its function's name, and
never changes: files of expected failures and reports name it.
"""

from collections.abc import Callable, Collection, Iterable
from enum import Enum

from attrs import define, field, frozen

from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import Lab
from asap_core.testing.laws.verdicts import Need

Provoke = Callable[[Lab], Steps[None]]


class Severity(Enum):
    """How bad a breach is."""

    MUST = "must"
    """Peers can't work with the agent, or it accepts what is forged, repeated or stale."""
    SHOULD = "should"
    """Peers can work around it."""
    HARDENING = "hardening"
    """The agent gives strangers more room than it needs to."""


@frozen(kw_only=True)
class Law:
    """One law.

    clause: where it's written: a section of docs/wire.md, a guarantee of docs/security.md, an RFC's section.
    title: the law in one sentence.
    expected: what an agent that keeps it does, for the report.
    needs: without one of these it isn't tried.
    strict: whether it's judged in the profile strict only: the reference implementation doesn't promise it.
    """

    id: str
    group: str
    title: str
    clause: str
    expected: str
    severity: Severity = Severity.MUST
    needs: frozenset[Need] = frozenset()
    strict: bool = False
    provoke: Provoke = field(repr=False)


@define
class LawGroup:
    """The laws of one module, in the order of definition. Its method `law` is the decorator that adds one."""

    name: str
    about: str
    laws: list[Law] = field(factory=list)

    def law(
        self,
        *,
        clause: str,
        expected: str,
        severity: Severity = Severity.MUST,
        needs: Collection[Need] = (),
        strict: bool = False,
    ) -> Callable[[Provoke], Provoke]:
        """Add the law that this function provokes. Its name completes the id; its docstring is the title."""

        def add(provoke: Provoke) -> Provoke:
            title = (provoke.__doc__ or "").strip().partition("\n")[0]
            name = provoke.__name__
            self.laws.append(
                Law(
                    id=f"{self.name}.{name}", group=self.name, title=title, clause=clause, expected=expected,
                    severity=severity, needs=frozenset(needs), strict=strict, provoke=provoke,
                )
            )  # fmt: skip
            return provoke

        return add


def by_id(laws: Iterable[Law]) -> dict[str, Law]:
    """Return the laws by their ids. Raises ValueError if two have one id."""
    found: dict[str, Law] = {}
    for each in laws:
        if each.id in found:
            raise ValueError(f"two laws have the id {each.id}")
        found[each.id] = each
    return found
