"""Laws of discovery: the manifest and the health document, and how they're cached."""

from typing import Final

from asap_core.testing.laws.checks import check
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import HEALTH_PATH, MANIFEST_PATH, Lab
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import LawNotTried

DISCOVERY: Final = LawGroup("discovery", "the manifest and the health document")

_REQUIRED: Final = ("id", "name", "description", "version", "capabilities", "endpoints")


@DISCOVERY.law(clause="docs/wire.md §3, §6", expected="status 200, application/json, and every required field")
def manifest(lab: Lab) -> Steps[None]:
    """The manifest is JSON and has every required field."""
    answer = yield from lab.get(MANIFEST_PATH)
    check(answer.status == 200 and not answer.problem, answer)  # noqa: PLR2004 - HTTP's
    check(answer.document, "no JSON object")
    kind = answer.header("content-type") or ""
    check(kind.lower().startswith("application/json"), f"Content-Type: {kind!r}")
    missing = [name for name in _REQUIRED if name not in lab.manifest]
    check(not missing, f"without {', '.join(missing)}")


@DISCOVERY.law(clause="docs/wire.md §6; RFC 9110 §13.1.2", expected="status 304 without a body, and the same ETag")
def revalidation(lab: Lab) -> Steps[None]:
    """A manifest that hasn't changed is answered 304 to its ETag."""
    etag = yield from _etag(lab)
    for example, value in (("the ETag alone", etag), ("in a list", f'"other", {etag}')):
        answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", value)])
        check(answer.status == 304 and not answer.body, answer, example)  # noqa: PLR2004 - HTTP's
        check(answer.header("etag") in (etag, None), f"ETag: {answer.header('etag')}", example)


@DISCOVERY.law(clause="RFC 9110 §13.1.2", expected="status 200 and the manifest", severity=Severity.SHOULD)
def other_etags_get_the_manifest(lab: Lab) -> Steps[None]:
    """The manifest is sent whole to a client that has another version of it."""
    yield from _etag(lab)
    answer = yield from lab.get(MANIFEST_PATH, headers=[("If-None-Match", '"another"')])
    check(answer.status == 200 and answer.document, answer)  # noqa: PLR2004 - HTTP's


@DISCOVERY.law(
    clause="docs/wire.md §6",
    expected="200 if `status` is healthy, 503 if it's unhealthy; `agent_id` is the manifest's id",
)
def health(lab: Lab) -> Steps[None]:
    """The health document fits its status and names this agent."""
    answer = yield from lab.get(HEALTH_PATH)
    status = {"healthy": 200, "unhealthy": 503}.get(str(answer.document.get("status")))
    check(status is not None and answer.status == status, f"{answer}, status: {answer.document.get('status')!r}")
    check(
        answer.document.get("agent_id") == (lab.recipient or answer.document.get("agent_id")),
        f"agent_id: {answer.document.get('agent_id')!r}",
    )


def _etag(lab: Lab) -> Steps[str]:
    answer: Answer = yield from lab.get(MANIFEST_PATH)
    etag = answer.header("etag")
    if etag is None:
        raise LawNotTried("the manifest has no ETag")
    return etag
