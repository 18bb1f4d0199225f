"""Laws of versions: which one is spoken is agreed on, and what isn't known is refused."""

from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import SendBytes, Steps
from asap_core.testing.laws.lab import Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import LawNotTried, Need

VERSIONS: Final = LawGroup("versions", "which version is spoken")

_HEADER: Final = "ASAP-Version"
_MOMENT: Final = 0.3


@VERSIONS.law(
    clause="docs/wire.md §13",
    expected="it's refused, by asap:protocol/version_incompatible (-32000) with `data.supported`",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
)
def unknown_versions(lab: Lab) -> Steps[None]:
    """A request that names only versions that the agent doesn't know is refused."""
    # Numbers, and versions of three parts, that a reader could take for 2.1 and 2.2.
    for value in ("99.0", "99.0, 98.1", "2.10", "2.20", "02.1", "2.1.0", "2"):
        answer = yield from lab.call(lab.rpc(lab.envelope()), headers=[(_HEADER, value)])
        refused(answer, f"{_HEADER}: {value}", codes=[-32000, "asap:protocol/version_incompatible"])
        check(answer.data.get("supported"), f"data: {answer.data}", f"{_HEADER}: {value}")


@VERSIONS.law(
    clause="docs/wire.md §13",
    expected="the header repeats the version that was chosen, also if the call is refused for another reason",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
)
def the_first_known_version(lab: Lab) -> Steps[None]:
    """The agent chooses the first version of the list that it knows."""
    for value, chosen in (("2.1, 2.2", "2.1"), ("2.2, 2.1", "2.2"), ("99.0, 2.1", "2.1")):
        answer = yield from lab.call(lab.rpc(lab.envelope()), headers=[(_HEADER, value)])
        accepted(answer, value)
        got = answer.header(_HEADER.lower())
        check(got == chosen, f"{_HEADER}: {got}", value)
    answer = yield from lab.call(lab.rpc(lab.envelope(payload=1)), headers=[(_HEADER, "2.1")])
    refused(answer, "a refused call")
    check(answer.header(_HEADER.lower()) == "2.1", f"{_HEADER}: {answer.header(_HEADER.lower())}", "a refused call")


@VERSIONS.law(
    clause="docs/wire.md §13",
    expected="each answer names the version that its own request asks for, or 2.2",
    severity=Severity.SHOULD,
    needs={Need.SKILL, Need.BYTES},
)
def each_request_has_its_version(lab: Lab) -> Steps[None]:
    """The version is chosen for each request, also on a connection that has carried another one."""
    asked = ("2.1", "2.2", "2.1", None)
    calls = [
        lab.post_request(
            to_body(lab.rpc(lab.envelope())), headers=[] if each is None else [(_HEADER, each)], close=False
        ).to_bytes()
        for each in asked
    ]
    pieces = [piece for each in calls for piece in (each, _MOMENT)]
    got = yield from SendBytes(tuple(pieces[:-1]), answers=len(asked))
    if len(got.answers) < len(asked):
        raise LawNotTried("the agent ends the connection before the last request")
    for number, (value, answer) in enumerate(zip(asked, got.answers, strict=True), 1):
        accepted(answer, f"request {number}")
        named = answer.header(_HEADER.lower())
        check(named == (value or "2.2"), f"{_HEADER}: {named}", f"request {number}, which asks for {value or 'none'}")


@VERSIONS.law(
    clause="RFC 9110 §5.3", expected="each is accepted", severity=Severity.SHOULD, needs={Need.SKILL}, strict=True
)
def versions_in_several_lines(lab: Lab) -> Steps[None]:
    """Several lines `ASAP-Version` are one list, of which any member may be known."""
    for example, values in (("first", ("2.2", "99.0")), ("second", ("99.0", "2.2"))):
        answer = yield from lab.call(lab.rpc(lab.envelope()), headers=[(_HEADER, value) for value in values])
        accepted(answer, f"in the {example} line")


@VERSIONS.law(
    clause="docs/security.md 10",
    expected="each is refused: it may mean something else by the same keys",
    needs={Need.SKILL},
    strict=True,
)
def versions_of_envelopes(lab: Lab) -> Steps[None]:
    """An envelope of another major version than 0 is refused."""
    for version in ("1.0", "2.2", "99"):
        refused((yield from lab.send(lab.envelope(asap_version=version))), f"asap_version {version}")


@VERSIONS.law(
    clause="docs/wire.md §13",
    expected="each call is accepted, and the header names 2.2",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
    strict=True,
)
def without_a_version(lab: Lab) -> Steps[None]:
    """Without the header, or with an empty one, the version is 2.2."""
    for example, headers in (("no header", []), ("an empty one", [(_HEADER, "")])):
        answer = yield from lab.call(lab.rpc(lab.envelope()), headers=headers)
        accepted(answer, example)
        check(answer.header(_HEADER.lower()) == "2.2", f"{_HEADER}: {answer.header(_HEADER.lower())}", example)
