"""A discrete-event simulator: agents and clients on one clock, which jumps from event to event. No sockets.

    world = World(seed=1, loss=0.01)
    agent.bind(clock=world.clock, ids=world.new_id, key=world.random.randbytes(32))
    world.hosts["agent.example"] = "1.2.3.4", SimulatedServer(world, agent, handle)

    simulated = SimulatedClient(world, Client("urn:asap:agent:me"), "5.6.7.8")
    world.start(simulated.run(simulated.client.discover("https://agent.example")))
    world.run(until=86_400)

Whatever takes time is a process: a generator that yields what it waits for (None if it sleeps), and how many seconds at
most. Close it to cancel it. What it raises, `world.run` raises. All chance comes from `world.random`, so the same seed
gives the same events. `python -m tests.drivers.simulated_day` is a day of ten clients and a server that crashes.

What it leaves out:

* Computing takes no simulated time; only handlers and the network do.
* The network has names, addresses, latency and loss. It has no TLS, no connections and no bandwidth: a message arrives
  whole or not at all. A client can't tell how far a lost request got, so each counts as sent.
* Items of a batch are worked on one after the other.
* There are no files and no local network, so registries must be URLs.
"""

import math
import random
import sched
from collections.abc import Callable, Generator
from typing import TypeVar, assert_never

from asap_core import (
    HANDLER_TIMEOUT,
    Admit,
    Agent,
    Answered,
    Authenticate,
    CallState,
    ClaimProof,
    Dispatch,
    Done,
    Exchange,
    Fork,
    Hold,
    ManualClock,
    Payload,
    ReadBody,
    Record,
    Refusal,
    Request,
    Respond,
    Response,
    TakeLimit,
)
from asap_core.client import (
    Barred,
    Client,
    Completed,
    Dial,
    Effect,
    Expired,
    Fetch,
    Next,
    Outcome,
    Program,
    ReadFile,
    Received,
    Remark,
    Returned,
    Runtime,
    Sleep,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
)

T = TypeVar("T")

# --- both ------------------------------------------------------------------------------------------------------------

Process = Generator[tuple[object, float], None, T]


class World:
    """What happens, and when. `loss`: the share of messages that the network loses.

    hosts: the address of each name, and the server there, or None while it's down.
    """

    def __init__(self, seed: int, loss: float = 0.0) -> None:
        self.clock, self.random, self.loss = ManualClock(), random.Random(seed), loss
        self.schedule = sched.scheduler(self.clock.monotonic, self.clock.advance)
        self.waiting: dict[object, list[list[Process[object]]]] = {}
        self.hosts: dict[str, tuple[str, SimulatedServer | None]] = {}

    def new_id(self) -> str:
        """Return an id: another one each time, and the same ones in each run."""
        return f"{self.random.getrandbits(128):032x}"

    def run(self, until: float) -> None:
        """Let everything happen that is due by then, in seconds since the beginning."""
        while (pause := self.schedule.run(blocking=False)) is not None and self.clock.monotonic() + pause <= until:
            self.clock.advance(pause)

    def start(self, process: Process[object], seconds: float = 0.0) -> None:
        """Let a process begin, or go on, after some seconds."""
        self.schedule.enter(seconds, 0, self.resume, ([process],))

    def wake(self, *awaited: object) -> None:
        """Let the processes that wait for one of these go on."""
        for waiting in [each for key in awaited for each in self.waiting.pop(key, [])]:
            self.schedule.enter(0.0, 0, self.resume, (waiting,))

    def resume(self, waiting: list[Process[object]]) -> None:
        """Let the process in `waiting` go on until it waits again, unless it went on before: then the list is empty."""
        if waiting and (paused := next(process := waiting.pop(), None)):
            awaited, seconds = paused
            self.schedule.enter(seconds, 0, self.resume, (entry := [process],))
            if awaited is not None:
                self.waiting.setdefault(awaited, []).append(entry)


# --- server ----------------------------------------------------------------------------------------------------------


