"""Writes docs/laws.md, the list of all laws: `python -m docs.laws > docs/laws.md`."""

from collections.abc import Iterator
from typing import Final

from asap_core.testing.laws.catalogue import GROUPS, LAWS
from asap_core.testing.laws.law import Law
from asap_core.testing.laws.verdicts import Need

_TOP: Final = """# All laws

What [`asap conform`](conformance.md) tries, by group: {count} laws. `python -m docs.laws > docs/laws.md` writes this
page.

*Severity*: a breach of a "must" harms peers, or accepts what is forged, repeated or stale; peers can work around one of
a "should"; "hardening" is about room for strangers. *Strict* laws aren't tried in the profile `reference`. *Needs*:
without one of these a law isn't tried.

| need | is |
|---|---|"""


def page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _TOP.format(count=len(LAWS))
    yield from (f"| {need.name.lower()} | {need.value} |" for need in Need)
    for group in GROUPS:
        yield from ("", f"## {group.name}", "", f"{group.about[0].upper()}{group.about[1:]}.", "")
        yield from ("| law | what must hold | severity | needs | from |", "|---|---|---|---|---|")
        yield from map(_row, group.laws)


def _row(law: Law) -> str:
    severity = f"{law.severity.value}, strict" if law.strict else law.severity.value
    needs = ", ".join(need.name.lower() for need in Need if need in law.needs)
    return f"| `{law.id}` | {law.title} | {severity} | {needs} | {law.clause} |"


if __name__ == "__main__":
    print(page(), end="")
