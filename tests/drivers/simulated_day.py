"""A day of traffic in the simulator, the same each time: `python -m tests.drivers.simulated_day [HOURS]`."""

import sys
import time
from collections import Counter
from hashlib import sha256

from asap_core import AsapError, Envelope, RemoteError
from asap_core.client import Client
from docs.drivers.simulator import Process, SimulatedClient, SimulatedServer, World
from tests.drivers.demo_agent import echo, make_agent, task

HOST = "agent.example"
CLIENTS = 10
# Seconds. Each client comes once a minute, on average.
PAUSE = 60.0
CRASHES_AN_HOUR = 0.25
LOSS = 0.01


class Traffic:
    """Clients that send tasks to one agent, which crashes now and then."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, LOSS)
        self.outcomes: Counter[str] = Counter()
        self.digest = sha256()
        self.boot()
        for number in range(CLIENTS):
            made = Client(f"urn:asap:agent:client-{number}")
            self.world.start(self.visits(SimulatedClient(self.world, made, f"5.6.7.{number}")))
        self.world.start(self.crashes())

    def boot(self) -> None:
        chance = self.world.random
        agent = make_agent(f"https://{HOST}", clock=self.world.clock, ids=self.world.new_id, key=chance.randbytes(32))
        server = SimulatedServer(
            self.world, agent, lambda call: (chance.expovariate(1.0), echo(call, self.world.new_id))
        )
        self.world.hosts[HOST] = "1.2.3.4", server

    def crashes(self) -> Process[None]:
        while True:
            yield None, self.world.random.expovariate(CRASHES_AN_HOUR / 3600)
            self.world.hosts[HOST] = "1.2.3.4", None
            yield None, self.world.random.uniform(5, 120)
            self.boot()

    def visits(self, simulated: SimulatedClient) -> Process[None]:
        while True:
            yield None, self.world.random.expovariate(1 / PAUSE)
            program = simulated.client.send(
                f"https://{HOST}",
                "task.request",
                task(n=self.world.random.random()),
                idempotency_key=self.world.new_id(),
            )
            try:
                self.note((yield from simulated.run(program)))
            except AsapError as error:
                self.note(error)

    def note(self, outcome: Envelope | AsapError) -> None:
        match outcome:
            case Envelope():
                kind = outcome.payload_type
            case RemoteError(taxonomy=taxonomy):
                kind = str(taxonomy)
            case _:
                kind = type(outcome).__name__
        self.outcomes[kind] += 1
        self.digest.update(f"{self.world.clock.monotonic()!r} {kind} {outcome!r}\n".encode())

    def run(self, hours: float) -> tuple[str, Counter[str]]:
        """Run the traffic. Returns a digest of all outcomes and their times, and how often each kind occurred."""
        self.world.run(until=hours * 3600)
        return self.digest.hexdigest(), self.outcomes


def main() -> None:
    hours = float(sys.argv[1]) if len(sys.argv) > 1 else 24.0
    begun = time.perf_counter()
    digest, outcomes = Traffic(seed=1).run(hours)
    print(f"{sum(outcomes.values())} tasks in {hours:g} hours, computed in {time.perf_counter() - begun:.1f} s")
    print(*(f"{count:6} {kind}" for kind, count in outcomes.most_common()), digest, sep="\n")


if __name__ == "__main__":
    main()