class SimulatedServer:
    """Serves an agent. `handle` returns how many seconds a call takes, and its answer."""

    def __init__(self, world: World, agent: Agent, handle: Callable[[Dispatch], tuple[float, Payload]]) -> None:
        self.world, self.agent, self.handle = world, agent, handle

    def respond(self, request: Request, body: bytes) -> Process[Response]:
        """Drive one exchange to its response."""
        state: Exchange = self.agent.open(request)
        while True:
            match state:
                case ReadBody():
                    fed = state.feed(body)
                    state = fed.end() if isinstance(fed, ReadBody) else fed
                case Fork(calls):
                    answers = []
                    for call in calls:
                        answers.append((yield from self.answer(call)))
                    state = state.answered(answers)
                case TakeLimit() | Authenticate():  # this agent shares no limiter, and verifies no tokens
                    state = state.unavailable()
                case Respond(response):
                    state.sent()
                    return response
                case ClaimProof() | Done():
                    raise AssertionError("this agent verifies no proofs, and each exchange ends with a response")
                case _:
                    assert_never(state)

    def answer(self, call: CallState) -> Process[Answered]:
        """Drive one call to its answer."""
        while not isinstance(call, Answered):
            match call:
                case Dispatch(deadline=deadline):
                    seconds, reply = self.handle(call)
                    yield None, min(seconds, deadline)
                    call = call.replied(reply) if seconds <= deadline else call.failed(Refusal(kind=HANDLER_TIMEOUT))
                    self.world.wake(*self.agent.take_wakes())
                case Hold(ticket, seconds):
                    yield ticket, seconds
                    call = call.again()
                case Admit() | Record():
                    raise AssertionError("this agent's admission is in memory")
                case _:
                    assert_never(call)
        return call


# --- client ----------------------------------------------------------------------------------------------------------


class SimulatedClient:
    """Runs the programs of `client` as processes. `address`: its own. `remarks`: what programs noted, for a log."""

    def __init__(self, world: World, client: Client, address: str) -> None:
        self.client = client.bind(Runtime(world.clock, world.new_id, world.new_id, world.random.random))
        self.world, self.address, self.remarks = world, address, list[Remark]()

    def run(self, program: Program[T]) -> Process[T]:
        """Run one program. Close the process to cancel it."""
        outcome: Outcome | None = None
        try:
            while not isinstance(moved := step(program, outcome), Returned):
                self.settle()
                outcome = yield from self.perform(moved)
            return moved.value
        finally:
            program.close()
            self.settle()

    def settle(self) -> None:
        """Wake those who need not wait any longer."""
        self.world.wake(*self.client.take_wakes())
        self.remarks += self.client.take_remarks()

    def perform(self, effect: Effect) -> Process[Outcome]:
        """Carry out one effect."""
        match effect:
            case Fetch():
                return (yield from self.fetch(effect))
            case Wait(ticket, seconds):
                yield ticket, 0.0 if ticket.ready else math.inf if seconds is None else seconds
                return Completed() if ticket.ready else Expired()
            case Sleep(seconds):
                yield None, seconds
                return Completed()
            case Next() | ReadFile() | WriteFile():
                return Unavailable("there are no files here, and no local network")
            case _:
                assert_never(effect)

    def fetch(self, asked: Fetch) -> Process[Received | Unanswered | Expired | Barred]:
        """Send one request, and wait for its response."""
        address, server = self.world.hosts[asked.route.host]
        chosen = asked.route.choose([address])
        if not isinstance(chosen, Dial):
            return chosen
        arrived: list[Response] = []
        self.world.start(self.deliver(asked, server, arrived))
        yield id(arrived), asked.seconds
        self.world.waiting.pop(id(arrived), None)
        if not arrived:
            return Expired()
        fields = [(name.decode(), value.decode("latin-1")) for name, value in arrived[0].headers]
        asked.reader.read(arrived[0].status, fields, arrived[0].body)
        return Received(address)

    def deliver(self, asked: Fetch, server: SimulatedServer | None, arrived: list[Response]) -> Process[None]:
        """Carry a request to its server, and the response back. Goes on if the client gives up."""
        chance, headers = self.world.random, [(name.lower().encode(), text.encode()) for name, text in asked.headers]
        yield None, 0.01 + chance.expovariate(20)
        if server is not None and chance.random() >= self.world.loss:
            request = Request(method=asked.method, target=asked.url, headers=headers, peer=self.address)
            response = yield from server.respond(request, asked.body or b"")
            yield None, 0.01 + chance.expovariate(20)
            # A server that was replaced meanwhile has crashed, with its response.
            if self.world.hosts[asked.route.host][1] is server and chance.random() >= self.world.loss:
                arrived.append(response)
                self.world.wake(id(arrived))
