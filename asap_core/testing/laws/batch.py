"""Laws of batches: an array of requests is answered by an array."""

import gzip
import json
from typing import Final

from asap_core.testing.laws.checks import check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import Lab, to_body
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.survey import HARMLESS_SKILL
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import Json, JsonObject

BATCH: Final = LawGroup("batch", "an array of requests is answered by an array")

_MOST: Final = 50
_NEEDS: Final = frozenset({Need.SKILL, Need.BATCH})


def _kinds(answer: Answer) -> list[str]:
    """Return `result` or `error` for each answer in an array."""
    return ["result" if "result" in each else "error" for each in answer.items]


def _counted(answer: Answer) -> str:
    """Return how many answers there are: those of an array, or an object."""
    count = len(answer.items) if isinstance(answer.json, list) else 1
    return "1 answer" if count == 1 else f"{count} answers"


@BATCH.law(clause="docs/wire.md §4.1", expected="an array of the answers, in the order of the requests", needs=_NEEDS)
def answers_in_order(lab: Lab) -> Steps[None]:
    """A batch is answered by an array in the same order, each with its request's id."""
    ids = [lab.fresh() for _ in range(3)]
    answer = yield from lab.call([lab.rpc(lab.envelope(), id=each) for each in ids])
    got = [each.get("id") for each in answer.items]
    check(got == ids, f"{answer}: ids {got}, sent {ids}")
    check(_kinds(answer) == ["result"] * len(ids), f"{answer}: {_kinds(answer)}")


_EQUAL_IDS: Final[tuple[tuple[str, tuple[Json, Json]], ...]] = (("an id twice", ("x", "x")), ('1 and "1"', (1, "1")))


@BATCH.law(
    clause="docs/wire.md §4.1; docs/security.md 28",
    expected="each is answered in its own place, or both are refused",
    needs=_NEEDS,
)
def equal_ids(lab: Lab) -> Steps[None]:
    """Requests of a batch whose JSON-RPC ids are equal, or look equal, don't get each other's answers."""
    for example, ids in _EQUAL_IDS:
        inputs: list[JsonObject] = [lab.input, lab.input]
        if lab.skill == HARMLESS_SKILL:
            inputs = [{"text": lab.fresh()} for _ in ids]
        sent = [lab.envelope(payload=lab.task(input=each)) for each in inputs]
        answer = yield from lab.call([lab.rpc(each, id=one) for each, one in zip(sent, ids, strict=True)])
        if not answer.items:
            refused(answer, example)
            continue
        if _kinds(answer) == ["error", "error"]:
            continue
        got = [(each.get("id"), _correlation_id(each)) for each in answer.items]
        wanted = [(one, each["id"]) for one, each in zip(ids, sent, strict=True)]
        check(got == wanted, f"{answer}: ids and correlation_ids {got}, not {wanted}", example)
        if lab.skill == HARMLESS_SKILL:
            pairs = zip(inputs, answer.items, strict=True)
            check(all(str(each["text"]) in json.dumps(item) for each, item in pairs), "the other call's echo", example)


def _correlation_id(response: JsonObject) -> Json:
    """Return which envelope a response answers, or None."""
    result = response.get("result")
    envelope = result.get("envelope") if isinstance(result, dict) else None
    return envelope.get("correlation_id") if isinstance(envelope, dict) else None


@BATCH.law(
    clause="docs/wire.md §4.1; JSON-RPC 2.0 §6",
    expected="an error in the invalid request's place, and results in the others'",
    needs=_NEEDS,
)
def an_invalid_request_inside(lab: Lab) -> Steps[None]:
    """An invalid request in a batch is refused in its place, and the others are carried out."""
    invalid: tuple[tuple[str, Json], ...] = (("a number", 1), ("an array", [lab.rpc(lab.envelope())]), ("nothing", {}))
    for example, wrong in invalid:
        answer = yield from lab.call([lab.rpc(lab.envelope()), wrong, lab.rpc(lab.envelope())])
        check(_kinds(answer) == ["result", "error", "result"], f"{answer}: {_kinds(answer)}", example)


