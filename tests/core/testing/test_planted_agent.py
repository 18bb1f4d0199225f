"""The planted agent, with no switch set, decides as this library's agent: two implementations of the same rules."""

import ast
import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asap_core import ManualClock
from asap_core.testing import request_bodies
from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.break_table import BREAKS
from asap_core.testing.planted.switches import SWITCHES
from tests.core.testing.planted_pair import ABSENT, ALICE, BOB, MAX_BODY, Pair, written

ROOT = Path(__file__).parent.parent.parent.parent
LONG = "x" * 257


def changed(**changes: Any) -> Any:
    return lambda pair: written(pair.call(**changes))


FIELDS: list[str] = [
    "id", "asap_version", "timestamp", "sender", "recipient", "payload_type", "payload", "extensions", "correlation_id",
    "trace_id", "requires_ack",
]  # fmt: skip
ENVELOPES: dict[str, Any] = {
    "right": changed(),
    "no nonce": changed(extensions=ABSENT),
    "null extensions": changed(extensions=None),
    "another spelling of the type": changed(payload_type="TaskRequest"),
    "all fields": changed(correlation_id="c", trace_id="t", requires_ack=True),
    "unknown key": changed(status="x"),
    "two unknown keys": changed(status="x", a=1),
    **{
        f"{key} {name}": changed(**{key: value})
        for key in FIELDS
        for name, value in {
            "absent": ABSENT, "null": None, "empty": "", "long": LONG, "number": 7, "fraction": 0.5, "true": True,
            "array": [], "object": {}, "control": "a\x00b", "newline": "urn:asap:agent:planted\n",
        }.items()
        if (key, value) != ("asap_version", ABSENT)
    },
    **{
        f"sender {sender}": changed(sender=sender)
        for sender in (
            BOB, "urn:asap:agent:alice:v1", "urn:asap:agent:Alice", "urn:asap:agent:a:b:c", "urn:asap:agent:",
            "urn:asap:agent:" + "a" * 241, "urn:asap:agent:" + "a" * 242, " urn:asap:agent:alice", "alice",
        )
    },
    "another recipient": changed(recipient=BOB),
    "a longer recipient": changed(recipient="urn:asap:agent:planted:v2"),
    "another version": changed(asap_version="1.0"),
    "another minor version": changed(asap_version="0.9"),
    "an unknown type": changed(payload_type="task.unknown"),
    "an answer without correlation": changed(payload_type="task.response"),
    "an answer with correlation": changed(payload_type="task.response", correlation_id="c"),
    "a nonce that is no text": changed(extensions={"nonce": 5}),
    "an empty nonce": changed(extensions={"nonce": ""}),
    "a null nonce": changed(extensions={"nonce": None}),
    "an unknown skill": changed(payload={"conversation_id": "c", "skill_id": "other", "input": {}}),
    "a skill that fails": changed(payload={"conversation_id": "c", "skill_id": "fail", "input": {}}),
    "an empty payload": changed(payload={}),
    "an unknown key in the payload": changed(
        payload={"conversation_id": "c", "skill_id": "echo", "input": {}, "x": 1}
    ),
    "another type in the payload": changed(payload={"conversation_id": 1, "skill_id": "echo", "input": []}),
    "optional keys in the payload": changed(
        payload={"conversation_id": "c", "skill_id": "echo", "input": {}, "config": {"a": 1}, "parent_task_id": None}
    ),
    "two faults": changed(sender=1, recipient=2),
}  # fmt: skip

KEYS: list[Any] = [None, "", "k", LONG, LONG[1:], 1, [], "\x00"]
REQUESTS: dict[str, Any] = {
    **{
        f"{key} {value!r}"[:60]: changed(rpc={key: value})
        for key, values in {
            "id": [ABSENT, None, "", "x", LONG, 0, -1, 2**63 - 1, 2**63, -(2**63), 1.0, 1.5, True, [], {}],
            "jsonrpc": [ABSENT, None, "1.0", 2.0, 2, "2"],
            "method": [ABSENT, None, "", "asap.Send", "asap.send ", "tools/call", 1],
            "params": [ABSENT, None, [], {}, 1, {"envelope": None}, {"envelope": []}],
            "x": [None, 1],
        }.items()
        for value in values
    },
    **{f"key {key!r}"[:60]: changed(params={"idempotency_key": key}) for key in KEYS},
    "other params": changed(params={"x": 1}),
    "no object": lambda pair: b"7",
    "text": lambda pair: b'"text"',
    "null": lambda pair: b"null",
    "an empty batch": lambda pair: b"[]",
    "a batch": lambda pair: written([pair.call(), 7, [], pair.call(sender=BOB), pair.call(rpc={"method": "x"})]),
    "the largest batch": lambda pair: written([7] * 50),
    "too large a batch": lambda pair: written([7] * 51),
    "one call twice in a batch": lambda pair: written([pair.call(extensions={"nonce": "n"}) for _ in range(2)]),
}

