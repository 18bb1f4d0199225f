"""Nearly valid documents: each breaks one rule of its reader, and has the rule's name."""

import copy
from collections.abc import Mapping
from typing import Final, cast

from attrs import field, frozen
from hypothesis import strategies as st

from asap_core.testing.laws.lab import ABSENT, Change
from asap_core.testing.strategies import TEXTS, envelope_documents, json_values, manifests, urns
from asap_core.wire.codec import to_json
from asap_core.wire.envelope import MAX_ID
from asap_core.wire.json_values import Json, JsonObject
from asap_core.wire.manifest import MAX_TTL
from asap_core.wire.registry import make_entry

_OBJECTS: Final = st.dictionaries(TEXTS, json_values(max_leaves=2), max_size=2)
_ARRAYS: Final = st.lists(json_values(max_leaves=2), max_size=2)


@frozen
class NearlyValid:
    """A document that its reader refuses.

    rule: the name of the one rule that it breaks.
    document: plain JSON.
    mended: the same document with this rule kept. The reader accepts it.
    """

    rule: str
    document: JsonObject
    mended: JsonObject


@frozen
class BrokenRule:
    """How a rule is broken: `values` replace what is at `path`. `around`: values at the top that the rule needs."""

    path: tuple[str, ...]
    values: st.SearchStrategy[Change]
    around: Mapping[str, Json] = field(factory=dict)


def without(*kinds: str) -> st.SearchStrategy[Json]:
    """JSON values of all types but these."""
    values: dict[str, st.SearchStrategy[Json]] = {
        "null": st.none(),
        "boolean": st.booleans(),
        "number": st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
        "string": TEXTS,
        "array": _ARRAYS,
        "object": _OBJECTS,
    }
    return st.one_of([strategy for kind, strategy in values.items() if kind not in kinds])


MISSING: Final[st.SearchStrategy[Change]] = st.just(ABSENT)
_LONG: Final[st.SearchStrategy[Change]] = st.integers(MAX_ID + 1, 2 * MAX_ID).map("x".__mul__)
NOT_A_URN: Final[st.SearchStrategy[Change]] = st.sampled_from(
    ["", "agent", "urn:asap:agent:", "urn:asap:agent:a:b:c", "urn:asap:agent:A", "urn:asap:agent:a ", "urn:asap:tool:a",
     "URN:asap:agent:a", "urn:asap:agent:a\n", "urn:asap:agent:é"]
) | TEXTS.map(lambda text: f"urn:asap:agent:{text}!")  # fmt: skip
_NOT_A_TIME: Final[st.SearchStrategy[Change]] = st.sampled_from(
    ["", "yesterday", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-02-10T24:30:00Z", "20260210T120000Z",
     "2026-02-10T12:00:00+25:00", "2026-02-10T12:00:00Z Z", "0000-01-01T00:00:00Z"]
)  # fmt: skip
_CONTROLS: Final[st.SearchStrategy[Change]] = st.builds(
    lambda before, control, after: before + control + after, TEXTS, st.sampled_from("\0\t\n\r\x1b\x7f\u2028"), TEXTS
)

_MANIFEST_URLS: Final = (
    "http://agent.local/",
    "http://agent.local:8000/.well-known/asap/manifest.json",
    "https://AGENT.local./",
)

ENVELOPE_RULES: Final[Mapping[str, BrokenRule]] = {
    "an envelope has an id": BrokenRule(("id",), MISSING),
    "id is a string": BrokenRule(("id",), without("string")),
    "id isn't empty": BrokenRule(("id",), st.just("")),
    f"id has at most {MAX_ID} characters": BrokenRule(("id",), _LONG),
    "id has no control characters": BrokenRule(("id",), _CONTROLS),
    "asap_version is a string": BrokenRule(("asap_version",), without("string")),
    "an envelope has a timestamp": BrokenRule(("timestamp",), MISSING),
    "timestamp is a string or a number": BrokenRule(("timestamp",), without("string", "number")),
    "timestamp is a date and time": BrokenRule(("timestamp",), _NOT_A_TIME),
    "an envelope has a sender": BrokenRule(("sender",), MISSING),
    "sender is a string": BrokenRule(("sender",), without("string")),
    "sender is an agent's URN": BrokenRule(("sender",), NOT_A_URN),
    "an envelope has a recipient": BrokenRule(("recipient",), MISSING),
    "recipient is a string": BrokenRule(("recipient",), without("string")),
    "recipient is an agent's URN": BrokenRule(("recipient",), NOT_A_URN),
    "an envelope has a payload_type": BrokenRule(("payload_type",), MISSING),
    "payload_type is a string": BrokenRule(("payload_type",), without("string")),
    "payload_type isn't empty": BrokenRule(("payload_type",), st.just("")),
    f"payload_type has at most {MAX_ID} characters": BrokenRule(("payload_type",), _LONG),
    "an envelope has a payload": BrokenRule(("payload",), MISSING),
    "payload is an object": BrokenRule(("payload",), without("object")),
    "correlation_id is a string or null": BrokenRule(("correlation_id",), without("string", "null")),
    "an answer has a correlation_id": BrokenRule(
        ("correlation_id",),
        st.sampled_from([ABSENT, None, ""]),
        around={"payload_type": "task.response", "correlation_id": "of-a-request"},
    ),
    "trace_id is a string or null": BrokenRule(("trace_id",), without("string", "null")),
    "requires_ack is true or false": BrokenRule(("requires_ack",), without("boolean")),
    "extensions is an object or null": BrokenRule(("extensions",), without("object", "null")),
    "an envelope has no unknown keys": BrokenRule(("x-unknown",), json_values(max_leaves=2)),
}
"""The rules that `nearly_valid_envelopes` breaks, by name. Source: docs/wire.md §1.1, §1.5."""

