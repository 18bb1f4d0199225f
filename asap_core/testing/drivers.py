"""Tests a driver of `Client` of your own: runs programs on it, over a server on loopback, and checks each rule."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from attrs import define

from asap_core.client.client import Client
from asap_core.client.programs import (
    Completed,
    Effect,
    Expired,
    FileRead,
    Outcome,
    Program,
    ReadFile,
    Sleep,
    Ticket,
    Unavailable,
    Wait,
    WriteFile,
)
from asap_core.errors import Advice, NotAllowed
from asap_core.testing import driver_requests  # noqa: F401 - its rules
from asap_core.testing.driver_trial import (
    BODY,
    HANGS,
    LIMIT,
    MAX_BODY,
    RULES,
    SCRIPTS,
    SLACK,
    Ability,
    NotingReader,
    ProgramRunner,
    Trial,
    rule,
)
from asap_core.testing.loopback import SILENCE, LoopbackServer
from asap_core.wire.manifest import MANIFEST_PATH, Manifest

PrepareDriver = Callable[[Client], ProgramRunner]


def check_driver(prepare: PrepareDriver, *, lacks: Collection[Ability] = ()) -> None:
    """Check a driver of your own. Takes some ten seconds, and needs 127.0.0.1 only.

    prepare: called for each check; gives a new client to a new driver, which binds it, and returns what runs programs.
        If that has a `close()`, it's called in the end.
    lacks: what your driver doesn't offer. What needs it isn't checked.

    Raises: AssertionError, which lists the rules that the driver breaks; ValueError for an unknown ability.
    """
    unknown = set(lacks) - set(get_args(Ability))
    if unknown:
        raise ValueError(f"lacks: expected some of {', '.join(get_args(Ability))}; not {', '.join(sorted(unknown))}")
    broken = broken_rules(prepare, lacks=lacks)
    if broken:
        raise AssertionError("\n".join(["this driver breaks rules:", *(f"* {each}" for each in broken)]))


def broken_rules(prepare: PrepareDriver, *, lacks: Collection[Ability] = (), only: Collection[str] = ()) -> list[str]:
    """Return what a driver does wrong, one text for each rule. `only`: the rules to check, by the names of checks."""
    broken = []
    for each in RULES:
        if not each.needs & set(lacks) and (not only or each.check.__name__ in only):
            with LoopbackServer(SCRIPTS, unread=("/early", "/deaf")) as server:
                client = Client("urn:asap:agent:driver-check")
                runner = prepare(client)
                try:
                    each.check(Trial(server, client, runner, lacks))
                except AssertionError as error:
                    broken.append(f"{each.says}: {error}")
                finally:
                    getattr(runner, "close", lambda: None)()
    return broken


# --- the rules: programs ---------------------------------------------------------------------------------------------


@rule()
def check_results(trial: Trial) -> None:
    """A program's result is returned, and its exception raised."""
    refused = NotAllowed("https://a.example", "no", Advice("nothing"))

    def returns() -> Program[int]:
        yield Sleep(0.0)
        return 7

    def returns_at_once() -> Program[int]:
        yield from ()
        return 8

    def raises(error: Exception) -> Program[int]:
        yield Sleep(0.0)
        raise error

    programs = [returns(), returns_at_once(), raises(refused), raises(wrong := ValueError("wrong"))]
    given = [trial.run(each)[0] for each in programs]
    assert given[:2] == [7, 8], f"programs returned 7 and 8, and the driver {given[:2]!r}"
    assert given[2:] == [refused, wrong], f"expected the exceptions of two programs, not {given[2:]!r}"


@rule()
def check_settling(trial: Trial) -> None:
    """After each step it takes wakes and remarks."""

    def remarks() -> Program[None]:
        trial.runtime.inform("asap.driver-check", "a remark of the check of a driver")
        trial.runtime.wake(Ticket(parked=True))
        yield Sleep(0.0)

    trial.run(remarks())
    trial.is_settled()


@rule()
def check_sleep(trial: Trial) -> None:
    """A Sleep takes its time."""
    _, seconds = trial.timed(Sleep(0.2))
    assert 0.19 <= seconds <= SLACK, f"a Sleep of 0.2 s took {seconds:.2f} s"  # noqa: PLR2004


@rule("concurrency")
def check_wait(trial: Trial) -> None:
    """A Wait ends at once if its ticket is ready, and else at its limit."""
    outcome, seconds = trial.timed(Wait(Ticket(ready=True, parked=True), 5.0))
    assert isinstance(outcome, Completed), f"a ticket was ready, and the outcome is {outcome!r}"
    assert seconds <= SLACK, f"a ticket was ready, and the Wait took {seconds:.2f} s: look at it first"
    outcome, seconds = trial.timed(Wait(Ticket(parked=True), LIMIT))
    assert isinstance(outcome, Expired), f"nobody woke it, and the outcome is {outcome!r}"
    assert LIMIT - 0.01 <= seconds <= LIMIT + SLACK, f"a Wait of {LIMIT} s took {seconds:.2f} s"


