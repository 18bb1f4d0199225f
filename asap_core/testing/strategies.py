"""Hypothesis strategies for the protocol: valid values, nearly valid ones, and arbitrary ones."""

import json
from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import strategies as st

from asap_core.http.messages import Request
from asap_core.wire.codec import encode_envelope
from asap_core.wire.envelope import ASAP_VERSION, Envelope
from asap_core.wire.json_values import Json, JsonObject
from asap_core.wire.manifest import AuthScheme, Capabilities, Endpoints, Manifest, Skill

_SEGMENT = st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IDS = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Zs", "Cn", "Co"]), min_size=1, max_size=40
)


def urns() -> st.SearchStrategy[str]:
    """Valid agent URNs, with one segment or two."""
    return st.lists(_SEGMENT, min_size=1, max_size=2).map(lambda parts: "urn:asap:agent:" + ":".join(parts))


def json_values(*, max_leaves: int = 10) -> st.SearchStrategy[Json]:
    """JSON values that are equal after they are written and read.

    max_leaves: about how many scalars one has at most.
    """
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | TEXTS
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
        max_leaves=max_leaves,
    )


def _objects() -> st.SearchStrategy[JsonObject]:
    return st.dictionaries(TEXTS, json_values(max_leaves=4), max_size=4)


def timestamps() -> st.SearchStrategy[datetime]:
    """Times in UTC."""
    return st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def envelopes() -> st.SearchStrategy[Envelope]:
    """Valid envelopes, of task requests and of an unknown payload type."""
    tasks = st.fixed_dictionaries({"conversation_id": TEXTS, "skill_id": TEXTS, "input": _objects()})
    kinds = st.sampled_from(["task.request", "TaskRequest", "task_request"]).flatmap(
        lambda kind: tasks.map(lambda payload: (kind, payload))
    )
    unknown = st.tuples(st.just("x.unknown"), _objects())
    return st.builds(
        lambda kind, **fields: Envelope(asap_version=ASAP_VERSION, payload_type=kind[0], payload=kind[1], **fields),
        kind=kinds | unknown,
        id=IDS,
        timestamp=timestamps(),
        sender=urns(),
        recipient=urns(),
        correlation_id=st.none() | TEXTS,
        trace_id=st.none() | TEXTS,
        requires_ack=st.booleans(),
        extensions=st.none() | st.fixed_dictionaries({"nonce": IDS}),
    )


def envelope_documents() -> st.SearchStrategy[JsonObject]:
    """Valid envelopes as plain JSON."""
    return envelopes().map(encode_envelope)


def broken_documents() -> st.SearchStrategy[JsonObject]:
    """Envelopes as plain JSON with at most one change: a key removed, a key added, or a value replaced by any other."""

    def spoil(document: JsonObject, key: str, value: Json, how: str) -> JsonObject:
        if how == "remove":
            return {name: item for name, item in document.items() if name != key}
        return {**document, (key if how == "replace" else f"x-{key}"): value}

    keys = st.sampled_from(["id", "timestamp", "sender", "recipient", "payload_type", "payload", "extensions"])
    return st.builds(
        spoil, envelope_documents(), keys, json_values(max_leaves=3), st.sampled_from(["remove", "replace", "add"])
    )


def manifests() -> st.SearchStrategy[Manifest]:
    """Valid manifests that an agent may publish."""
    skills = st.lists(st.builds(Skill, id=TEXTS, description=TEXTS, input_schema=st.none() | _objects()), max_size=3)
    return st.builds(
        Manifest,
        id=urns(),
        name=TEXTS,
        version=st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True),
        description=TEXTS,
        capabilities=st.builds(Capabilities, skills=skills, streaming=st.booleans()),
        endpoints=st.builds(Endpoints, asap=st.just("https://agent.example/asap")),
        auth=st.none() | st.builds(AuthScheme, schemes=st.just(["bearer"])),
        ttl_seconds=st.integers(1, 10**6),
    )


def any_bodies() -> st.SearchStrategy[bytes]:
    """Bodies of POST /asap, for no agent in particular: calls, nearly valid ones, batches, other JSON, any bytes."""
    params = st.fixed_dictionaries(
        {"envelope": envelope_documents() | broken_documents() | json_values(max_leaves=3)},
        optional={"idempotency_key": IDS | json_values(max_leaves=2)},
    )
    call = st.fixed_dictionaries(
        {"method": st.just("asap.send") | TEXTS, "params": params | json_values(max_leaves=3)},
        optional={
            "jsonrpc": st.just("2.0") | TEXTS,
            "id": st.integers() | IDS | json_values(max_leaves=2),
            "x": st.none(),
        },
    )
    documents = call | st.lists(call | json_values(max_leaves=2), max_size=4) | json_values()
    texts = documents.map(lambda value: json.dumps(value).encode())
    return texts | texts.flatmap(_damaged) | st.binary(max_size=200)


def _damaged(text: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, len(text))
    return st.builds(lambda at, extra: text[:at] + extra + text[at + 1 :], places, st.binary(max_size=3))


def requests() -> st.SearchStrategy[Request]:
    """Heads of requests: the paths and headers that the protocol uses, and others."""
    names = st.sampled_from(
        b"authorization content-encoding content-length asap-version expect if-none-match host transfer-encoding "
        b"x-idempotency-key x".split()
    )
    values = st.sampled_from(
        [b"", b"gzip", b"br", b"identity", b"Bearer x", b"2.2", b"99", b"100-continue", b"*", b"5", b"5,5", b"chunked"]
    ) | st.binary(max_size=20)
    paths = st.sampled_from(
        [
            "/asap",
            "/asap/stream",
            "/asap?x=1",
            "/health",
            "/ready",
            "/.well-known/asap/health",
            "http://h/asap",
            "http://h?/asap",
            "?://h/asap",
            "*",
            "",
        ]
    )
    return st.builds(
        Request,
        method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "get", ""]) | TEXTS,
        target=paths | st.just("/.well-known/asap/manifest.json") | TEXTS,
        headers=st.lists(st.tuples(names, values), max_size=4).map(tuple),
        peer=st.sampled_from(["192.0.2.1", "2001:db8::1", "", "nonsense"]),
    )


def cuts(data: bytes) -> st.SearchStrategy[tuple[bytes, ...]]:
    """The pieces of `data`, cut anywhere: in one piece, in some, or byte by byte. No piece is empty."""

    def cut(places: list[int]) -> tuple[bytes, ...]:
        edges = sorted({0, len(data), *places})
        return tuple(data[start:end] for start, end in pairwise(edges))

    places = st.lists(st.integers(0, len(data)), max_size=8)
    return st.one_of(places, st.just([*range(len(data))])).map(cut)
