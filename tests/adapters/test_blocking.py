"""Programs run in threads: who waits, who is interrupted, what is left behind. No network."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from attrs import define, field

from asap_adapters.blocking import interrupts
from asap_adapters.blocking.connecting import Places
from asap_adapters.blocking.driver import BlockingDriver
from asap_adapters.blocking.http_options import BlockingHttpOptions
from asap_adapters.blocking.interrupts import Closing, Flag, held, interruptible
from asap_core import OutboundPolicy, Unreachable
from asap_core.client.body_reader import BodyReader, WholeParser
from asap_core.client.documents import Documents
from asap_core.client.programs import (
    Completed,
    Effect,
    Expired,
    FileRead,
    Heard,
    LocalNetwork,
    Next,
    Outcome,
    Program,
    ReadFile,
    Sleep,
    Ticket,
    Unavailable,
    Wait,
    WriteFile,
)
from asap_core.client.requests import Requests
from asap_core.errors import MdnsUnavailable
from asap_core.mdns.dnssd import UnusableRecord

URL = "http://localhost/document"
# Nothing here takes that long, unless it hangs. In seconds.
DEADLOCK = 60.0


@define(eq=False)
class World:
    """A client of one document, and the server. `answer` is called in the thread of the request."""

    answer: Callable[[int], httpx.Response]
    requests: int = 0
    driver: BlockingDriver = field(init=False)
    documents: Documents[Any] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.driver = BlockingDriver(
            BlockingHttpOptions(transport=httpx.MockTransport(self.handle)), owner="BlockingClient(…)"
        )
        requests = Requests(self.driver.runtime, policy=OutboundPolicy())
        self.documents = Documents(
            self.driver.runtime, requests, parser=lambda: WholeParser(json.loads), limit=1_000, policy=None
        )

    def handle(self, _request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return self.answer(self.requests)

    def find(self) -> Any:
        return self.driver.run(self.documents.find, URL).document

    def until_waiting(self, count: int) -> None:
        end = time.monotonic() + DEADLOCK
        while self.documents.waiting < count:
            assert time.monotonic() < end
            time.sleep(0.001)


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(answer: Callable[[int], httpx.Response] = lambda _: document()) -> World:
        made.append(World(answer))
        made[-1].driver.open()
        return made[-1]

    yield make
    for each in made:
        assert each.documents.waiting == 0
        assert not each.driver.runtime.take_wakes()
        each.driver.close()


def document(number: int = 1) -> httpx.Response:
    return httpx.Response(200, json={"number": number}, headers={"cache-control": "max-age=60"})


@define
class Callers:
    """Threads that make one call each. `ends`: what they returned or raised."""

    call: Callable[[], object]
    ends: list[object] = field(factory=list)
    threads: list[threading.Thread] = field(factory=list)

    def start(self, count: int) -> None:
        started = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        self.threads += started
        for thread in started:
            thread.start()

    def _run(self) -> None:
        try:
            self.ends.append(self.call())
        except BaseException as error:  # noqa: BLE001 - compared by the test
            self.ends.append(error)

    def join(self) -> list[object]:
        for thread in self.threads:
            thread.join(DEADLOCK)
            assert not thread.is_alive()
        return self.ends


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def one(effect: Effect) -> Program[Outcome]:
    """A program of one effect, which returns the outcome."""
    return (yield effect)


class TestForks:
    def test_a_fork_neither_uses_nor_ends_the_connections_of_its_parent(self, world, monkeypatch) -> None:
        here = world()
        here.find()
        closed: list[object] = []
        monkeypatch.setattr(here.driver._session.transport, "close", lambda: closed.append(True))
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: 0)
            with pytest.raises(RuntimeError, match="opened in another process; open one in each, after the fork"):
                here.find()
            here.driver.close()
            assert not closed
            here.driver.open()
            assert here.find() == {"number": 1}
        assert here.requests == 1


class TestSeveralThreads:
    def test_twenty_threads_share_one_request(self, world) -> None:
        def answer(_number: int) -> httpx.Response:
            here.until_waiting(20)
            return document()

        here = world(answer)
        callers = Callers(here.find)
        callers.start(20)
        assert callers.join() == [{"number": 1}] * 20
        assert here.requests == 1

    def test_an_interrupted_leader_hands_over(self, world) -> None:
        def answer(number: int) -> httpx.Response:
            if number == 1:
                callers.start(5)
                here.until_waiting(6)
                interrupt()
                interruptible(time.sleep, 0)
            return document(number)

        here = world(answer)
        callers = Callers(here.find)
        with pytest.raises(KeyboardInterrupt):
            here.find()
        assert callers.join() == [{"number": 2}] * 5
        assert here.requests == 2

    def test_a_leader_hands_over_if_its_transport_fails_in_an_unknown_way(self, world) -> None:
        def answer(number: int) -> httpx.Response:
            if number == 1:
                callers.start(5)
                here.until_waiting(6)
                raise SystemExit
            return document(number)

        here = world(answer)
        callers = Callers(here.find)
        with pytest.raises(SystemExit):
            here.find()
        assert callers.join() == [{"number": 2}] * 5

    def test_all_who_wait_get_a_copy_of_the_failure(self, world) -> None:
        def answer(_number: int) -> httpx.Response:
            here.until_waiting(6)
            raise httpx.ConnectError("")

        here = world(answer)
        callers = Callers(here.find)
        callers.start(6)
        errors = callers.join()
        assert [str(error) for error in errors] == [str(errors[0])] * 6
        assert all(isinstance(error, Unreachable) for error in errors)
        assert len({id(error) for error in errors}) == 6

    def test_closing_ends_what_threads_wait_for(self, world) -> None:
        driver = world().driver
        callers = Callers(lambda: driver.run(one, effects.pop()))
        effects: list[Effect] = [Sleep(60), Sleep(60), Wait(Ticket()), Wait(Ticket(), 60)]
        callers.start(4)
        end = time.monotonic() + DEADLOCK
        while len(driver._session.closing._ends) < 4:
            assert time.monotonic() < end
        driver.close()
        assert [str(end) for end in callers.join()] == ["this client was closed while the call ran"] * 4
        assert not driver._parked
        with pytest.raises(RuntimeError, match="write: with BlockingClient"):
            driver.run(one, Sleep(0))

    def test_a_client_that_is_opened_again_does_not_continue_what_was_closed(self, world) -> None:
        def answer(_number: int) -> httpx.Response:
            here.driver.close()
            here.driver.open()
            raise httpx.ConnectError("")

        here = world(answer)
        with pytest.raises(RuntimeError, match="closed while the call ran"):
            here.find()
        assert here.requests == 1

    def test_a_response_that_arrived_counts_although_the_client_was_closed(self, world) -> None:
        def answer(_number: int) -> httpx.Response:
            here.driver.close()
            return document()

        here = world(answer)
        assert here.find() == {"number": 1}

    def test_a_file_is_not_read_on_after_the_client_was_closed(self, world, tmp_path: Path) -> None:
        class ClosingReader(BodyReader):
            def feed(self, data: bytes) -> None:
                pieces.append(len(data))
                driver.close()

        driver, path = world().driver, tmp_path / "large"
        pieces: list[int] = []
        path.write_bytes(bytes(3_000_000))
        with pytest.raises(RuntimeError, match="closed while the call ran"):
            driver.run(one, ReadFile(str(path), ClosingReader(10_000_000)))
        assert len(pieces) == 1

    def test_a_logging_handler_may_use_the_client_that_logs(self, world, caplog) -> None:
        class Curious(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append((record.getMessage(), here.find()))

        def remarking() -> Program[None]:
            here.driver.runtime.warn("asap.test", "a remark")
            yield Sleep(0)

        seen: list[object] = []
        here, handler = world(), Curious()
        logging.getLogger("asap.test").addHandler(handler)
        try:
            here.driver.run(remarking)
        finally:
            logging.getLogger("asap.test").removeHandler(handler)
        assert seen == [("a remark", {"number": 1})]

    def test_open_twice_is_an_error(self, world) -> None:
        with pytest.raises(RuntimeError, match="open already"):
            world().driver.open()


class TestInterrupts:
    def test_ctrl_c_in_a_step_strikes_at_the_next_effect(self, world) -> None:
        def interrupted() -> Program[None]:
            interrupt()
            reached.append("the end of the step")
            try:
                yield Sleep(60)
                reached.append("the next step")
            except GeneratorExit:
                reached.append("closed")
                raise

        reached: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            world().driver.run(interrupted)
        assert reached == ["the end of the step", "closed"]

    def test_ctrl_c_in_the_last_step_strikes_after_it(self, world) -> None:
        def interrupted() -> Program[None]:
            interrupt()
            reached.append("the end")
            yield from ()

        reached: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            world().driver.run(interrupted)
        assert reached == ["the end"]

    def test_ctrl_c_while_plain_methods_run_strikes_after_them(self, world) -> None:
        def method() -> None:
            interrupt()
            reached.append("the end")

        reached: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            world().driver.call(method)
        assert reached == ["the end"]

    @pytest.mark.parametrize("effect", [Sleep(60), Wait(Ticket()), Wait(Ticket(), 60)])
    def test_ctrl_c_interrupts_waits(self, world, effect: Effect) -> None:
        driver = world().driver
        # To the process, as a terminal does: a signal to another thread would interrupt no system call.
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            driver.run(one, effect)
        timer.join()
        assert time.monotonic() - begun < DEADLOCK
        assert not driver._parked

    def test_the_second_ctrl_c_does_not_interrupt_what_the_first_began(self, world) -> None:
        def closing() -> Program[None]:
            try:
                yield Sleep(60)
            finally:
                interrupt()
                reached.append("the end")

        reached: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            world().driver.run(lambda: _interrupted_by(closing()))
        assert reached == ["the end"]

    def test_the_handler_is_as_before_afterwards(self, world) -> None:
        before = signal.getsignal(signal.SIGINT)
        world().find()
        assert signal.getsignal(signal.SIGINT) is before
        assert interrupts._hold is None

    def test_a_handler_that_does_not_raise_is_called_once_per_signal(self, world) -> None:
        def signalled() -> Program[str]:
            interrupt()
            calls.append("the end of the step")
            yield Sleep(0.01)
            return "result"

        calls: list[str] = []
        before = signal.signal(signal.SIGINT, lambda *_: calls.append("handler"))
        try:
            assert world().driver.run(signalled) == "result"
            assert calls == ["the end of the step", "handler"]
            interrupt()
        finally:
            signal.signal(signal.SIGINT, before)
        assert calls == ["the end of the step", "handler", "handler"]

    def test_a_handler_that_sets_another_is_obeyed(self, world) -> None:
        def handler(*_: object) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        before = signal.signal(signal.SIGINT, handler)
        try:
            world().driver.run(lambda: _interrupted_by(one(Sleep(0))))
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
    def test_a_handler_that_is_no_function_is_left_alone(self, world, ignored) -> None:
        def seen() -> Program[object]:
            yield Sleep(0)
            return signal.getsignal(signal.SIGINT)

        before = signal.signal(signal.SIGINT, ignored)
        try:
            assert world().driver.run(seen) is ignored
        finally:
            signal.signal(signal.SIGINT, before)

    def test_a_subinterpreter_has_no_handler(self, monkeypatch) -> None:
        def refuse(*_: object) -> None:
            raise ValueError("signal only works in main thread of the main interpreter")

        monkeypatch.setattr(interrupts, "set_handler", refuse)
        with held():
            assert interruptible(lambda: 1) == 1

    def test_several_signals_at_once_are_all_handled(self, world) -> None:
        def leave(*_: object) -> None:
            calls.append("SIGTERM")
            raise SystemExit

        def signalled() -> Program[None]:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
                signal.raise_signal(number)
            calls.append("the end of the step")
            yield Sleep(60)

        calls: list[str] = []
        handlers = {signal.SIGTERM: leave, signal.SIGUSR1: lambda *_: calls.append("SIGUSR1")}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            with pytest.raises(KeyboardInterrupt):
                world().driver.run(signalled)
            assert {number: signal.getsignal(number) for number in handlers} == handlers
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert calls == ["the end of the step", "SIGTERM", "SIGUSR1"]

    def test_holds_nest(self) -> None:
        def nested() -> None:
            with held():
                interrupt()
                reached.append("inside")
            # The inner handler passes it on to the outer one, which holds it back too.
            reached.append("outside")

        reached: list[str] = []
        with pytest.raises(KeyboardInterrupt), held():
            nested()
        assert reached == ["inside", "outside"]

    def test_interruptible_calls_nest(self) -> None:
        def outer() -> None:
            interruptible(reached.append, "inside")
            interrupt()
            reached.append("after the inner call")

        reached: list[str] = []
        with pytest.raises(KeyboardInterrupt), held():
            interruptible(outer)
        assert reached == ["inside"]

    def test_what_an_inner_interruptible_call_raised_is_not_interrupted_again(self) -> None:
        def outer() -> None:
            try:
                interruptible(interrupt)
            finally:
                interrupt()
                reached.append("cleaned up")

        reached: list[str] = []
        with pytest.raises(KeyboardInterrupt), held():
            interruptible(outer)
        assert reached == ["cleaned up"]


def _interrupted_by(program: Program[Any]) -> Program[Any]:
    """The same program, with Ctrl-C in its first step."""
    interrupt()
    return (yield from program)


class TestEffects:
    def test_a_wait_looks_first(self, world) -> None:
        assert world().driver.run(one, Wait(Ticket(ready=True))) == Completed()

    def test_a_wait_expires(self, world) -> None:
        assert world().driver.run(one, Wait(Ticket(), 0.01)) == Expired()

    def test_a_sleep_takes_its_time(self, world) -> None:
        begun = time.monotonic()
        assert world().driver.run(one, Sleep(0.05)) == Completed()
        assert time.monotonic() - begun >= 0.05

    def test_a_file_is_read(self, world, tmp_path: Path) -> None:
        path, reader = tmp_path / "file", BodyReader(300_000)
        path.write_bytes(b"x" * 200_000)
        assert world().driver.run(one, ReadFile(str(path), reader)) == FileRead()
        assert reader.body == b"x" * 200_000

    def test_a_missing_file_is_unavailable(self, world, tmp_path: Path) -> None:
        effect = ReadFile(str(tmp_path / "none"), BodyReader(10))
        assert isinstance(world().driver.run(one, effect), Unavailable)

    def test_reading_a_file_expires(self, world, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x")
        assert world().driver.run(one, ReadFile(str(path), BodyReader(10), seconds=0.0)) == Expired()

    def test_ctrl_c_interrupts_a_file_between_pieces(self, world, tmp_path: Path) -> None:
        class Interrupting(BodyReader):
            def feed(self, data: bytes) -> None:
                pieces.append(len(data))
                interrupt()

        pieces: list[int] = []
        path = tmp_path / "file"
        path.write_bytes(b"x" * 1_000_000)
        with pytest.raises(KeyboardInterrupt):
            world().driver.run(one, ReadFile(str(path), Interrupting(2_000_000)))
        assert len(pieces) == 1

    def test_a_file_is_written(self, world, tmp_path: Path) -> None:
        path = tmp_path / "file"
        assert world().driver.run(one, WriteFile(str(path), Content())) == Completed()
        assert path.read_bytes() == b"new"

    def test_writing_a_file_expires_between_pieces(self, world, tmp_path: Path) -> None:
        content = Content(lambda: time.sleep(0.05))
        assert world().driver.run(one, WriteFile(str(tmp_path / "file"), content, seconds=0.03)) == Expired()
        assert not list(tmp_path.iterdir())

    def test_ctrl_c_interrupts_the_writing_of_a_file_between_pieces(self, world, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            world().driver.run(one, WriteFile(str(tmp_path / "file"), Content(interrupt)))
        assert not list(tmp_path.iterdir())


@define
class Content:
    """What is written. `meanwhile` is called before its last piece."""

    meanwhile: Callable[[], object] = lambda: None

    def surplus(self, _files: object) -> tuple[str, ...]:
        return ()

    def is_written(self, _head: bytes, _size: int) -> bool:
        return False

    def pieces(self) -> Iterator[bytes]:
        yield b"n"
        self.meanwhile()
        yield b"ew"

    def wanted(self) -> bool:
        return True


@define(eq=False)
class Engine:
    """Instead of zeroconf: reports one agent that can't be used, from a thread."""

    wanted: object
    agents: Any
    lock: threading.Lock
    on_news: Callable[[], None]
    closed: bool = False
    multicast: ClassVar = True

    def open(self) -> None:
        engines.append(self)

    def begin(self) -> Any:
        joined: Future[tuple[object, ...]] = Future()
        if self.multicast:
            threading.Timer(0.02, self.report).start()
        else:
            joined.set_exception(MdnsUnavailable("no multicast"))
        return joined

    def report(self) -> None:
        with self.lock:
            self.agents.seen(UnusableRecord("agent", "it's unusable", "lo"))
        self.on_news()

    def close(self) -> None:
        self.closed = True


