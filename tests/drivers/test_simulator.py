"""docs/drivers/simulator.py: clients and servers on one simulated clock, and the same events for the same seed."""

import time
from collections import Counter

import pytest

from asap_core import AsapError, Envelope, Manifest, NotAllowed, RemoteError, Request, Response, TimedOut
from asap_core.client import Client, DiscoveryOptions, RequestOptions, RetryPolicy
from docs.drivers.simulator import Process, SimulatedClient, SimulatedServer, World
from tests.drivers.demo_agent import SENDER, URN, echo, make_agent, registry_json, task
from tests.drivers.simulated_day import Traffic

URL = "https://agent.example"
MANIFEST = f"{URL}/.well-known/asap/manifest.json"
REGISTRY = "https://registry.example/registry.json"


class Host(SimulatedServer):
    """Serves the agent and a registry that lists it, and counts requests."""

    def __init__(self, world: World) -> None:
        agent = make_agent(URL, clock=world.clock, ids=world.new_id, key=world.random.randbytes(32))
        super().__init__(world, agent, lambda call: (1.0, echo(call)))
        self.hits: Counter[str] = Counter()

    def respond(self, request: Request, body: bytes) -> Process[Response]:
        self.hits[request.target] += 1
        if request.target == REGISTRY:
            return Response(status=200, body=registry_json(self.agent.manifest, URL))
        return (yield from super().respond(request, body))


class Scene:
    """A world with one host and one client. `ended`: what each process returned or raised, in order."""

    def __init__(self, **options) -> None:
        self.world = World(seed=1)
        self.host = Host(self.world)
        for name in ("agent.example", "registry.example"):
            self.world.hosts[name] = "1.2.3.4", self.host
        self.mine = SimulatedClient(self.world, Client(SENDER, retry=RetryPolicy(retries=0), **options), "5.6.7.8")
        self.client = self.mine.client
        self.ended: list[object] = []

    def start(self, program) -> Process[None]:
        process = self._kept(program)
        self.world.start(process)
        return process

    def _kept(self, program) -> Process[None]:
        try:
            ended = yield from self.mine.run(program)
        except AsapError as error:
            ended = error
        self.ended.append(ended)

    def run(self, *programs, until: float = 100.0) -> list[object]:
        """Run programs, each started at once, and return what came of them."""
        for program in programs:
            self.start(program)
        self.world.run(until)
        ended, self.ended = self.ended, []
        return ended


def test_20_callers_make_one_request() -> None:
    scene = Scene()
    found = scene.run(*(scene.client.discover(URL, expect=URN) for _ in range(20)))
    assert len(found) == 20
    assert len({id(manifest) for manifest in found}) == 1
    assert scene.host.hits == {MANIFEST: 1}


def test_if_the_leader_is_cancelled_another_caller_asks() -> None:
    scene = Scene()
    leader, *_ = [scene.start(scene.client.discover(URL)) for _ in range(20)]
    scene.world.run(until=0.001)
    leader.close()
    assert [type(manifest) for manifest in scene.run()] == [Manifest] * 19
    assert scene.host.hits == {MANIFEST: 2}
    assert not scene.world.waiting


def test_a_task_is_answered_after_the_time_that_it_takes() -> None:
    scene = Scene()
    program = scene.client.send(URL, "task.request", task(a=1))
    assert scene.run(program, until=1.0) == []
    (reply,) = scene.run()
    assert isinstance(reply, Envelope)
    assert reply.payload["result"] == {"a": 1}


def test_a_replay_is_refused() -> None:
    scene = Scene()
    sent = [scene.run(scene.client.send(URL, "task.request", task(), nonce="once"), until=end) for end in (100, 200)]
    (reply,), (refusal,) = sent
    assert isinstance(reply, Envelope)
    assert isinstance(refusal, RemoteError)
    assert "nonce" in str(refusal)


def test_three_retries_at_once_are_answered_by_one_run() -> None:
    scene = Scene()
    scene.run(scene.client.discover(URL))
    sends = [scene.client.send(URL, "task.request", task(), idempotency_key="k") for _ in range(3)]
    replies = scene.run(*sends, until=200.0)
    assert len({reply.payload["task_id"] for reply in replies if isinstance(reply, Envelope)}) == 1
    assert len(replies) == 3


def test_an_agent_is_found_in_a_registry() -> None:
    scene = Scene(discovery=DiscoveryOptions(registries=[REGISTRY]))
    (manifest,) = scene.run(scene.client.resolve(URN))
    assert isinstance(manifest, Manifest)
    assert scene.host.hits == {REGISTRY: 1, MANIFEST: 1}


def test_a_handler_that_takes_too_long_is_answered_at_its_deadline() -> None:
    scene = Scene(http=RequestOptions(timeout=500))
    scene.host.handle = lambda call: (1_000.0, echo(call))
    (refusal,) = scene.run(scene.client.send(URL, "task.request", task()), until=999.0)
    assert isinstance(refusal, RemoteError)
    assert refusal.taxonomy == "asap:transport/timeout"


def test_a_server_that_is_down_is_waited_for_until_the_time_limit() -> None:
    scene = Scene(http=RequestOptions(timeout=10))
    scene.world.hosts["agent.example"] = "1.2.3.4", None
    (failure,) = scene.run(scene.client.discover(URL))
    assert isinstance(failure, TimedOut)


def test_a_private_address_is_not_requested() -> None:
    scene = Scene()
    scene.world.hosts["agent.example"] = "10.0.0.1", scene.host
    (failure,) = scene.run(scene.client.discover(URL))
    assert isinstance(failure, NotAllowed)
    assert not scene.host.hits


def test_what_a_process_raises_is_raised() -> None:
    def failing() -> Process[None]:
        yield None, 1.0
        raise IndexError("a bug")

    world = World(seed=1)
    world.start(failing())
    with pytest.raises(IndexError, match="a bug"):
        world.run(until=2.0)


def test_the_same_seed_gives_the_same_hour_in_seconds() -> None:
    """A whole day: `python -m tests.drivers.simulated_day`."""
    begun = time.process_time()
    digest, outcomes = Traffic(seed=1).run(hours=1)
    assert time.process_time() - begun < 10, "an hour takes about half a second"
    assert sum(outcomes.values()) > 500
    assert outcomes["task.response"] > 500
    assert Traffic(seed=1).run(hours=1) == (digest, outcomes)
    assert Traffic(seed=2).run(hours=1)[0] != digest
