"""A state machine that tests one agent: valid calls are accepted, replays and forgeries refused, nothing breaks it.

To test another implementation, write a `Target`: a callable that takes a body and a token and returns a `Reply`.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, Final

from attrs import frozen
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, precondition, rule

from asap_core.admission.policy import Policy
from asap_core.auth.principal import TokenTable
from asap_core.clock import ManualClock
from asap_core.http.messages import Request
from asap_core.server.agent import Agent
from asap_core.testing.bodies import request_bodies
from asap_core.testing.driven_agent import answer
from asap_core.wire.codec import encode_envelope
from asap_core.wire.envelope import Envelope
from asap_core.wire.json_values import Json
from asap_core.wire.manifest import AuthScheme, Capabilities, Endpoints, Manifest, Skill

ALICE = "urn:asap:agent:alice"
MALLORY = "urn:asap:agent:mallory"
AGENT = "urn:asap:agent:under-test"
TOKEN = "token-of-alice"  # noqa: S105 - of a test agent
# JSON-RPC ids, also those that are false in many languages.
_CALL_IDS: Final = st.sampled_from([0, "", -1, 1, "0", 2**53 + 1])
# Agents whose ids begin as another's does.
_NOT_ALICE: Final = st.sampled_from([MALLORY, f"{ALICE}:other", f"{ALICE}x", ALICE[:-1]])
_NOT_THE_AGENT: Final = st.sampled_from([MALLORY, f"{AGENT}:other", f"{AGENT}x", AGENT[:-1]])
# Two inputs each, which aren't the same, though in Python some are equal.
_INPUTS: Final = st.sampled_from(
    [({"n": 1}, {"n": 2}), ({"n": 1}, {"n": True}), ({"n": 0}, {"n": False}), ({}, {"n": None})]
)
# Text that is in no message of the protocol: a response that contains it has echoed the request.
MARKER = "zqxjkvbp"


@frozen
class Reply:
    """A target's response: its HTTP status and body."""

    status: int
    body: bytes

    @property
    def code(self) -> int | None:
        """The JSON-RPC error code, or None if it isn't an error."""
        value = json.loads(self.body)
        error = value.get("error") if isinstance(value, dict) else None
        return error["code"] if isinstance(error, dict) else None

    @property
    def id(self) -> object:
        """The JSON-RPC id, or None."""
        value = json.loads(self.body)
        return value.get("id") if isinstance(value, dict) else None

    @property
    def payload(self) -> object:
        """The payload of the reply, if the call was accepted, or None."""
        return json.loads(self.body)["result"]["envelope"]["payload"] if self.accepted else None

    @property
    def accepted(self) -> bool:
        """Whether it has a result: the call was accepted and carried out."""
        value = json.loads(self.body)
        return isinstance(value, dict) and "result" in value


Target = Callable[[bytes, str | None], Reply]
"""Called with a body and a bearer token, or None: sends them as POST /asap and returns the response."""


def local_target(clock: ManualClock) -> Target:
    """Return this library's agent as a target, without I/O. Its skill `echo` answers; `TOKEN` is `ALICE`'s.

    clock: the agent's clock, which the caller moves.
    """
    manifest = Manifest(
        id=AGENT,
        name="Under test",
        version="1.0.0",
        description="",
        capabilities=Capabilities(skills=(Skill(id="echo", description=""),)),
        endpoints=Endpoints(asap="https://agent.example/asap"),
        auth=AuthScheme(schemes=("bearer",)),
    )
    numbers = itertools.count()
    agent = Agent(manifest, policy=Policy(peer_limits=()))
    agent.bind(clock=clock, ids=lambda: f"reply-{next(numbers)}", key=b"k" * 32)
    clock.advance(1)
    tokens = TokenTable({TOKEN: ALICE})

    def send(body: bytes, token: str | None) -> Reply:
        headers = () if token is None else ((b"authorization", b"Bearer " + token.encode("ascii")),)
        head = Request(method="POST", target="/asap", headers=headers, peer="192.0.2.1")
        response = answer(agent, tokens, head, body)
        return Reply(response.status, response.body)

    return send