engines: list[Engine] = []


class TestLocalNetwork:
    @pytest.fixture(autouse=True)
    def engine(self, monkeypatch) -> None:
        engines.clear()
        monkeypatch.setattr("asap_adapters.blocking.browsing.WatchingEngine", Engine)

    def test_events_are_heard_until_the_time_is_over(self, world) -> None:
        def watching() -> Program[list[Outcome]]:
            first = yield Next(source, 5.0)
            return [first, (yield Next(source, 0.01))]

        source = LocalNetwork()
        first, second = world().driver.run(watching)
        assert isinstance(first, Heard)
        assert second == Expired()
        assert [engine.closed for engine in engines] == [True]

    def test_a_network_without_multicast_is_unavailable(self, world, monkeypatch) -> None:
        monkeypatch.setattr(Engine, "multicast", False)
        assert world().driver.run(one, Next(LocalNetwork(), 5.0)) == Unavailable(str(MdnsUnavailable("no multicast")))
        assert [engine.closed for engine in engines] == [True]

    def test_closing_ends_what_is_watched(self, world, monkeypatch) -> None:
        monkeypatch.setattr(Engine, "report", lambda _: None)
        driver = world().driver
        callers = Callers(lambda: driver.run(one, Next(LocalNetwork())))
        callers.start(1)
        end = time.monotonic() + DEADLOCK
        while not driver._session.closing._ends:
            assert time.monotonic() < end
        driver.close()
        assert [str(end) for end in callers.join()] == ["this client was closed while the call ran"]
        assert [engine.closed for engine in engines] == [True]

    def test_ctrl_c_closes_what_is_watched(self, world, monkeypatch) -> None:
        monkeypatch.setattr(Engine, "report", lambda _: None)
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            world().driver.run(one, Next(LocalNetwork()))
        timer.join()
        assert [engine.closed for engine in engines] == [True]


