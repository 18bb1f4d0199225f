"""The agent as an object: built once, bound once, copied for another loop."""

import pytest
from attrs import evolve

from asap_core import Agent, AuthScheme, ManualClock, Policy
from tests.builders import manifest
from tests.core.server.exchanges import head, serve


class Own(Agent):
    """A class of a user's, with a constructor of its own."""

    def __init__(self, colour: str) -> None:
        super().__init__(
            manifest(),
            policy=Policy(max_age=100.0),
            payload_types=("task.request", "x.own"),
            aliases=["urn:asap:agent:alias"],
        )
        self.colour = colour


def bound(agent: Agent) -> Agent:
    return agent.bind(clock=ManualClock(), ids=lambda: "id", key=b"k" * 32)


def test_a_copy_is_unbound_and_otherwise_equal() -> None:
    agent = Own("red")
    bound(agent)
    agent.active = 3
    copy = agent.unbound()
    assert type(copy) is Own
    assert (copy.colour, copy.manifest, copy.policy) == ("red", agent.manifest, agent.policy)
    assert (copy.payload_types, copy.addresses) == (agent.payload_types, agent.addresses)
    assert (copy.bound, copy.active, copy.admission, agent.bound) == (False, 0, None, True)
    with pytest.raises(RuntimeError, match="has no clock yet"):
        copy.now()
    assert bound(copy).admission is not agent.admission


def test_a_second_binding_is_refused() -> None:
    agent = bound(Agent(manifest()))
    with pytest.raises(RuntimeError, match="served already"):
        bound(agent)


class TestBinding:
    def test_an_unbound_agent_raises_an_error_that_names_bind(self) -> None:
        agent = Agent(manifest())
        assert not agent.bound
        with pytest.raises(RuntimeError, match="bind"):
            agent.open(head())
        with pytest.raises(RuntimeError, match="bind"):
            agent.new_id()

    def test_an_agent_that_is_served_cannot_be_bound_again(self) -> None:
        agent = serve()
        with pytest.raises(RuntimeError, match="served already"):
            agent.bind(clock=ManualClock(), ids=str, key=b"k" * 32)

    @pytest.mark.parametrize("key", [b"", b"k" * 15, b"k" * 65])
    def test_a_key_has_16_to_64_bytes(self, key) -> None:
        with pytest.raises(ValueError, match="16 to 64"):
            Agent(manifest()).bind(clock=ManualClock(), ids=str, key=key)

    def test_a_version_that_peers_cannot_read_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"1\.4\.2"):
            Agent(manifest(version="newest"))

    def test_an_auth_scheme_that_cannot_be_checked_is_refused(self) -> None:
        with pytest.raises(ValueError, match="bearer"):
            Agent(evolve(manifest(), auth=AuthScheme(schemes=["basic"])))
