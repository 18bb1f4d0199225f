"""Bodies of POST /asap: calls that one agent admits, calls that it refuses for one reason, and anything else."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, cast

from attrs import frozen
from hypothesis import strategies as st

from asap_core.testing.laws.lab import ABSENT, Change, changed
from asap_core.testing.nearly_valid import ENVELOPE_RULES, BrokenRule, break_rule
from asap_core.testing.strategies import IDS, TEXTS, any_bodies, json_values, timestamps, urns
from asap_core.wire.codec import format_timestamp
from asap_core.wire.json_values import Json, JsonObject

# Ages in seconds that an agent with the default policy accepts, with some room for those on a real clock.
_FRESH: Final = st.just(0.0) | st.floats(-20, 200)
_TOO_OLD: Final = st.sampled_from([301.0, 3_600.0, 1e6]) | st.floats(400, 1e8)
_TOO_NEW: Final = st.sampled_from([-60.0, -3_600.0, -1e6]) | st.floats(-1e8, -60)

# Of ten bodies, about so many are of each kind. An agent that admits none of them would pass most tests.
_SHARES: Final = (*["admitted"] * 3, *["refused"] * 3, *["malformed"] * 3, "any")

# A field first, then one of its rules: each field is broken about as often.
_RULES_OF_FIELDS: Final = {
    path[0]: [how for how in ENVELOPE_RULES.values() if how.path[0] == path[0]]
    for path in (each.path for each in ENVELOPE_RULES.values())
}
_OPTIONAL_TEXTS: Final[st.SearchStrategy[Change]] = st.sampled_from([ABSENT, None, "", "text"]) | TEXTS
_OPTIONAL_BOOLEANS: Final[st.SearchStrategy[Change]] = st.sampled_from([ABSENT, False, True])
_SPELLINGS: Final = st.sampled_from(["task.request", "TaskRequest", "task_request"])
_INPUTS: Final[st.SearchStrategy[JsonObject]] = st.just({}) | st.dictionaries(
    TEXTS, json_values(max_leaves=2), max_size=1
)
_RPC_IDS: Final[st.SearchStrategy[Json]] = st.integers(0, 9) | IDS
_NO_NONCE: Final[st.SearchStrategy[Change]] = st.sampled_from([ABSENT, None, {}, {"nonce": None}])
_WRITERS: Final[tuple[Callable[[Json], str], ...]] = (
    json.dumps,
    lambda document: json.dumps(document, ensure_ascii=False, separators=(",", ":")),
    lambda document: json.dumps(document, sort_keys=True),
    lambda document: f"\r\n\t {json.dumps(document, indent=1)} ",
)


def request_bodies(
    *,
    recipient: str | None = None,
    sender: str | None = None,
    skill: str = "echo",
    wall: Callable[[], float] | None = None,
    ids: Callable[[], str] | None = None,
    only: str | None = None,
) -> st.SearchStrategy[bytes]:
    """Bodies of POST /asap: valid calls, nearly valid ones, batches of both, other JSON, and any bytes.

    With `recipient`, `sender` and `wall`, about a third is admitted by this agent, and about a third refused after it
    was read: each for one reason, named in `asap_core.testing.bodies.REFUSED`. Without them nearly none is admitted.

    recipient: the agent's URN.
    sender: the URN of the caller whose token is sent along; any URN if it's None.
    skill: one that the agent has.
    wall: returns the time by the agent's wall clock, in seconds since the Unix epoch; timestamps are any if it's None.
    ids: returns an id that the agent hasn't seen, for envelopes and nonces; they are drawn if it's None, so an agent
        that remembers what it has seen may refuse some.
    only: `"admitted"`, or a name in `REFUSED` or in `asap_core.testing.nearly_valid.ENVELOPE_RULES`: bodies of this
        kind only, for an agent whose `recipient` is given.
    Raises: KeyError for another kind.
    """
    if recipient is None:
        return any_bodies()
    facts = _Facts(
        recipient,
        urns() if sender is None else st.just(sender),
        skill,
        timestamps().map(datetime.timestamp) if wall is None else st.builds(wall),
        IDS if ids is None else st.builds(ids),
    )
    if only is not None:
        return _written(_admitted(facts) if only == "admitted" else _of_kind(facts, only))
    kinds = {"admitted": _written(_admitted(facts)), "refused": _written(_refused(facts)),
             "malformed": _written(_malformed(facts)), "any": any_bodies()}  # fmt: skip
    return st.sampled_from(_SHARES).flatmap(kinds.__getitem__)


@frozen
class _Facts:
    """What an agent admits calls by."""

    recipient: str
    sender: st.SearchStrategy[str]
    skill: str
    wall: st.SearchStrategy[float]
    ids: st.SearchStrategy[str]


def _written(documents: st.SearchStrategy[Json]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda document, write: write(document).encode(), documents, st.sampled_from(_WRITERS))


def _stamp(wall: float, age: float) -> str:
    return format_timestamp(datetime.fromtimestamp(wall - age, UTC))


@st.composite
def _admitted(draw: st.DrawFn, facts: _Facts) -> JsonObject:
    """A call that the agent admits, as a JSON-RPC request."""
    optional: dict[str, Change] = {
        "correlation_id": draw(_OPTIONAL_TEXTS),
        "trace_id": draw(_OPTIONAL_TEXTS),
        "requires_ack": draw(_OPTIONAL_BOOLEANS),
    }
    envelope: JsonObject = {
        "id": draw(facts.ids),
        "asap_version": "0.1",
        "timestamp": _stamp(draw(facts.wall), draw(_FRESH)),
        "sender": draw(facts.sender),
        "recipient": facts.recipient,
        "payload_type": draw(_SPELLINGS),
        "payload": {
            "conversation_id": draw(TEXTS),
            "skill_id": facts.skill,
            "input": draw(_INPUTS),
        },
        "extensions": {"nonce": draw(facts.ids)},
    }
    params: JsonObject = {"envelope": changed(envelope, optional)}
    if draw(st.booleans()):
        params["idempotency_key"] = draw(facts.ids)
    return {"jsonrpc": "2.0", "method": "asap.send", "id": draw(_RPC_IDS), "params": params}


def _envelope_of(call: JsonObject) -> JsonObject:
    return cast("JsonObject", cast("JsonObject", call["params"])["envelope"])


def _with(call: JsonObject, **changes: Change) -> JsonObject:
    """Return a call whose envelope has these values."""
    params = {**cast("JsonObject", call["params"]), "envelope": changed(_envelope_of(call), changes)}
    return {**call, "params": params}


def _keyed(call: JsonObject, key: str) -> JsonObject:
    return {**call, "params": {**cast("JsonObject", call["params"]), "idempotency_key": key}}


def _too_old(draw: st.DrawFn, facts: _Facts, call: JsonObject) -> Json:
    return _with(call, timestamp=_stamp(draw(facts.wall), draw(_TOO_OLD)))


def _too_new(draw: st.DrawFn, facts: _Facts, call: JsonObject) -> Json:
    return _with(call, timestamp=_stamp(draw(facts.wall), draw(_TOO_NEW)))


def _another_sender(draw: st.DrawFn, _facts: _Facts, call: JsonObject) -> Json:
    return _with(call, sender=draw(st.just(f"{_envelope_of(call)['sender']}-2") | urns()))


def _another_recipient(draw: st.DrawFn, facts: _Facts, call: JsonObject) -> Json:
    return _with(call, recipient=draw(st.just(f"{facts.recipient}-2") | urns()))


def _nonce_of_no_use(draw: st.DrawFn, _facts: _Facts, call: JsonObject) -> Json:
    return _with(call, extensions={"nonce": draw(st.sampled_from(["", 7, True, [], {}]))})


def _id_again(draw: st.DrawFn, facts: _Facts, call: JsonObject) -> Json:
    bare = _with(call, extensions=draw(_NO_NONCE))
    return [_keyed(bare, draw(facts.ids)), _keyed(bare, draw(facts.ids))]


def _nonce_again(draw: st.DrawFn, facts: _Facts, call: JsonObject) -> Json:
    first, again = _keyed(call, draw(facts.ids)), _keyed(call, draw(facts.ids))
    return [first, _with(again, id=draw(facts.ids | st.just(_envelope_of(call)["id"])))]


def _key_again(draw: st.DrawFn, facts: _Facts, call: JsonObject) -> Json:
    key = draw(facts.ids)
    payload = {**cast("JsonObject", _envelope_of(call)["payload"]), "input": {"another": "request"}}
    other = _with(call, id=draw(facts.ids), extensions={"nonce": draw(facts.ids)}, payload=payload)
    return [_keyed(call, key), _keyed(other, key)]


def _unknown_type(_draw: st.DrawFn, _facts: _Facts, call: JsonObject) -> Json:
    return _with(call, payload_type="x.unknown")


def _unknown_skill(_draw: st.DrawFn, facts: _Facts, call: JsonObject) -> Json:
    return _with(call, payload={**cast("JsonObject", _envelope_of(call)["payload"]), "skill_id": f"{facts.skill}-2"})


def _unknown_version(_draw: st.DrawFn, _facts: _Facts, call: JsonObject) -> Json:
    return _with(call, asap_version="9.0")


def _another_method(_draw: st.DrawFn, _facts: _Facts, call: JsonObject) -> Json:
    return {**call, "method": "asap.other"}


_Spoil = Callable[[st.DrawFn, _Facts, JsonObject], Json]

REFUSED: Final[Mapping[str, _Spoil]] = {
    "too old": _too_old,
    "in the future": _too_new,
    "another sender": _another_sender,
    "another recipient": _another_recipient,
    "a nonce that isn't text": _nonce_of_no_use,
    "an id again, without a nonce": _id_again,
    "a nonce again": _nonce_again,
    "a key again, for another request": _key_again,
    "an unknown payload type": _unknown_type,
    "an unknown skill": _unknown_skill,
    "an unknown version": _unknown_version,
    "another method": _another_method,
}
"""Why an agent refuses a call that it could read. Each makes one from a call that is admitted."""


def _of_kind(facts: _Facts, kind: str) -> st.SearchStrategy[Json]:
    return _refused(facts, REFUSED[kind]) if kind in REFUSED else _malformed(facts, ENVELOPE_RULES[kind])


@st.composite
def _refused(draw: st.DrawFn, facts: _Facts, spoil: _Spoil | None = None) -> Json:
    """A call that the agent can read and refuses, or a batch of two of which it refuses the second."""
    chosen = spoil or draw(st.sampled_from([*REFUSED.values()]))
    return chosen(draw, facts, draw(_admitted(facts)))


@st.composite
def _malformed(draw: st.DrawFn, facts: _Facts, rule: BrokenRule | None = None) -> Json:
    """A call whose envelope breaks one rule."""
    call = draw(_admitted(facts))
    how = rule or draw(st.sampled_from(_RULES_OF_FIELDS[draw(st.sampled_from([*_RULES_OF_FIELDS]))]))
    broken = break_rule("", how, _envelope_of(call), draw(how.values))
    return {**call, "params": {**cast("JsonObject", call["params"]), "envelope": broken.document}}
