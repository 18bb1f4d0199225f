"""The agent as an object: built once, bound once, copied for another loop."""

import pytest

from asap_core import Agent, Capabilities, Endpoints, Manifest, ManualClock, Policy, Skill


def manifest() -> Manifest:
    return Manifest(
        id="urn:asap:agent:shop",
        name="Shop",
        version="1.0.0",
        description="",
        capabilities=Capabilities(skills=[Skill(id="echo", description="")]),
        endpoints=Endpoints(asap="http://localhost/asap"),
    )


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


def test_a_copy_is_not_bound_and_all_else_is_as_it_was() -> None:
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
