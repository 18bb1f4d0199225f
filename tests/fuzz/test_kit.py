"""The fuzz kit finds what it's for, and finds nothing in our own agent."""

import json

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from asap_core.testing import ExchangeMachine, Reply, local_target
from asap_core.testing.machine import AGENT, ALICE, TOKEN
from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.messages import PlantedOptions

BOUNDED = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)

# To catch a broken agent is enough; the shortest way to it is of no interest.
HUNT = settings(BOUNDED, max_examples=500, phases=[Phase.generate], derandomize=True, database=None)


def test_our_agent_obeys_all_laws() -> None:
    run_state_machine_as_test(ExchangeMachine, settings=BOUNDED)


def accepts_replays(clock):
    """A target that makes every envelope new before it asks."""
    inner, numbers = local_target(clock), iter(range(10**9))

    def send(body, token):
        try:
            value = json.loads(body)
            value["params"]["envelope"]["extensions"]["nonce"] = f"n{next(numbers)}"
            body = json.dumps(value).encode()
        except (ValueError, TypeError, KeyError):
            pass
        return inner(body, token)

    return send


def believes_any_sender(clock):
    inner = local_target(clock)
    return lambda body, token: inner(body.replace(b"agent:mallory", b"agent:alice"), token)


def lets_anyone_in(clock):
    inner = local_target(clock)
    return lambda body, _token: inner(body, "token-of-alice")


def echoes(clock):
    inner = local_target(clock)

    def send(body, token):
        reply = inner(body, token)
        if reply.accepted:
            return reply
        return Reply(reply.status, json.dumps({"error": {"code": 1}, "you_sent": body.decode("latin-1")}).encode())

    return send


def breaks(clock):
    inner = local_target(clock)

    def send(body, token):
        try:
            body.decode()
        except UnicodeDecodeError:
            return Reply(500, b"{}")
        return inner(body, token)

    return send


def ignores_the_clock(clock):
    inner = local_target(clock)

    def send(body, token):
        try:
            value = json.loads(body)
            now = json.loads(json.dumps(clock.wall()))
            value["params"]["envelope"]["timestamp"] = now
            body = json.dumps(value).encode()
        except (ValueError, TypeError, KeyError):
            pass
        return inner(body, token)

    return send


def planted(switch):
    """A target with one mistake of the planted agent."""

    def make(clock):
        options = PlantedOptions(urn=AGENT, tokens=((TOKEN, ALICE),))
        agent = PlantedAgent(options, breaks=[switch] if switch else [], monotonic=clock.monotonic, wall=clock.wall)

        def send(body, token):
            fields = () if token is None else (("authorization", f"Bearer {token}"),)
            response = agent.call("POST", "/asap", fields, body)
            return Reply(response.status, response.body)

        return send

    return make


def test_the_planted_agent_obeys_all_laws() -> None:
    class Machine(ExchangeMachine):
        def make_target(self):
            return planted(None)(self.clock)

    run_state_machine_as_test(Machine, settings=BOUNDED)


def test_an_agent_may_do_without_idempotency_keys() -> None:
    class Machine(ExchangeMachine):
        idempotent = False

        def make_target(self):
            return planted("idempotency.ignored")(self.clock)

    run_state_machine_as_test(Machine, settings=BOUNDED)


MISTAKES = [
    "jsonrpc.id_falsy",
    "jsonrpc.error_id_lost",
    "envelope.recipient_prefix",
    "identity.sender_prefix",
    "idempotency.true_is_one",
    "idempotency.runs_again",
]


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "broken",
    [
        *(accepts_replays, believes_any_sender, lets_anyone_in, echoes, breaks, ignores_the_clock),
        *(pytest.param(planted(switch), id=switch) for switch in MISTAKES),
    ],
)
def test_a_broken_agent_is_caught(broken) -> None:
    class Machine(ExchangeMachine):
        def make_target(self):
            return broken(self.clock)

    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(Machine, settings=HUNT)
