"""What a run does first: fetches the manifest, and makes the lab of it and of the user's options."""

from collections.abc import Callable
from typing import Final

from attrs import evolve, field, frozen

from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import ANONYMOUS, MANIFEST_PATH, Caller, Lab
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import Json, JsonObject

# Features that an agent may leave out, which nothing in its manifest says: assumed unless the user names them.
ASSUMED: Final = frozenset({Need.IDEMPOTENCY, Need.BATCH, Need.COMPRESSION})
_OK: Final = 200
_UNAUTHORIZED: Final = 401
# The skill that laws may run if the user names none: by convention it changes nothing.
HARMLESS_SKILL: Final = "echo"


@frozen(kw_only=True)
class AgentUnderTest:
    """The agent under test, as the user describes it.

    host: what stands in `Host`.
    root: the path of the base URL, without a slash at its end.
    token, urn: the caller; `other_token`, `other_urn`: a second one.
    skill: the skill that laws may run. Without it only one named echo is run.
    failing: a skill that fails whatever its input, which laws may run too.
    without: features that the agent doesn't have.
    offers: what the executor can do, and what the user allows (`Need.DIRECT`).
    """

    host: str
    root: str = ""
    token: str | None = field(default=None, repr=False)
    urn: str | None = None
    other_token: str | None = field(default=None, repr=False)
    other_urn: str | None = None
    skill: str | None = None
    input: JsonObject = field(factory=lambda: {"text": "hello"})
    failing: str | None = None
    without: frozenset[Need] = frozenset()
    offers: frozenset[Need] = frozenset()


@frozen
class NoManifest:
    """There's no agent: nothing, or no manifest, was answered. `got`: the answer."""

    got: str


def survey(target: AgentUnderTest, *, wall: Callable[[], float], ids: Callable[[], str]) -> Steps[Lab | NoManifest]:
    """Fetch the manifest, and return the lab for this target."""
    blank = Lab(
        host=target.host, path=f"{target.root}/asap", root=target.root, manifest={}, recipient="",
        caller=Caller(target.urn or ANONYMOUS, target.token), skill=None, input=target.input, failing=target.failing,
        has=frozenset(), wall=wall, ids=ids,
    )  # fmt: skip
    answer = yield from blank.get(MANIFEST_PATH)
    manifest = _manifest_in(answer)
    if answer.status != _OK and not (answer.status is None and answer.raw):
        return NoManifest(str(answer))
    agent = manifest.get("id")
    if not isinstance(agent, str):  # laws of discovery say what is wrong with it, and no call can be made
        return evolve(blank, manifest=manifest, has=target.offers)
    authenticates = bool(manifest.get("auth"))
    skill = target.skill or (HARMLESS_SKILL if HARMLESS_SKILL in _skills(manifest) else None)
    other = _other_caller(target, authenticates=authenticates)
    has = (target.offers | ASSUMED) - target.without
    has |= {Need.AUTH} if authenticates and target.token is not None else set()
    has |= set() if authenticates else {Need.OPEN}
    admitted = target.token is not None or not authenticates
    has |= {Need.ADMITTED} if admitted else set()
    has |= {Need.SKILL} if admitted and skill is not None else set()
    has |= {Need.FAILING} if admitted and target.failing is not None else set()
    has |= {Need.OTHER} if other is not None else set()
    return evolve(blank, manifest=manifest, recipient=agent, skill=skill, other=other, has=has)


def refused_caller(lab: Lab) -> Steps[Caller | None]:
    """Return the caller whose token the agent refuses, if there is one. It sends each a call that is no call."""
    for caller in (lab.caller, lab.other):
        if caller is not None and caller.token is not None:
            answer = yield from lab.call({}, caller=caller)
            if answer.status == _UNAUTHORIZED:
                return caller
    return None


def _manifest_in(answer: Answer) -> JsonObject:
    """Return the manifest, also of a signed one (docs/wire.md §13)."""
    inner = answer.document.get("manifest")
    return inner if isinstance(inner, dict) else answer.document


def _skills(manifest: JsonObject) -> list[Json]:
    capabilities = manifest.get("capabilities")
    skills = capabilities.get("skills") if isinstance(capabilities, dict) else None
    return [each.get("id") for each in skills if isinstance(each, dict)] if isinstance(skills, list) else []


def _other_caller(target: AgentUnderTest, *, authenticates: bool) -> Caller | None:
    """Return the second caller: with a token of its own, or, where nobody authenticates, just another name."""
    if not authenticates:
        return Caller(target.other_urn or f"{ANONYMOUS}:other")
    if target.other_token is None or target.other_urn is None:
        return None
    return Caller(target.other_urn, target.other_token)
