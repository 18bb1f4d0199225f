"""What programs share: places in queues, the undoing of closed programs, time, and remarks."""

import inspect
from threading import Thread
from typing import Any

import pytest
from attrs import frozen

from asap_core.client.programs import Completed, Program, Returned, Sleep, Ticket, Wait, step
from asap_core.client.runtime import Place, Remark, Runtime
from asap_core.clock import ManualClock
from tests.core.client.scripted import Driver
from tests.moments import moment


@frozen
class Delivery:
    waiter: Place[Any]
    text: str = "hello"


@pytest.fixture
def runtime() -> Runtime:
    return Driver().runtime


class TestTime:
    def test_time_is_read_from_the_clock(self) -> None:
        runtime = Runtime(ManualClock(monotonic=5.0, wall=9.0), str, str, float)
        assert (runtime.now(), runtime.wall(), runtime.moment()) == (5.0, 9.0, moment(5.0, 9.0))

    def test_ids_tokens_and_fractions_come_from_the_given_functions(self) -> None:
        runtime = Runtime(ManualClock(), lambda: "id", lambda: "token", lambda: 0.25)
        assert (runtime.new_id(), runtime.new_token(), runtime.fraction()) == ("id", "token", 0.25)


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("clock", r"clock: expected a Clock, an object with monotonic\(\) and wall\(\)"),
            ("new_id", r"new_id: expected a function \(\) -> str that isn't async; not NoneType"),
            ("new_token", r"new_token: expected a function \(\) -> str that isn't async; not NoneType"),
            ("fraction", r"fraction: expected a function \(\) -> float that isn't async; not NoneType"),
        ],
    )
    def test_a_missing_source_is_refused(self, name: str, says: str) -> None:
        sources: dict[str, Any] = {"clock": ManualClock(), "new_id": str, "new_token": str, "fraction": float}
        Runtime(**sources)
        with pytest.raises(ValueError, match=f"^{says}$"):
            Runtime(**{**sources, name: None})

    @pytest.mark.parametrize("name", ["new_id", "new_token", "fraction"])
    def test_an_async_function_is_refused(self, name: str) -> None:
        async def later() -> str:
            raise NotImplementedError

        sources: dict[str, Any] = {"clock": ManualClock(), "new_id": str, "new_token": str, "fraction": float}
        with pytest.raises(ValueError, match=f"^{name}: .*this is an async one"):
            Runtime(**{**sources, name: later})


class TestWaiting:
    @pytest.mark.parametrize("parked", [True, False])
    def test_a_ticket_without_an_effect_is_woken_if_its_program_waits(self, runtime: Runtime, parked: bool) -> None:
        ticket = Ticket(parked=parked)
        runtime.wake(ticket)
        assert ticket.ready
        assert runtime.take_wakes() == (ticket,) * parked

    def test_an_available_effect_is_returned_at_once(self, runtime: Runtime) -> None:
        place: Place[Delivery] = Place()
        given = Delivery(place)
        runtime.give([given])
        assert step(runtime.next_for(place)) == Returned(given)
        assert place.effect is None
        assert runtime.take_wakes() == ()

    def test_a_waiter_is_woken_once(self, runtime: Runtime) -> None:
        place: Place[Delivery] = Place()
        program = runtime.next_for(place)
        assert step(program) == Wait(place)
        given = Delivery(place)
        runtime.give([given])
        assert place.ready
        assert runtime.take_wakes() == (place,)
        assert runtime.take_wakes() == ()
        assert step(program, Completed()) == Returned(given)

    def test_a_woken_waiter_is_not_woken_again(self, runtime: Runtime) -> None:
        """Its next effect may come before it waits again."""
        place: Place[Delivery] = Place()
        program = runtime.next_for(place)
        step(program)
        runtime.give([Delivery(place)])
        step(program, Completed())
        runtime.take_wakes()
        runtime.give([Delivery(place)])
        assert runtime.take_wakes() == ()

    def test_a_waiter_woken_without_an_effect_waits_again(self, runtime: Runtime) -> None:
        place: Place[Delivery] = Place()
        program = runtime.next_for(place)
        for outcome in (None, Completed(), Completed()):
            assert step(program, outcome) == Wait(place)
            assert not place.ready

    def test_each_waiter_gets_its_own_effect(self, runtime: Runtime) -> None:
        places: list[Place[Delivery]] = [Place(), Place(), Place()]
        programs = [runtime.next_for(place) for place in places[:2]]
        for program in programs:
            step(program)
        runtime.give([Delivery(place, str(number)) for number, place in enumerate(places)])
        assert runtime.take_wakes() == tuple(places[:2])
        assert [step(program, Completed()) for program in programs] == [
            Returned(Delivery(place, str(number))) for number, place in enumerate(places[:2])
        ]


