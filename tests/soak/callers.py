"""Honest callers: each sends work, retries with its key until it has the answer, and says what was wrong with it.

In one of five attempts the caller's connection breaks at a random moment, with and without a key.
"""

import asyncio
import itertools
import random
import ssl
import time
from collections import Counter

from attrs import define, field

from tests.soak.link import PATIENCE, Answer, Link, post
from tests.soak.world import Outage, Served, World

# How many attempts break off.
BREAKS = 0.2
KEYED = 0.7
# How many answered keys are asked for again.
REPEATS = 0.1
# Seconds until a caller gives a piece of work up. A killed worker's work is unknown after the deadline and 5 s more.
GIVES_UP = 60.0
_BROKEN = (OSError, EOFError, ssl.SSLError)
_UNKNOWN = "asap:admission/outcome_unknown"


@define(eq=False)
class Work:
    """A piece of work: its attempts, and what came of it."""

    name: str
    key: str | None
    seconds: float
    began: float
    ended: float = 0.0
    attempts: int = 0
    # Names of runs in the answers, which must all be one.
    answered: set[str] = field(factory=set)
    unknown: bool = False
    # Without a key, and the answer didn't come: the caller doesn't know, and doesn't ask again.
    lost: bool = False


@define(eq=False)
class Tally:
    """What all callers together have seen."""

    counts: Counter[str] = field(factory=Counter)
    waits: list[float] = field(factory=list)
    works: list[Work] = field(factory=list)
    faults: list[str] = field(factory=list)


class Broken(Exception):
    """The caller broke its own connection off."""


@define(eq=False)
class Pace:
    """Gives out turns at a rate, or as fast as they're asked for if it's None."""

    rate: float | None = None
    over: bool = False
    _next: float = field(factory=time.monotonic)

    async def turn(self) -> None:
        if self.rate is None:
            return
        # What couldn't be used is lost: no burst follows a time in which nothing was answered.
        now = time.monotonic()
        self._next = max(self._next + 1 / self.rate, now - 0.1)
        if self._next > now:
            await asyncio.sleep(self._next - now)