class TestPlaces:
    def test_who_waits_gets_the_place_that_is_given_back(self) -> None:
        places: Places[str] = Places(1, Closing())
        assert places.take("a", 0)
        assert not places.take("a", 0)
        callers = Callers(lambda: places.take("a", DEADLOCK))
        callers.start(1)
        places.give_back("a")
        assert callers.join() == [True]

    def test_an_interrupted_wait_leaves_the_queue(self) -> None:
        places: Places[str] = Places(1, Closing())
        assert places.take("a", 0)
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            places.take("a", 60)
        timer.join()
        places.give_back("a")
        assert places.take("a", 0)

    @pytest.mark.parametrize("before", [False, True])
    def test_closing_ends_the_wait(self, before: bool) -> None:
        closing = Closing()
        places: Places[str] = Places(1, closing)
        assert places.take("a", 0)
        callers = Callers(lambda: places.take("a", DEADLOCK))
        if not before:
            callers.start(1)
            time.sleep(0.05)
        closing.close()
        if before:
            callers.start(1)
        assert [type(end) for end in callers.join()] == [RuntimeError]
        assert not closing._ends
        places.give_back("a")
        assert places.take("a", 0)


def test_a_flag_that_is_set_twice_ends_one_wait() -> None:
    flag = Flag()
    flag.set()
    flag.set()
    assert flag.wait(0)
    assert not flag.wait(0)