TEXTS = {
    "nothing": b"",
    "blanks": b"  ",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "no UTF-8": b'{"a": "\xff"}',
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "two texts": b"{}{}",
    "text behind": b"{} x",
    "a comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "a comment": b"{} // x",
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "1e999": b'{"a": 1e999}',
    "1e308": b'{"a": 1e308}',
    "a leading zero": b'{"a": 01}',
    "a plus": b'{"a": +1}',
    "5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "4,000 digits": b'{"a": ' + b"1" * 4000 + b"}",
    "a control character": b'{"a": "\n"}',
    "a lone surrogate": rb'{"a": "\ud800"}',
    "a lone surrogate as a key": rb'{"\udc00": 1}',
    "a pair of surrogates": rb'{"a": "\ud83d\ude00"}',
    "equal keys": b'{"a": 1, "a": 1}',
    "equal keys by an escape": rb'{"a": 1, "\u0061": 1}',
    "64 levels": b"[" * 64 + b"]" * 64,
    "65 levels": b"[" * 65 + b"]" * 65,
    "64 levels of objects": b'{"a":' * 63 + b"{}" + b"}" * 63,
    "65 levels of objects": b'{"a":' * 64 + b"{}" + b"}" * 64,
    "5,000 levels": b"[" * 5000 + b"]" * 5000,
    "5,000 open levels": b"[" * 5000,
}


@pytest.fixture
def pair() -> Pair:
    return Pair()


def alike(answers: tuple[Any, Any]) -> None:
    ours, planted = answers
    assert planted == ours


class TestBodies:
    @pytest.mark.parametrize("name", [*ENVELOPES])
    def test_envelopes(self, pair, name) -> None:
        alike(pair.both(body=ENVELOPES[name](pair)))

    def test_an_envelope_without_asap_version_is_refused_by_both(self, pair) -> None:
        """As docs/wire.md §1.1 requires."""
        ours, planted = pair.both(body=written(pair.call(asap_version=ABSENT)))
        assert (ours[3][1], planted[3][1]) == (-32602, -32602)

    @pytest.mark.parametrize("name", [*REQUESTS])
    def test_requests(self, pair, name) -> None:
        alike(pair.both(body=REQUESTS[name](pair)))

    @pytest.mark.parametrize("name", [*TEXTS])
    def test_texts(self, pair, name) -> None:
        alike(pair.both(body=TEXTS[name]))

    @pytest.mark.parametrize("within", ["input", "key"])
    @pytest.mark.parametrize("name", ["NaN", "a lone surrogate", "equal keys", "1e999", "5,000 digits"])
    def test_texts_in_calls_that_would_be_accepted(self, pair, name, within) -> None:
        call = pair.call(payload={"conversation_id": "c", "skill_id": "echo", "input": {"put": 1}})
        alike(pair.both(body=written(call).replace(b'{"put": 1}', TEXTS[name])))

    @pytest.mark.parametrize(
        "stamp",
        [
            "{0}Z", "{0}z", "{0}", "{0}.5Z", "{0}.123456789Z", "{0}+00:00", "{0}+0000", "{0}-00:30", "{0}+0030",
            "{0} Z",  "{0}+24:00", "{1}Z", "{1}.5Z", "{2}Z", "{2} ", "20250615T150640Z", "{2}T15:06:60Z",
            "{2}T24:00:00Z", "", "x", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00",
            "+{0}Z", "{0}Z\n", "１{0}Z", "{0}Z+00:00",
        ],
    )  # fmt: skip
    def test_written_timestamps(self, pair, stamp) -> None:
        text = stamp.format("2025-06-15T15:06:40", "2025-06-15T15:06", "2025-06-15")
        alike(pair.both(body=written(pair.call(timestamp=text))))

    @pytest.mark.parametrize("offset", [-1e9, -301, -300.001, -300, -299, 0, 29, 30, 30.001, 31, 1e9, 1e300])
    @pytest.mark.parametrize("form", [float, str, lambda seconds: seconds * 1000, lambda seconds: str(int(seconds))])
    def test_dates(self, pair, offset, form) -> None:
        alike(pair.both(body=written(pair.call(timestamp=form(pair.clock.wall() + offset)))))