@define(eq=False)
class Caller:
    """One caller, with a connection that it keeps for some requests."""

    number: int
    world: World
    pace: Pace
    tally: Tally
    chance: random.Random
    _link: Link | None = None
    # When the connection last worked: it may have died since, and only the next request finds out.
    _worked: float = 0.0

    async def run(self) -> None:
        sender = f"urn:asap:agent:caller-{self.number}"
        for count in itertools.count():
            await self.pace.turn()
            if self.pace.over:
                break
            # Most work is short; some takes long enough to be cut off in the middle.
            seconds = self.chance.choice((0.0, 0.001, 0.005)) if self.chance.random() < 0.97 else 0.5
            keyed = self.chance.random() < KEYED
            name = f"{self.number}-{count}"
            work = Work(name, f"key-{name}" if keyed else None, seconds, time.monotonic())
            self.tally.works.append(work)
            await self._until_answered(work, sender)
            work.ended = time.monotonic()
        self._leave(reset=False)

    async def _until_answered(self, work: Work, sender: str) -> None:
        repeats = work.key is not None and self.chance.random() < REPEATS
        while time.monotonic() - work.began < GIVES_UP:
            work.attempts += 1
            began = time.monotonic()
            try:
                answer = await self._attempt(work, sender)
            except Broken:
                self.tally.counts["broken off"] += 1
                self.tally.counts["broken off with a key"] += work.key is not None
            except TimeoutError:
                self._leave(reset=True)
                self._fault(work, f"no answer within {PATIENCE:.0f} s")
            except _BROKEN as error:
                self._leave(reset=True)
                self.tally.counts["cut off"] += 1
                if not self._excused(min(began, self._worked)):
                    self._fault(work, f"closed without an answer: {error!r}")
            else:
                if not (pause := self._judged(work, answer)):
                    self.tally.waits.append(time.monotonic() - began)
                    if not (repeats and work.answered):
                        return
                    repeats, pause = False, 0.01
                    self.tally.counts["asked again"] += 1
                await asyncio.sleep(pause)
                continue
            if work.key is None:
                work.lost = True
                return
            await asyncio.sleep(self.chance.random() * 0.1)
        self._fault(work, f"not answered within {GIVES_UP:.0f} s, in {work.attempts} attempts")

    def _judged(self, work: Work, answer: Answer) -> float:
        """Take an answer; returns the seconds after which to ask again, 0 if that was all."""
        if answer.closes:
            self._leave(reset=False)
        match answer.document:
            case {"result": {"envelope": {"payload": {"result": {"id": work.name, "run": str(run)}}}}}:
                work.answered.add(run)
                return 0
            case {"error": {"data": {"code": code, **more}}}:
                self.tally.counts[str(code)] += 1
                if code == _UNKNOWN and work.key is not None:
                    work.unknown = True
                    return 0
                if isinstance(again := more.get("retry_after_ms"), int):
                    # Not all at the same moment.
                    return min(again / 1000, 5) * (1 + self.chance.random() / 2)
        self._fault(work, f"answered {answer.status} {answer.document!r:.300}")
        return 0

    async def _attempt(self, work: Work, sender: str) -> Answer:
        given: dict[str, object] = {"id": work.name, "seconds": work.seconds}
        link = await self._connected()
        request = post("work", given, sender=sender, key=work.key, envelope_id=f"e-{work.name}")
        async with asyncio.timeout(PATIENCE):
            if self.chance.random() < BREAKS:
                await self._break_off(link, request)
            await link.send(request)
            answer = await link.answer()
            self._worked = time.monotonic()
            return answer

    async def _break_off(self, link: Link, request: bytes) -> None:
        """Send a part, or all, and go: before the answer, or in the middle of it."""
        reset = self.chance.random() < 0.5
        head = request.index(b"\r\n\r\n")
        match self.chance.randrange(4):
            case 0:
                await link.send(request[: self.chance.randrange(head)])
            case 1:
                await link.send(request[: self.chance.randrange(head, len(request))])
            case 2:
                await link.send(request)
                await asyncio.sleep(self.chance.choice((0, 0.001, 0.01, 0.1)))
            case _:
                await link.send(request)
                await link.reader.read(self.chance.randrange(1, 200))
        self._leave(reset=reset)
        raise Broken

    async def _connected(self) -> Link:
        if self._link is not None and self.chance.random() < 0.05:
            self._leave(reset=False)
        if self._link is None:
            one: Served = self.chance.choices(self.world.served, [4, 1])[0]  # mostly the one without TLS
            self._link = await Link.open(one)
            self._worked = time.monotonic()
        return self._link

    def _leave(self, *, reset: bool) -> None:
        if self._link is not None:
            self._link.leave(reset=reset)
            self._link = None

    def _excused(self, since: float) -> bool:
        """Whether a worker was killed since then."""
        return any(each.process and each.overlaps(since, time.monotonic()) for each in self.world.outages)

    def _fault(self, work: Work, what: str) -> None:
        self.tally.faults.append(f"{work.name}{'' if work.key is None else ' (keyed)'}: {what}")


def judge(tally: Tally, runs: dict[str, list[tuple[str, int, float]]], outages: list[Outage]) -> list[str]:
    """What is wrong with these answers, if the servers wrote down these runs."""
    faults = list(tally.faults)
    for work in tally.works:
        done = runs.get(work.name, [])
        if len(done) > 1:
            faults.append(f"{work.name}: done {len(done)} times")
        if work.answered - {run for run, _, _ in done}:
            faults.append(f"{work.name}: answered {work.answered}, which no handler returned")
        if len(work.answered) > 1:
            faults.append(f"{work.name}: has several answers")
        if work.unknown and not any(_explains(each, work, done) for each in outages):
            faults.append(f"{work.name}: outcome unknown, and nothing was killed at that time ({done}, {work.began})")
    return faults


def _explains(outage: Outage, work: Work, done: list[tuple[str, int, float]]) -> bool:
    """Whether this is why nobody knows the outcome of a piece of work."""
    for _run, process, began in done:
        # Its worker was killed, or its outcome couldn't be recorded.
        return outage.process in {0, process} and outage.overlaps(began, began + work.seconds + 2)
    return outage.overlaps(work.began, work.ended)