@BATCH.law(
    clause="docs/wire.md §4.1; JSON-RPC 2.0 §6",
    expected="one error object, Invalid request (-32600)",
    needs={Need.ADMITTED, Need.BATCH},
)
def sizes(lab: Lab) -> Steps[None]:
    """An empty batch, and one of more than 50 requests, is refused by one error object."""
    refused((yield from lab.call([])), "empty", codes=[-32600])
    many: list[Json] = [lab.rpc(lab.envelope()) for _ in range(_MOST + 1)]
    refused((yield from lab.call(many)), f"{len(many)} requests")


@BATCH.law(clause="docs/wire.md §4.1", expected="an array of 50 results", needs=_NEEDS)
def the_largest_batch(lab: Lab) -> Steps[None]:
    """A batch of 50 requests is answered."""
    answer = yield from lab.call([lab.rpc(lab.envelope()) for _ in range(_MOST)])
    check(_kinds(answer) == ["result"] * _MOST, f"{answer}: {len(answer.items)} answers")


@BATCH.law(
    clause="docs/security.md 2",
    expected="one is accepted, the other is refused",
    needs=_NEEDS,
)
def one_envelope_twice_in_a_batch(lab: Lab) -> Steps[None]:
    """The same envelope twice in one batch is accepted once."""
    envelope = lab.envelope()
    answer = yield from lab.call([lab.rpc(envelope), lab.rpc(envelope)])
    check(sorted(_kinds(answer)) == ["error", "result"], f"{answer}: {_kinds(answer)}")


@BATCH.law(clause="docs/wire.md §4.1", expected="an array with one answer", needs=_NEEDS)
def a_batch_of_one(lab: Lab) -> Steps[None]:
    """A batch of one request is answered by an array."""
    answer = yield from lab.call([lab.rpc(lab.envelope())])
    check(_kinds(answer) == ["result"], f"{answer}: {_kinds(answer)}")


@BATCH.law(clause="docs/wire.md §4.1; docs/errors.md", expected="status 200", needs=_NEEDS)
def status_of_batches(lab: Lab) -> Steps[None]:
    """A batch is answered with status 200, also if all its requests are refused."""
    for example, call in (("accepted", lab.rpc(lab.envelope())), ("refused", lab.rpc(lab.envelope(payload=1)))):
        answer = yield from lab.call([call, call])
        check(answer.status == 200, answer, example)  # noqa: PLR2004 - HTTP's
        check(len(answer.items) == 2, f"got {_counted(answer)} to a batch of 2 requests", example, at=answer)  # noqa: PLR2004


@BATCH.law(clause="docs/security.md 7", expected="each of the two is refused", needs=_NEEDS | {Need.AUTH})
def each_sender_is_checked(lab: Lab) -> Steps[None]:
    """Each envelope of a batch must come from the token's agent, wherever it stands."""
    foreign = [lab.rpc(lab.envelope(sender="urn:asap:agent:somebody-else")) for _ in range(2)]
    answer = yield from lab.call([foreign[0], lab.rpc(lab.envelope()), foreign[1]])
    check(_kinds(answer) == ["error", "result", "error"], f"{answer}: {_kinds(answer)}")


@BATCH.law(
    clause="docs/security.md 24", expected="an array of the answers", needs=_NEEDS | {Need.COMPRESSION}, strict=True
)
def compressed_batches(lab: Lab) -> Steps[None]:
    """A batch that is compressed is answered by an array too."""
    batch: list[Json] = [lab.rpc(lab.envelope()), lab.rpc(lab.envelope())]
    answer = yield from lab.post(gzip.compress(to_body(batch)), headers=[("Content-Encoding", "gzip")])
    answer = yield from lab.completed(batch, answer)
    check(_kinds(answer) == ["result", "result"], f"{answer}: {_kinds(answer)}")