class TestHeads:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS", "get", "TRACE"])
    @pytest.mark.parametrize(
        "path",
        [
            "/", "/asap", "/asap/", "/asapx", "/ASAP", "//asap", "/asap/stream", "/health", "/ready", "/asap/other",
            "/.well-known/asap/manifest.json", "/.well-known/asap/health", "/.well-known/asap/other",
        ],
    )  # fmt: skip
    def test_paths_and_methods(self, pair, method, path) -> None:
        alike(pair.both(method, path, written(pair.call()) if method == "POST" else b""))

    @pytest.mark.parametrize("token", [None, "token-of-bob", "", "other", "TOKEN-OF-ALICE", "token-of-alice2", "token"])
    def test_tokens(self, pair, token) -> None:
        alike(pair.both(body=written(pair.call()), token=token))

    @pytest.mark.parametrize(
        "value",
        [
            "bearer token-of-alice", "BEARER token-of-alice", "Bearer  token-of-alice", "Basic dG9rZW4tb2YtYWxpY2U=",
            "token-of-alice", "Bearer", "Bearer token-of-alice, Bearer token-of-bob", "Bearer\ttoken-of-alice",
            "Bearer ",
        ],
    )  # fmt: skip
    def test_credentials(self, pair, value) -> None:
        alike(pair.both(body=written(pair.call()), token=None, authorization=value))

    @pytest.mark.parametrize(
        "value", ["2.2", "2.1", "2.1, 2.2", "2.2,2.1", "9, 2.1", "9", "", " ", "2", "2.2.2", "*", "x" * 80, ","]
    )
    def test_versions(self, pair, value) -> None:
        alike(pair.both(body=written(pair.call()), asap_version=value))

    @pytest.mark.parametrize("value", ["", "k", "k" * 256, "k" * 257, "é", "a b", "k\x7f"])
    def test_keys(self, pair, value) -> None:
        body = written(pair.call())
        alike(pair.both(body=body, x_idempotency_key=value))
        alike(pair.both(body=body, x_idempotency_key=value))
        alike(pair.both(body=written(pair.call(params={"idempotency_key": "k"})), x_idempotency_key=value))
        alike(pair.both(body=written([pair.call(), pair.call()]), x_idempotency_key=value))

    @pytest.mark.parametrize("value", ["*", '"x"', '"x", {0}', "{0}", "W/{0}", "{0}, x", "", "x", '"x,y", {0}'])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_validators(self, pair, method, value) -> None:
        path = "/.well-known/asap/manifest.json"
        ours = pair._ask_ours("GET", path, [], b"")
        planted = pair.planted.call("GET", path)
        tags = dict(ours.headers)[b"etag"].decode(), dict(planted.fields)["etag"]
        statuses = [
            pair._ask_ours(method, path, [("if-none-match", value.format(tags[0]))], b"").status,
            pair.planted.call(method, path, (("if-none-match", value.format(tags[1])),)).status,
        ]
        assert statuses[0] == statuses[1]

    @pytest.mark.parametrize(
        "origin",
        ["http://evil.example", "null", "", "http://127.0.0.1:8000", "https://127.0.0.1:8000"],
    )
    @pytest.mark.parametrize("host", ["127.0.0.1:8000", "evil.example"])
    def test_pages(self, pair, origin, host) -> None:
        alike(pair.both(body=written(pair.call()), origin=origin, host=host))