class Left(Exception):
    pass


class TestUndoing:
    @pytest.fixture
    def undone(self) -> list[str]:
        return []

    def program(self, runtime: Runtime, undone: list[str], error: type[Exception] | None = None) -> Program[str]:
        with runtime.undoing(lambda: undone.append("outer")), runtime.undoing(lambda: undone.append("inner")):
            yield from Sleep(1.0)
            if error is not None:
                raise error
        return "finished"

    def test_nothing_is_undone_after_success(self, runtime: Runtime, undone: list[str]) -> None:
        program = self.program(runtime, undone)
        step(program)
        assert step(program, Completed()) == Returned("finished")
        runtime.take_wakes()
        assert undone == []

    def test_a_program_is_undone_at_once_after_an_exception(self, runtime: Runtime, undone: list[str]) -> None:
        program = self.program(runtime, undone, Left)
        step(program)
        with pytest.raises(Left):
            step(program, Completed())
        assert undone == ["inner", "outer"]
        runtime.take_wakes()
        assert undone == ["inner", "outer"]

    def test_a_closed_program_is_undone_by_its_owner(self, runtime: Runtime, undone: list[str]) -> None:
        program = self.program(runtime, undone)
        step(program)
        program.close()
        assert undone == []
        runtime.take_wakes()
        runtime.take_wakes()
        assert undone == ["inner", "outer"]

    def test_a_program_collected_in_another_thread_is_undone_by_its_owner(
        self, runtime: Runtime, undone: list[str]
    ) -> None:
        program = self.program(runtime, undone)
        step(program)
        held = [program]
        del program
        thread = Thread(target=held.clear)
        thread.start()
        thread.join()
        assert undone == []
        runtime.take_wakes()
        assert undone == ["inner", "outer"]

    def test_waiters_woken_by_undoing_are_returned(self, runtime: Runtime) -> None:
        place: Place[Delivery] = Place()
        waiting = runtime.next_for(place)
        step(waiting)

        def leaving() -> Program[None]:
            with runtime.undoing(lambda: runtime.give([Delivery(place)])):
                yield from Sleep(1.0)

        program = leaving()
        step(program)
        program.close()
        assert runtime.take_wakes() == (place,)

    def test_a_program_closed_by_undoing_is_undone_too(self, runtime: Runtime, undone: list[str]) -> None:
        second = self.program(runtime, undone)
        step(second)

        def leaving() -> Program[None]:
            with runtime.undoing(second.close):
                yield from Sleep(1.0)

        first = leaving()
        step(first)
        first.close()
        runtime.take_wakes()
        assert undone == ["inner", "outer"]


class TestRemarks:
    def test_remarks_are_returned_once_and_in_order(self, runtime: Runtime) -> None:
        assert runtime.take_remarks() == ()
        runtime.warn("asap.discovery", ValueError("why"))
        runtime.inform("asap.oauth", "a token")
        assert runtime.take_remarks() == (
            Remark("asap.discovery", "warning", "why"),
            Remark("asap.oauth", "info", "a token"),
        )
        assert runtime.take_remarks() == ()


class TestRemovals:
    def test_they_are_returned_once_and_in_order(self, runtime: Runtime) -> None:
        assert runtime.take_removals() == ()
        runtime.remove("/b")
        runtime.remove("/a")
        assert runtime.take_removals() == ("/b", "/a")
        assert runtime.take_removals() == ()


def test_only_what_the_host_gives_is_an_argument() -> None:
    assert list(inspect.signature(Runtime).parameters) == ["clock", "new_id", "new_token", "fraction"]


def test_a_runtime_is_not_quiet_while_something_is_to_be_undone(runtime: Runtime) -> None:
    runtime.undo_after(GeneratorExit(), lambda: None)
    assert not runtime.is_quiet
    assert runtime.take_wakes() == ()
    assert runtime.is_quiet


def test_a_runtime_is_quiet_if_there_is_nothing_to_take(runtime: Runtime) -> None:
    place: Place[Delivery] = Place(parked=True)
    for note, take in (
        (lambda: runtime.give([Delivery(place)]), runtime.take_wakes),
        (lambda: runtime.remove("/copies/a"), runtime.take_removals),
        (lambda: runtime.warn("asap", "text"), runtime.take_remarks),
    ):
        before = runtime.is_quiet
        note()
        during = runtime.is_quiet
        take()
        assert (before, during, runtime.is_quiet) == (True, False, True)
