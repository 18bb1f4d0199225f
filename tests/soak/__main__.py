"""`asap serve` under fire for a long time: `python -m tests.soak [--seconds 900] [--backend trio] [--seed N]`.

Honest callers make four fifths of the load that the servers can bear. Each fifth attempt breaks off at a random moment,
workers and Redis are killed, certificates are renewed, and strangers read slowly, send slowly and send garbage. Each
caller must get one right answer, no work may be done twice, and what a worker holds mustn't grow. The exit code is 1 if
something was wrong.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter

from attrs import define, field

from benchmarks.abuse.world import raise_file_limit
from tests.soak.callers import Caller, Pace, Tally, judge
from tests.soak.link import Link, post
from tests.soak.strangers import Strangers
from tests.soak.world import Vitals, World, made, vitals_of

CALLERS = 48
WORKERS = 2
LOAD = 0.8
# Seconds in which the servers' most is found.
CALIBRATION = 5.0
# Of the run, by which the tables are full: what grows afterwards is a leak.
WARM = 0.4
# Megabytes that a worker may grow after that. The heap's own ups and downs are less.
GROWTH = 8.0
# Seconds between what is done to the servers, and after the first of them.
KILLS, RESTARTS, RENEWALS = 40.0, 45.0, 11.0
# Seconds until everything that peers left behind must be gone.
SETTLES = 30


@define(eq=False)
class Soak:
    """One backend's run, and what came of it."""

    backend: str
    world: World
    chance: random.Random
    capacity: float = 0.0
    rate: float = 0.0
    seconds: float = 0.0
    tally: Tally = field(factory=Tally)
    strangers: Counter[str] = field(factory=Counter)
    # Megabytes of each survivor, second by second.
    resident: dict[int, list[float]] = field(factory=dict)
    before: dict[int, Vitals] = field(factory=dict)
    after: dict[int, Vitals] = field(factory=dict)
    tasks_before: dict[int, int] = field(factory=dict)
    tasks_after: dict[int, int] = field(factory=dict)
    faults: list[str] = field(factory=list)

    # --- phases ------------------------------------------------------------------------------------------------------

    async def run(self, seconds: float) -> None:
        self.capacity = await self.most(min(CALIBRATION, seconds / 6))
        self.say(f"at most {self.capacity:,.0f}/s")
        self.tasks_before = await self.tasks_of_all()
        self.before = {each: vitals_of(each) for each in self.tasks_before}
        await self.soak(seconds, Pace(LOAD * self.capacity))
        self.faults += judge(self.tally, await asyncio.to_thread(self.world.runs), self.world.outages)
        await self.settle()
        codes = await asyncio.to_thread(self.world.stop)
        if codes != [0, 0]:
            self.faults.append(f"the servers ended with {codes}")
        if "Traceback" in (said := self.world.complaints()):
            self.faults.append(f"a server wrote a traceback: {said[said.index('Traceback') :][:3_000]}")

    async def most(self, seconds: float) -> float:
        """How many requests a second are answered if all callers ask all the time."""
        pace, tally = Pace(), Tally()
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                caller = Caller(10_000 + number, self.world, pace, tally, random.Random(self.chance.random()))
                group.create_task(caller.run())
            await asyncio.sleep(seconds)
            answered, pace.over = len(tally.waits), True
        return answered / seconds

    async def soak(self, seconds: float, pace: Pace) -> None:
        chances = [random.Random(self.chance.random()) for _ in range(CALLERS)]
        began = time.monotonic()
        callers = [
            asyncio.create_task(Caller(number, self.world, pace, self.tally, chance).run())
            for number, chance in enumerate(chances)
        ]
        others = [
            asyncio.create_task(Strangers(self.world, self.chance, self.strangers).run()),
            asyncio.create_task(self.disturb(seconds)),
            asyncio.create_task(self.watch(began)),
        ]
        await asyncio.sleep(seconds)
        self.seconds = time.monotonic() - began
        self.rate = len(self.tally.waits) / self.seconds
        pace.over = True
        for each in others:
            each.cancel()
        for ended in await asyncio.gather(*others, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError | None):
                self.faults.append(f"the soak itself failed: {ended!r}")
        for failed in await asyncio.gather(*callers, return_exceptions=True):
            if failed is not None:
                self.faults.append(f"a caller failed: {failed!r}")

    async def disturb(self, seconds: float) -> None:
        """Kill and renew, each at its own pace; the first time early, so that a short run has all of it."""
        world, began = self.world, time.monotonic()
        last = seconds - min(12, seconds / 4)  # so that what follows from it is part of the run
        scale = min(1, seconds / 90)
        due = [
            (at, what, number)
            for every, first, what in (
                (KILLS * scale, 0.4, world.kill_a_worker),
                (RESTARTS * scale, 0.7, world.restart_redis),
                (RENEWALS * scale, 0.5, world.renew_certificate),
            )
            for number in range(10_000)
            if (at := every * (number + first)) < last
        ]
        for at, what, number in sorted(due, key=lambda each: each[0]):
            await asyncio.sleep(max(0, began + at - time.monotonic()))
            await asyncio.to_thread(what, number)

    async def watch(self, began: float) -> None:
        """Read the memory of the survivors each second, and say each five seconds how it goes."""
        said = 0
        for second in range(1, 1_000_000):
            await asyncio.sleep(max(0, began + second - time.monotonic()))
            for one in self.world.served:
                vitals = await asyncio.to_thread(vitals_of, one.survivor)
                self.resident.setdefault(one.survivor, []).append(vitals.resident)
            if second % 5 == 0:
                answered, counts = len(self.tally.waits), self.tally.counts
                memory = ", ".join(f"{each[-1]:.0f}" for each in self.resident.values())
                self.say(
                    f"{second} s: {(answered - said) / 5:,.0f}/s, {answered:,} answered, "
                    f"{counts['broken off']:,} broken off, {len(self.world.outages)} kills, "
                    f"{counts['asap:admission/outcome_unknown']} unknown, {memory} MB, "
                    f"{len(self.tally.faults)} faults"
                )
                said = answered

    async def settle(self) -> None:
        """Everyone has gone: wait until nothing is held for them, and see what is."""
        most = max(each.descriptors for each in self.before.values())
        for _ in range(SETTLES):
            workers = [each for one in self.world.served for each in one.workers()]
            self.after = {each: vitals_of(each) for each in workers}
            if all(each.descriptors <= most for each in self.after.values()):
                break
            await asyncio.sleep(1)
        else:
            held = {process: each.descriptors for process, each in self.after.items()}
            self.faults.append(f"descriptors left: {held}, at first {most}")
        self.tasks_after = await self.tasks_of_all()
        if max(self.tasks_after.values()) > max(self.tasks_before.values()):
            self.faults.append(f"tasks left: {self.tasks_after}, at first {self.tasks_before}")
        for process, grown in self.growth().items():
            if grown > GROWTH:
                self.faults.append(f"process {process} grew by {grown:.1f} MB after it was warm")

    # --- measures ----------------------------------------------------------------------------------------------------

    async def tasks_of_all(self) -> dict[int, int]:
        """How many tasks each worker has, at rest; asked until all of them have answered."""
        found: dict[int, int] = {}
        wanted = {each for one in self.world.served for each in one.workers()}
        for number in range(400):
            for one in self.world.served:
                link = await Link.open(one)
                await link.send(post("tasks", {}, sender="urn:asap:agent:nurse"))
                document = (await link.answer()).document
                link.leave(reset=False)
                if "result" in document:
                    given = document["result"]["envelope"]["payload"]["result"]
                    found[given["process"]] = given["tasks"]
            if wanted <= set(found):
                return found
            await asyncio.sleep(0.005 * (number % 20))
        raise TimeoutError(f"of {wanted} only {set(found)} answered")

    def growth(self) -> dict[int, float]:
        """Megabytes by which the survivors grew since they were warm, by the medians of a tenth of the run each."""
        grown = {}
        for process, all_seconds in self.resident.items():
            tenth = max(1, len(all_seconds) // 10)
            warm = int(len(all_seconds) * WARM)
            first, last = all_seconds[warm : warm + tenth], all_seconds[-tenth:]
            grown[process] = statistics.median(last) - statistics.median(first)
        return grown

    def say(self, line: str) -> None:
        print(f"{self.backend}: {line}", flush=True)


def rows(soak: Soak) -> dict[str, str]:
    """The column of a backend in the table."""
    tally, counts, world = soak.tally, soak.tally.counts, soak.world
    waits = sorted(tally.waits) or [float("nan")]
    workers = sum(each.process != 0 for each in world.outages)
    survivors = [each for each in soak.resident if each in soak.after]

    def both(values: list[float]) -> str:
        return " and ".join(f"{each:.1f}" for each in values)

    return {
        "seconds": f"{soak.seconds:.0f}",
        "most, answers a second": f"{soak.capacity:,.0f}",
        "answers a second": f"{soak.rate:,.0f}",
        "pieces of work": f"{len(tally.works):,}",
        "… with a key": f"{sum(each.key is not None for each in tally.works):,}",
        "… answered": f"{sum(bool(each.answered) for each in tally.works):,}",
        "… answered after several attempts": f"{sum(bool(e.answered) and e.attempts > 1 for e in tally.works):,}",
        "… outcome unknown": f"{sum(each.unknown for each in tally.works):,}",
        "… without a key, broken off": f"{sum(each.lost for each in tally.works):,}",
        "attempts broken off": f"{counts['broken off']:,}",
        "answers asked for again": f"{counts['asked again']:,}",
        "still running": f"{counts['asap:admission/still_running']:,}",
        "Redis away": f"{counts['asap:admission/unavailable'] + counts['asap:admission/restarted']:,}",
        "cut off by a kill": f"{counts['cut off']:,}",
        "slow readers, slow senders, garbage": ", ".join(
            f"{soak.strangers[each]:,}" for each in ("slow readers", "slow senders", "garbage")
        ),
        "workers killed, Redis killed, SIGHUP": f"{workers}, {len(world.outages) - workers}, {world.renewals}",
        "p50, p99, worst ms": ", ".join(
            f"{each * 1000:,.0f}" for each in (waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1])
        ),
        "MB of the workers that lived, at first": both([soak.before[each].resident for each in survivors]),
        "… at the end": both([soak.after[each].resident for each in survivors]),
        "… grown since warm": both([soak.growth()[each] for each in survivors]),
        "descriptors at first, at the end": f"{max(each.descriptors for each in soak.before.values())}, "
        f"{max(each.descriptors for each in soak.after.values())}",
        "tasks at first, at the end": f"{max(soak.tasks_before.values())}, {max(soak.tasks_after.values())}",
        "faults": f"{len(soak.faults):,}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Soak `asap serve` on each backend.")
    parser.add_argument("--seconds", type=float, default=900, help="for each backend (default: 900)")
    parser.add_argument("--backend", choices=("trio", "asyncio"), action="append", help="default: both")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    asked = parser.parse_args()
    raise_file_limit(4_096)
    print(f"seed {asked.seed}", flush=True)
    columns: dict[str, dict[str, str]] = {}
    for backend in asked.backend or ("trio", "asyncio"):
        with made(backend, workers=WORKERS) as world:
            soak = Soak(backend, world, random.Random(asked.seed))
            asyncio.run(soak.run(asked.seconds))
            columns[backend] = rows(soak)
        for fault in soak.faults[:20]:
            soak.say(f"FAULT: {fault}")
    print(f"\n| what | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(each[name] for each in columns.values())} |")
    return 1 if any(each["faults"] != "0" for each in columns.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