@rule("concurrency")
def check_wakes(trial: Trial) -> None:
    """A Wait ends when another program wakes its ticket."""
    tickets = [Ticket(parked=True) for _ in range(3)]
    ended: list[float] = []

    def waits(ticket: Ticket) -> Program[Outcome]:
        outcome = yield Wait(ticket, 6.0)
        ended.append(trial.runtime.now())
        return outcome

    def wakes() -> Program[None]:
        yield Sleep(0.2)
        for ticket in tickets:
            trial.runtime.wake(ticket)
        ended.append(trial.runtime.now())
        yield Sleep(0.0)

    outcomes = trial.run(*map(waits, tickets), wakes())[:-1]
    assert outcomes == [Completed()] * 3, f"three programs were woken, and their outcomes are {outcomes!r}"
    assert max(ended) - min(ended) <= SLACK, "programs that were woken went on seconds later"


# --- the rules: cancelling -------------------------------------------------------------------------------------------


@rule("cancelling")
def check_cancelling(trial: Trial) -> None:
    """A cancelled program is closed, and its effect ended."""
    effects: list[Effect] = [Sleep(SILENCE)]
    if "concurrency" not in trial.lacks:
        effects.append(Wait(Ticket(parked=True), SILENCE))
    if "requests" not in trial.lacks:
        effects.append(trial.fetch("/silent", seconds=SILENCE))
    for effect in effects:
        seen: list[type[BaseException]] = []
        program = _watched(effect, seen)
        begun, what = time.monotonic(), f"a program that waits for a {type(effect).__name__}"
        trial.run(program, cancel_after=0.3)
        assert time.monotonic() - begun <= HANGS / 4, f"{what} was cancelled, and ran on"
        assert seen, f"{what} was cancelled, and isn't closed: call its close() in a finally"
        assert seen == [GeneratorExit], f"{seen[0].__name__} was thrown into {what}; only close() ends a program"
    for arrival in trial.server.arrivals:
        assert arrival.left.wait(SLACK), "a request was cancelled, and its connection is still open"


def _watched(effect: Effect, seen: list[type[BaseException]]) -> Program[Outcome]:
    try:
        outcome = yield effect
    except BaseException as error:
        seen.append(type(error))
        raise
    return outcome


@rule("requests", "concurrency", "cancelling")
def check_taking_over(trial: Trial) -> None:
    """If the one that fetches is cancelled, another one takes over."""
    programs = [trial.client.discover(trial.server.url) for _ in range(3)]
    _, *others = trial.run(*programs, cancel_after=0.3)
    assert all(isinstance(each, Manifest) for each in others), f"two others waited for a manifest, and got {others!r}"
    asked = trial.server.paths().count(MANIFEST_PATH)
    assert asked <= 2, f"the one that fetched was cancelled, and {asked} requests were made, not 2"  # noqa: PLR2004
    trial.is_settled()


# --- the rules: files ------------------------------------------------------------------------------------------------


@rule()
def check_reading(trial: Trial) -> None:
    """A file is read whole, and one that others may write isn't private."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "file.json")
        missing = trial.outcome(ReadFile(str(path), NotingReader(MAX_BODY)))
        assert isinstance(missing, Unavailable), f"there's no file: expected Unavailable, not {missing!r}"
        path.write_bytes(BODY)
        path.chmod(0o666)
        reader = NotingReader(MAX_BODY)
        outcome = trial.outcome(ReadFile(str(path), reader))
        if isinstance(outcome, FileRead):
            assert (reader.body, reader.complete) == (BODY, True), "the reader doesn't have the file"
        private = trial.outcome(ReadFile(str(path), NotingReader(MAX_BODY), private=True))
        assert isinstance(private, Unavailable), f"others may write the file: expected Unavailable, not {private!r}"


@define(eq=False)
class _File:
    is_wanted: bool = True

    def surplus(self, _files: object) -> tuple[str, ...]:
        return ()

    def is_written(self, _head: bytes, _size: int) -> bool:
        return False

    def pieces(self) -> Any:
        yield BODY[:5]
        yield BODY[5:]

    def wanted(self) -> bool:
        return self.is_wanted


@rule()
def check_writing(trial: Trial) -> None:
    """A file is written whole, for this user, and only if it's still wanted."""
    with TemporaryDirectory() as folder:
        for wanted in (False, True):
            path = Path(folder, "below", "file.json")
            outcome = trial.outcome(WriteFile(str(path), _File(wanted)))
            names = [each.name for each in path.parent.iterdir()] if path.parent.exists() else []
            if isinstance(outcome, Unavailable) or not wanted:
                assert names == [], f"nothing was to be written, and there's {names}"
            else:
                assert names == [path.name], f"one file was to be written, and there's {names}"
                assert path.read_bytes() == BODY, "another content was written"
                assert path.stat().st_mode & 0o077 == 0, "other users may read the file"