MANIFEST_RULES: Final[Mapping[str, BrokenRule]] = {
    **{f"a manifest has {key}": BrokenRule((key,), MISSING)
       for key in ("id", "name", "version", "description", "capabilities", "endpoints")},
    **{f"{key} is a string": BrokenRule((key,), without("string"))
       for key in ("id", "name", "version", "description")},
    "id is an agent's URN": BrokenRule(("id",), NOT_A_URN),
    "capabilities is an object": BrokenRule(("capabilities",), without("object")),
    "skills is an array": BrokenRule(("capabilities", "skills"), without("array")),
    "a skill is an object": BrokenRule(("capabilities", "skills"), without("object").map(lambda item: [item])),
    "a skill has an id": BrokenRule(("capabilities", "skills"), st.just([{"description": ""}])),
    "a skill has a description": BrokenRule(("capabilities", "skills"), st.just([{"id": "echo"}])),
    "streaming is true or false": BrokenRule(("capabilities", "streaming"), without("boolean")),
    "endpoints is an object": BrokenRule(("endpoints",), without("object")),
    "endpoints has asap": BrokenRule(("endpoints", "asap"), MISSING),
    "endpoints.asap is a string": BrokenRule(("endpoints", "asap"), without("string")),
    "supported_versions is an array or null": BrokenRule(("supported_versions",), without("array", "null")),
    "supported_versions isn't empty": BrokenRule(("supported_versions",), st.just([])),
    "auth is an object or null": BrokenRule(("auth",), without("object", "null")),
    "auth has schemes": BrokenRule(("auth",), st.just({})),
    "schemes is an array": BrokenRule(("auth",), st.fixed_dictionaries({"schemes": without("array")})),
    "ttl_seconds is a whole number": BrokenRule(("ttl_seconds",), without("number") | st.just(5.5)),
    "ttl_seconds is at least 1": BrokenRule(("ttl_seconds",), st.integers(-(2**53), 0)),
    f"ttl_seconds is at most {MAX_TTL}": BrokenRule(("ttl_seconds",), st.integers(MAX_TTL + 1, 2**53)),
}  # fmt: skip
"""The rules that `nearly_valid_manifests` breaks, by name. Source: docs/wire.md §3."""


_ENTRY_KEYS: Final = ("id", "name", "description", "endpoints", "asap_version")
REGISTRY_ENTRY_RULES: Final[Mapping[str, BrokenRule]] = {
    **{f"an entry has {key}": BrokenRule((key,), MISSING) for key in _ENTRY_KEYS},
    **{f"{key} is a string": BrokenRule((key,), without("string"))
       for key in ("id", "name", "description", "asap_version")},
    "id is an agent's URN": BrokenRule(("id",), NOT_A_URN),
    "endpoints is an object": BrokenRule(("endpoints",), without("object")),
    "an endpoint is a string": BrokenRule(("endpoints", "http"), without("string")),
    "skills is an array": BrokenRule(("skills",), without("array")),
    "a skill is a string": BrokenRule(("skills",), without("string").map(lambda item: ["echo", item])),
}  # fmt: skip
"""The rules that `nearly_valid_registry_entries` breaks, by name. Source: docs/wire.md §8."""

