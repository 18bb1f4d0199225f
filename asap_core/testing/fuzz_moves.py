"""What `asap fuzz` sends and expects: moves, each of which writes down the line of a test that repeats it.

A session is one sequence of moves against one agent, with a naive model: the calls that it has sent so far. A move
sends one request, and judges its answer by what the sequence says must happen.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from attrs import define, field, frozen

from asap_core.testing.laws.checks import accepted, answered, check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import ABSENT, MANIFEST_PATH, Caller, Change, Lab, changed
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import Json, JsonObject

T = TypeVar("T")
_OK: Final = 200
# Bytes of a body that stand in a test as they are; a longer one is found again by its seed.
_SHOWN_BYTES: Final = 2_000
# Of an outcome in the coverage. It's the agent's text; the protocol's longest is shorter.
_LONGEST_OUTCOME: Final = 60

# Changes after which an envelope is still valid, by name.
VALID: Final[Mapping[str, Mapping[str, Change]]] = {
    "plain": {},
    "no extensions": {"extensions": ABSENT},
    "no trace_id": {"trace_id": ABSENT},
    "no correlation_id": {"correlation_id": ABSENT},
    "no requires_ack": {"requires_ack": ABSENT},
    "a trace_id": {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"},
    "a correlation_id": {"correlation_id": "an earlier envelope"},
    "requires_ack": {"requires_ack": True},
}
# Changes after which it's invalid, by name: one rule is broken.
BROKEN: Final[Mapping[str, Mapping[str, Change]]] = {
    "no sender": {"sender": ABSENT},
    "no recipient": {"recipient": ABSENT},
    "no payload_type": {"payload_type": ABSENT},
    "no payload": {"payload": ABSENT},
    "sender null": {"sender": None},
    "recipient null": {"recipient": None},
    "payload null": {"payload": None},
    "payload_type null": {"payload_type": None},
    "id a number": {"id": 7},
    "sender a list": {"sender": ["urn:asap:agent:a"]},
    "payload a text": {"payload": "text"},
    "extensions a list": {"extensions": []},
    "timestamp an object": {"timestamp": {}},
    "timestamp no date": {"timestamp": "yesterday"},
    "timestamp of 1990": {"timestamp": "1990-01-01T00:00:00Z"},
    "timestamp of 2100": {"timestamp": "2100-01-01T00:00:00Z"},
    "requires_ack a text": {"requires_ack": "yes"},
    "unknown field": {"x_unknown": 1},
    "unknown payload_type": {"payload_type": "fuzz.unknown"},
    "an empty task": {"payload": {}},
    "sender no URN": {"sender": "somebody"},
}
# The same, where only the profile strict says so: of the reference they are accepted.
BROKEN_STRICTLY: Final[Mapping[str, Mapping[str, Change]]] = {
    "no id": {"id": ABSENT},
    "no timestamp": {"timestamp": ABSENT},
    "another recipient": {"recipient": "urn:asap:agent:somebody-else"},
    "recipient no URN": {"recipient": "somebody"},
}
# In a batch: a valid envelope of another sender than the token's. Where nothing tells them apart, a plain one.
FORGED: Final = "forged sender"
# Changes to the JSON-RPC request around a valid envelope.
BROKEN_CALLS: Final[Mapping[str, Mapping[str, Change]]] = {
    "jsonrpc 1.0": {"jsonrpc": "1.0"},
    "no method": {"method": ABSENT},
    "another method": {"method": "asap.other"},
    "no params": {"params": ABSENT},
    "params a list": {"params": []},
    "no envelope": {"params": {}},
    "id a list": {"id": [1]},
}
# The same JSON in another text.
TEXTS: Final[Mapping[str, Callable[[Json], str]]] = {
    "indented": lambda document: json.dumps(document, indent=2),
    "compact": lambda document: json.dumps(document, separators=(",", ":")),
    "keys sorted": lambda document: json.dumps(document, sort_keys=True),
    "blanks around": lambda document: f"\r\n\t {json.dumps(document)} \n",
}


_TITLE: Final = (
    '"""Found by `asap fuzz`. Run it with: pytest --asap-url URL, and the options that asap fuzz was run with."""'
)
# What the lines of a test use, by module.
_USED: Final = {
    "asap_core.testing.fuzz_moves": ("TEXTS",),
    "asap_core.testing.laws.checks": ("accepted", "answered", "refused"),
    "asap_core.testing.laws.lab": ("ABSENT", "MANIFEST_PATH", "Caller", "changed"),
}


@frozen
class FuzzedCall:
    """A call of this session. `name`: of the variable that holds its envelope in the test.

    reply: the payload of the reply, if it was accepted.
    """

    name: str
    envelope: JsonObject
    key: str | None = None
    reply: Json = None


@define
class Coverage:
    """How much of the message space was tried: how often each kind of move came out how, and the named variants."""

    outcomes: dict[str, Counter[str]] = field(factory=dict)
    variants: set[str] = field(factory=set)

    @property
    def known(self) -> int:
        """How many named variants there are."""
        return len(VALID) + sum(map(len, (VALID, BROKEN, BROKEN_STRICTLY, BROKEN_CALLS, TEXTS)))

    def count(self, move: str, answer: Answer, variant: str = "") -> None:
        """Note one answer."""
        outcome = "accepted" if answer.is_success else str(answer.taxonomy or answer.code or f"HTTP {answer.status}")
        outcome = outcome[:_LONGEST_OUTCOME]
        self.outcomes.setdefault(move, Counter())[outcome] += 1
        if variant:
            self.variants.add(f"{move}: {variant}")


@define
class Session:
    """One sequence of moves.

    run: carries a program of the lab out.
    lines: of the test that repeats the sequence.
    lent: the calls whose nonces another caller has used too.
    """

    lab: Lab
    run: Callable[[Steps[Answer]], Answer]
    coverage: Coverage = field(factory=Coverage)
    calls: list[FuzzedCall] = field(factory=list)
    lines: list[str] = field(factory=list)
    lent: set[str] = field(factory=set)

    # --- moves: each sends one request -------------------------------------------------------------------------------

    def honest_call(self, variant: str) -> None:
        """A valid call is accepted."""
        envelope, line = self._envelope(VALID[variant])
        name = self._variable(line)
        answer = self._send(f"accepted(asap_run(asap_lab.send({name})))", self.lab.send(envelope))
        self._judge("honest call", answer, variant)
        self.calls.append(FuzzedCall(name, envelope, reply=accepted(answer, variant).get("payload")))

    def same_again(self, index: int) -> None:
        """A call that was accepted isn't accepted again."""
        call = self._call(index)
        answer = self._send(f"refused(asap_run(asap_lab.send({call.name})))", self.lab.send(call.envelope))
        self._judge("same again", answer)
        refused(answer, "the same envelope again")

    def nonce_again(self, index: int) -> None:
        """A nonce that was accepted isn't accepted under another envelope id."""
        call = self._call(index)
        extensions = call.envelope.get("extensions")
        if not isinstance(extensions, dict):  # it was identified by its id
            return
        name = self._variable(f'asap_lab.envelope(extensions={call.name}["extensions"])')
        answer = self._send(
            f"refused(asap_run(asap_lab.send({name})))", self.lab.send(self.lab.envelope(extensions=extensions))
        )
        self._judge("nonce again", answer)
        refused(answer, "a nonce that was used")

    def broken_call(self, variant: str) -> None:
        """An envelope that breaks one rule is refused."""
        envelope, line = self._envelope({**BROKEN, **BROKEN_STRICTLY}[variant])
        answer = self._send(f"refused(asap_run(asap_lab.send({line})))", self.lab.send(envelope))
        self._judge("broken envelope", answer, variant)
        refused(answer, variant)

    def broken_request(self, variant: str) -> None:
        """A valid envelope in a request that isn't JSON-RPC's is refused."""
        changes = BROKEN_CALLS[variant]
        document = changed(self.lab.rpc(self.lab.envelope()), changes)
        line = f"changed(asap_lab.rpc(asap_lab.envelope()), {_literal(changes)})"
        answer = self._send(f"refused(asap_run(asap_lab.call({line})))", self.lab.call(document))
        self._judge("broken request", answer, variant)
        refused(answer, variant)

    def other_text(self, variant: str) -> None:
        """The same call in another text is accepted all the same."""
        envelope = self.lab.envelope()
        name = self._variable("asap_lab.envelope()")
        body = TEXTS[variant](self.lab.rpc(envelope)).encode()
        line = f"TEXTS[{variant!r}](asap_lab.rpc({name})).encode()"
        answer = self._send(f"accepted(asap_run(asap_lab.post({line})))", self.lab.post(body))
        self._judge("another text", answer, variant)
        self.calls.append(FuzzedCall(name, envelope, reply=accepted(answer, variant).get("payload")))

    def keyed_call(self, variant: str) -> None:
        """A valid call under a new key is accepted."""
        key, (envelope, line) = self.lab.fresh(), self._envelope(VALID[variant])
        name = self._variable(line)
        self.lines.append(f"key_{name} = asap_lab.fresh()")
        answer = self._send(
            f"accepted(asap_run(asap_lab.send({name}, key=key_{name})))", self.lab.send(envelope, key=key)
        )
        self._judge("call with a key", answer, variant)
        self.calls.append(FuzzedCall(name, envelope, key, accepted(answer).get("payload")))

    def key_again(self, index: int) -> None:
        """The same request under its key gets the first reply: the work is done once."""
        call = self._call(index)
        repeated = self.lab.envelope(id=call.envelope["id"], payload=call.envelope["payload"])
        name = self._variable(f'asap_lab.envelope(id={call.name}["id"], payload={call.name}["payload"])')
        answer = self._send(
            f"accepted(asap_run(asap_lab.send({name}, key=key_{call.name})))",
            self.lab.send(repeated, key=call.key),
        )
        self._judge("key again", answer)
        payload = accepted(answer, "a request again under its key").get("payload")
        check(payload == call.reply, f"another reply than the first: {payload}")

    def key_of_another(self, index: int) -> None:
        """Another request under a key that was used is refused."""
        call = self._call(index)
        line = f"asap_lab.send(asap_lab.envelope(), key=key_{call.name})"
        answer = self._send(f"refused(asap_run({line}))", self.lab.send(self.lab.envelope(), key=call.key))
        self._judge("key of another request", answer)
        refused(answer, "another request under a key")

    def anonymous(self) -> None:
        """A call without a token is refused, if the agent authenticates its callers."""
        answer = self._without("Caller(asap_lab.caller.urn)", self.lab.caller.urn, None)
        self._judge("no token", answer)
        refused(answer, "no token")

    def forged_sender(self) -> None:
        """A sender that isn't the token's agent is refused."""
        other = self.lab.second_caller().urn
        line = "Caller(asap_lab.second_caller().urn, asap_lab.caller.token)"
        answer = self._without(line, other, self.lab.caller.token)
        self._judge("forged sender", answer)
        refused(answer, "a forged sender")

    def same_nonce_of_another(self, index: int) -> None:
        """Another caller may use a nonce that the first one used, once."""
        call, other = self._call(index), self.lab.second_caller()
        extensions = call.envelope.get("extensions")
        if not isinstance(extensions, dict) or call.name in self.lent:
            return
        self.lent.add(call.name)
        line = f'asap_lab.envelope(caller=asap_lab.second_caller(), extensions={call.name}["extensions"])'
        envelope = self.lab.envelope(caller=other, extensions=extensions)
        name = self._variable(line)
        answer = self._send(
            f"accepted(asap_run(asap_lab.send({name}, caller=asap_lab.second_caller())))",
            self.lab.send(envelope, caller=other),
        )
        self._judge("nonce of another caller", answer)
        accepted(answer, "a nonce that another caller used")

    def batch(self, items: Sequence[str | int]) -> None:
        """Each request of a batch is judged as if it came alone, in order.

        items: names of `VALID` or `BROKEN`, `FORGED`, or indices of calls to repeat.
        """
        calls, documents, lines, expected = list(self.calls), list[Json](), list[str](), list[str]()
        for item in items:
            if isinstance(item, int):
                call = calls[item % len(calls)]
                envelope, line, kind = call.envelope, call.name, "error"
            elif item == FORGED and {Need.AUTH, Need.OTHER} <= self.lab.has:
                envelope, kind = self.lab.envelope(caller=self.lab.second_caller()), "error"
                line = "asap_lab.envelope(caller=asap_lab.second_caller())"
            else:
                item = "plain" if item == FORGED else item  # noqa: PLW2901 - said above
                envelope, line = self._envelope({**VALID, **BROKEN}[item])
                kind = "result" if item in VALID else "error"
            documents.append(self.lab.rpc(envelope))
            lines.append(f"asap_lab.rpc({line})")
            expected.append(kind)
        self.lines.append(f"answer = asap_run(asap_lab.call([{', '.join(lines)}]))")
        wanted = f"[{', '.join(map(repr, expected))}]"
        self.lines.append(f'assert ["result" if "result" in each else "error" for each in answer.items] == {wanted}')
        answer = self.run(self.lab.call(documents))
        self._judge("batch", answer)
        got = ["result" if "result" in each else "error" for each in answer.items]
        check(got == expected, f"{answer}: {got} instead of {expected}")

    def any_body(self, body: bytes) -> None:
        """Any bytes get one answer that isn't a crash, and nothing is accepted that isn't a call."""
        shown = repr(body) if len(body) <= _SHOWN_BYTES else f"{body[:_SHOWN_BYTES]!r}  # and {len(body)} in all"
        answer = self._send(f"answered(asap_run(asap_lab.post({shown})))", self.lab.post(body))
        self._judge("any body", answer)
        answered(answer, "any body")

    def manifest(self) -> None:
        """The manifest can be fetched, whatever was sent before."""
        answer = self._send(
            "assert asap_run(asap_lab.get(MANIFEST_PATH)).document == asap_lab.manifest", self.lab.get(MANIFEST_PATH)
        )
        self._judge("manifest", answer)
        check(answer.status == _OK and answer.document, answer, "the manifest")

    # --- words -------------------------------------------------------------------------------------------------------

    def test(self) -> str:
        """Return the test that repeats this session."""
        body = "\n".join(f"    {line}" for line in self.lines)
        used = {module: [name for name in names if name in body] for module, names in _USED.items()}
        imports = "\n".join(f"from {module} import {', '.join(names)}" for module, names in used.items() if names)
        return f"{_TITLE}\n\n{imports}\n\n\ndef test_found_by_asap_fuzz(asap_lab, asap_run):\n{body}\n"

    def _call(self, index: int) -> FuzzedCall:
        return self.calls[index % len(self.calls)]

    def _envelope(self, changes: Mapping[str, Change]) -> tuple[JsonObject, str]:
        """Return an envelope with these changes, and the expression that makes one like it."""
        line = f"changed(asap_lab.envelope(), {_literal(changes)})" if changes else "asap_lab.envelope()"
        return changed(self.lab.envelope(), changes), line

    def _variable(self, value: str) -> str:
        name = f"envelope{sum(line.startswith('envelope') for line in self.lines) + 1}"
        self.lines.append(f"{name} = {value}")
        return name

    def _send(self, line: str, steps: Steps[Answer]) -> Answer:
        self.lines.append(line)
        return self.run(steps)

    def _without(self, line: str, urn: str, token: str | None) -> Answer:
        caller = Caller(urn, token)
        self.lines.append(f"stranger = {line}")
        envelope = self.lab.envelope(caller=caller)
        return self._send(
            "refused(asap_run(asap_lab.send(asap_lab.envelope(caller=stranger), caller=stranger)))",
            self.lab.send(envelope, caller=caller),
        )

    def _judge(self, move: str, answer: Answer, variant: str = "") -> None:
        self.coverage.count(move, answer, variant)
        answered(answer, variant)


def _literal(changes: Mapping[str, Change]) -> str:
    pairs = (f"{name!r}: {'ABSENT' if value is ABSENT else repr(value)}" for name, value in changes.items())
    return f"{{{', '.join(pairs)}}}"