class ExchangeMachine(RuleBasedStateMachine):
    """Sends calls as different peers to a target. Override `make_target` to test another implementation.

    The target must be the agent urn:asap:agent:under-test with a skill `echo`, accept the token token-of-alice as
    urn:asap:agent:alice's, read both clocks from `self.clock`, and have no rate limits. Set `idempotent` to False if it
    doesn't know idempotency keys.

    >>> class MyMachine(ExchangeMachine):
    ...     def make_target(self): return my_callable
    >>> run_state_machine_as_test(MyMachine)    # doctest: +SKIP
    """

    sent = Bundle("sent")
    idempotent: ClassVar[bool] = True
    HARMLESS: ClassVar[frozenset[int]] = frozenset({200, 400, 401, 403, 413, 415, 429, 503})

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.target = self.make_target()
        self.numbers = itertools.count()
        self.bodies = request_bodies(
            recipient=AGENT, sender=ALICE, wall=self.clock.wall, ids=lambda: f"drawn-{next(self.numbers)}"
        )

    def make_target(self) -> Target:
        """Return the target under test. Its clocks must be `self.clock`'s, also after a step of the wall clock."""
        return local_target(self.clock)

    def _call(
        self,
        *,
        sender: str = ALICE,
        recipient: str = AGENT,
        changes: Mapping[str, object] = MappingProxyType({}),
        call_id: str | int = "1",
        task: dict[str, Json] | None = None,
        key: str | None = None,
    ) -> bytes:
        number = next(self.numbers)
        envelope = Envelope.new(
            sender=sender,
            recipient=recipient,
            payload_type="task.request",
            payload={"conversation_id": MARKER, "skill_id": "echo", "input": task or {}},
            ids=lambda: f"envelope-{number}",
            wall=self.clock.wall(),
            nonce=f"{MARKER}-{number}",
        )
        document = {**encode_envelope(envelope), **changes}
        params = {"envelope": document} if key is None else {"envelope": document, "idempotency_key": key}
        return json.dumps({"jsonrpc": "2.0", "method": "asap.send", "id": call_id, "params": params}).encode()

    @rule(target=sent, call_id=_CALL_IDS)
    def an_honest_call_is_accepted(self, call_id: str | int) -> bytes:
        """A call with a fresh timestamp and nonce, from the token's agent, to this agent. Its id comes back."""
        body = self._call(call_id=call_id)
        reply = self.target(body, TOKEN)
        assert reply.accepted, reply
        assert (type(reply.id), reply.id) == (type(call_id), call_id), reply
        return body

    @rule(body=sent)
    def the_same_again_is_refused(self, body: bytes) -> None:
        """An accepted call is never accepted again, whenever it's repeated."""
        assert not self.target(body, TOKEN).accepted

    @rule(sender=_NOT_ALICE)
    def a_forged_sender_is_refused(self, sender: str) -> None:
        """A token is valid for one sender only."""
        assert not self.target(self._call(sender=sender), TOKEN).accepted

    @rule(token=st.none() | st.just("another-token"))
    def without_the_token_nothing_is_accepted(self, token: str | None) -> None:
        """Calls without a token, or with a wrong one."""
        reply = self.target(self._call(), token)
        assert not reply.accepted
        assert MARKER.encode() not in reply.body

    @rule(recipient=_NOT_THE_AGENT, call_id=_CALL_IDS)
    def what_is_for_another_agent_is_refused(self, recipient: str, call_id: str | int) -> None:
        """A call with another agent as recipient. A JSON-RPC error has the call's id."""
        reply = self.target(self._call(recipient=recipient, call_id=call_id), TOKEN)
        assert not reply.accepted
        if reply.code is not None:
            assert (type(reply.id), reply.id) == (type(call_id), call_id), reply

    @precondition(lambda machine: machine.idempotent)
    @rule(inputs=_INPUTS)
    def a_key_belongs_to_one_request(self, inputs: tuple[dict[str, Json], dict[str, Json]]) -> None:
        """The same input again under an idempotency key gets the first answer. Another one is refused."""
        key, (task, other) = f"key-{next(self.numbers)}", inputs
        first = self.target(self._call(task=task, key=key), TOKEN)
        assert first.accepted, first
        assert self.target(self._call(task=task, key=key), TOKEN).payload == first.payload
        assert not self.target(self._call(task=other, key=key), TOKEN).accepted

    @rule(offset=st.sampled_from([-3600.0, -301.0, 31.0, 3600.0]))
    def outside_the_window_it_is_refused(self, offset: float) -> None:
        """A timestamp that is too old or too far in the future."""
        from asap_core.wire.codec import format_timestamp  # noqa: PLC0415
        from asap_core.wire.envelope import utc  # noqa: PLC0415

        stamp = format_timestamp(utc(type(self.clock.wall())(self.clock.wall() + offset)))
        assert not self.target(self._call(changes={"timestamp": stamp}), TOKEN).accepted

    @rule(key=st.sampled_from(["sender", "payload_type", "timestamp", "id", "payload", "extensions"]))
    def a_broken_envelope_is_refused_without_an_echo(self, key: str) -> None:
        """The refusal names the problem and doesn't repeat the value."""
        reply = self.target(self._call(changes={key: [MARKER]}), TOKEN)
        assert not reply.accepted
        assert MARKER.encode() not in reply.body

    @rule(body=st.runner().flatmap(lambda machine: machine.bodies))
    def any_bytes_get_one_decision(self, body: bytes) -> None:
        """Any body gets one JSON response, never an internal error."""
        reply = self.target(body, TOKEN)
        assert reply.status in self.HARMLESS
        json.loads(reply.body)
        assert b"Traceback" not in reply.body

    @rule(seconds=st.floats(0, 400))
    def time_passes(self, seconds: float) -> None:
        """Time passes on both clocks."""
        self.clock.advance(seconds)

    @rule(seconds=st.floats(0, 20))
    def the_wall_clock_steps_ahead(self, seconds: float) -> None:
        """The wall clock is set forward, as by an operator or NTP: dates are compared with the new time."""
        self.clock.step_wall(seconds)