ANNOUNCEMENT_RULES: Final[Mapping[str, BrokenRule]] = {
    "TXT has a manifest_url": BrokenRule(("txt", "manifest_url"), MISSING),
    "manifest_url is http or https": BrokenRule(
        ("txt", "manifest_url"), st.sampled_from(["", "ftp://agent.local/", "//agent.local/", "agent.local"])
    ),
    "manifest_url has a host": BrokenRule(("txt", "manifest_url"), st.sampled_from(["http://", "http:///x", "http:x"])),
    "manifest_url has no credentials": BrokenRule(
        ("txt", "manifest_url"), st.sampled_from(["http://me@agent.local:8000/", "http://me:secret@agent.local/"])
    ),
    "manifest_url is on the announcer": BrokenRule(
        ("txt", "manifest_url"),
        st.sampled_from(["http://other.local/", "http://192.0.2.8/", "http://agent.example/", "http://localhost/",
                         "http://agent.local.example/", "http://[2001:db8::8]/"]),
    ),
    "server is the host of the manifest_url": BrokenRule(("server",), st.sampled_from([None, "", "other.local."])),
    "id is an agent's URN": BrokenRule(("txt", "id"), NOT_A_URN),
}  # fmt: skip
"""The rules that `nearly_valid_announcements` breaks, by name. Source: docs/wire.md §7."""


def nearly_valid_envelopes(*rules: str) -> st.SearchStrategy[NearlyValid]:
    """Envelopes that break one rule each, named in `asap_core.testing.nearly_valid.ENVELOPE_RULES`.

    rules: the names of those to break; all of them if there are none.
    Raises: KeyError for a name that isn't in the table.
    """
    return _nearly_valid(envelope_documents(), ENVELOPE_RULES, rules)


def nearly_valid_manifests(*rules: str) -> st.SearchStrategy[NearlyValid]:
    """Manifests that break one rule each, named in `asap_core.testing.nearly_valid.MANIFEST_RULES`.

    rules: the names of those to break; all of them if there are none.
    Raises: KeyError for a name that isn't in the table.
    """
    return _nearly_valid(manifests().map(to_json), MANIFEST_RULES, rules)


def nearly_valid_registry_entries(*rules: str) -> st.SearchStrategy[NearlyValid]:
    """Entries of a registry that break one rule each, named in `REGISTRY_ENTRY_RULES` of this module.

    rules: the names of those to break; all of them if there are none.
    Raises: KeyError for a name that isn't in the table.
    """
    entries = manifests().map(lambda manifest: to_json(make_entry(manifest, {"http": "https://agent.example"})))
    return _nearly_valid(entries, REGISTRY_ENTRY_RULES, rules)


def nearly_valid_announcements(*rules: str) -> st.SearchStrategy[NearlyValid]:
    """Announcements by DNS-SD that break one rule each, named in `ANNOUNCEMENT_RULES` of this module.

    A document has the instance, and the server, port, addresses and TXT strings (`txt`) of its records.

    rules: the names of those to break; all of them if there are none.
    Raises: KeyError for a name that isn't in the table.
    """
    return _nearly_valid(_announcements(), ANNOUNCEMENT_RULES, rules)


def _announcements() -> st.SearchStrategy[JsonObject]:
    txt: dict[str, st.SearchStrategy[Json]] = {"manifest_url": st.sampled_from(_MANIFEST_URLS), "id": urns()}
    optional: dict[str, st.SearchStrategy[Json]] = {
        "version": TEXTS,
        "capabilities": st.sampled_from(["", "echo", "a,b"]),
    }
    records: dict[str, st.SearchStrategy[Json]] = {
        "instance": TEXTS,
        "server": st.sampled_from(["agent.local.", "Agent.LOCAL.", "agent.local"]),
        "port": st.integers(1, 65_535),
        "addresses": st.sampled_from([[], ["192.0.2.7"], ["192.0.2.7", "2001:db8::7"]]).map(list[Json]),
        "txt": st.fixed_dictionaries(txt, optional=optional),
    }
    return st.fixed_dictionaries(records)


def _nearly_valid(
    documents: st.SearchStrategy[JsonObject], table: Mapping[str, BrokenRule], rules: tuple[str, ...]
) -> st.SearchStrategy[NearlyValid]:
    chosen = {name: table[name] for name in rules or table}
    return st.sampled_from([*chosen]).flatmap(
        lambda name: st.builds(break_rule, st.just(name), st.just(chosen[name]), documents, chosen[name].values)
    )


def break_rule(name: str, how: BrokenRule, document: JsonObject, value: Change) -> NearlyValid:
    """Return a document with one of the values that break a rule."""
    mended = {**document, **how.around}
    broken = copy.deepcopy(mended)
    inner, (*parents, last) = broken, how.path
    for key in parents:
        inner = cast("JsonObject", inner[key])
    if value is ABSENT:
        inner.pop(last, None)
    else:
        inner[last] = value
    return NearlyValid(name, broken, mended)