class TestCodings:
    BODIES = {
        "right": gzip.compress,
        "empty": lambda body: b"",
        "plain": lambda body: body,
        "cut": lambda body: gzip.compress(body)[:-3],
        "corrupt": lambda body: gzip.compress(body)[:-8] + b"\0" * 8,
        "trailing": lambda body: gzip.compress(body) + b"x",
        "padded": lambda body: gzip.compress(body) + b"\0" * 100,
        "two members": lambda body: gzip.compress(body[:20]) + gzip.compress(body[20:]),
        "a bomb": lambda body: gzip.compress(b" " * 10**7 + body),
        "at the limit": lambda body: gzip.compress(b" " * (MAX_BODY - len(body)) + body),
        "above the limit": lambda body: gzip.compress(b" " * (MAX_BODY - len(body) + 1) + body),
    }

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", " gzip ", "identity", "", "br, gzip", "deflate", "gzip, gzip"])
    @pytest.mark.parametrize("name", [*BODIES])
    def test_coded_bodies(self, pair, name, coding) -> None:
        alike(pair.both(body=self.BODIES[name](written(pair.call())), content_encoding=coding))

    @pytest.mark.parametrize("size", [MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, 10 * MAX_BODY])
    def test_large_bodies(self, pair, size) -> None:
        alike(pair.both(body=written(pair.call()).ljust(size)))

    def test_a_compressed_batch(self, pair) -> None:
        alike(pair.both(body=gzip.compress(written([pair.call(), 7])), content_encoding="gzip"))


@given(request_bodies(), st.sampled_from(["token-of-alice", "token-of-bob", None]))
def test_any_body_is_decided_alike(body, token) -> None:
    alike(Pair().both(body=body, token=token))


@given(request_bodies(recipient="urn:asap:agent:planted", sender=ALICE, wall=ManualClock().wall))
def test_any_body_for_this_agent_is_decided_alike(body) -> None:
    alike(Pair().both(body=body))


# A small alphabet, so that nonces, ids and keys meet again.
_STEPS = st.one_of(
    st.tuples(
        st.just("call"),
        st.sampled_from([("token-of-alice", ALICE), ("token-of-bob", BOB), ("token-of-alice", BOB)]),
        st.sampled_from(["n1", "n2", None]),
        st.sampled_from(["e1", "e2"]),
        st.sampled_from([None, None, "k1", "k2"]),
        st.sampled_from(["echo", "echo", "fail", "other"]),
        st.sampled_from([1, 2]),
        st.sampled_from([0, -299.0, -310.0, 29.0, 100.0]),
    ),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 200.0, 299.0, 331.0, 601.0])),
    st.tuples(st.just("step"), st.sampled_from([-400.0, -30.0, 30.0, 400.0])),
)


@settings(max_examples=100)
@given(st.lists(_STEPS, min_size=1, max_size=12))
def test_any_sequence_of_calls_is_decided_alike(steps) -> None:
    pair = Pair()
    for kind, *details in steps:
        if kind == "pass":
            pair.clock.advance(details[0])
        elif kind == "step":
            pair.clock.step_wall(details[0])
        else:
            (token, sender), nonce, envelope_id, key, skill, number, offset = details
            call = pair.call(
                id=envelope_id,
                sender=sender,
                timestamp=pair.clock.wall() + offset,
                extensions={"nonce": nonce} if nonce else None,
                payload={"conversation_id": "c", "skill_id": skill, "input": {"number": number}},
                params={"idempotency_key": key} if key else {},
            )
            alike(pair.both(body=written(call), token=token))


def test_each_switch_is_named_at_a_decision_and_stands_in_the_table() -> None:
    named: set[str] = set()
    for path in (ROOT / "asap_core/testing/planted").glob("*.py"):
        if path.stem == "matrix":  # which names laws
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Constant(value=str(text)) if re.fullmatch(rf"({'|'.join(BREAKS)})\.[a-z_0-9]*[a-z0-9]", text):
                    named.add(text)
                case ast.JoinedStr(values=[ast.Constant(value=str(start)), ast.FormattedValue(), *end]):
                    last = end[0].value if end and isinstance(end[0], ast.Constant) else ""
                    named |= {name for name in SWITCHES if name.startswith(start) and name.endswith(str(last))}
    assert named == set(SWITCHES)


def test_a_switch_that_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"not replay\.nonsense"):
        PlantedAgent(breaks=["replay.nonsense"])
