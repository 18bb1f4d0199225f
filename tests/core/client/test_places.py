"""Places: there is a place for the next key, however many the others take."""

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import Phase, given, settings, strategies as st

from asap_core.client.places import PlaceQueue, PlaceWaiter


def filled(places: PlaceQueue[str], key: str) -> int:
    while places.take(key):
        pass
    return places.held(key)


def test_each_key_gets_a_fifth_of_the_free_places() -> None:
    places: PlaceQueue[str] = PlaceQueue(500)
    assert [filled(places, key) for key in "abcd"] == [100, 80, 64, 52]


def test_after_twenty_greedy_keys_there_are_places_for_more() -> None:
    places: PlaceQueue[str] = PlaceQueue(500)
    held = [filled(places, str(number)) for number in range(20)]
    assert min(held) >= 1
    assert sum(held) <= 496
    assert places.keys == 20


def test_the_last_places_are_for_keys_that_have_none() -> None:
    places: PlaceQueue[str] = PlaceQueue(5)
    assert filled(places, "a") == 1
    assert [places.take(key) for key in "abcde"] == [False, True, True, True, True]
    assert not places.take("f")


def test_a_place_given_back_can_be_taken_by_another_key() -> None:
    places: PlaceQueue[str] = PlaceQueue(10)
    assert (filled(places, "a"), filled(places, "b")) == (2, 2)
    assert not places.take("b")
    places.give_back("a")
    assert not places.take("b")
    places.give_back("a")
    for key in ("b", "b"):
        places.give_back(key)
    assert (places.keys, places.held("a"), filled(places, "c")) == (0, 0, 2)


def test_a_place_that_was_not_taken_cannot_be_given_back() -> None:
    with pytest.raises(KeyError):
        PlaceQueue[str](4).give_back("a")


def test_a_place_goes_to_the_one_who_has_waited_longest_for_it() -> None:
    places: PlaceQueue[str] = PlaceQueue(1)
    assert places.take("a")
    woken: list[str] = []
    first, second, third = (places.line_up(key, partial(woken.append, key)) for key in "bcd")
    places.leave(first)
    places.give_back("a")
    assert (woken, second.granted, third.granted) == (["c"], True, False)
    places.leave(second)
    assert (woken, third.granted, places.held("c"), places.held("d")) == (["c", "d"], True, 0, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())), st.integers(1, 12))
def test_the_key_with_the_fewest_places_is_never_refused_while_another_is_not(moves, most: int) -> None:
    places: PlaceQueue[str] = PlaceQueue(most)
    model = dict.fromkeys("abc", 0)
    for key, takes in moves:
        if takes:
            free = most - sum(model.values())
            assert places.take(key) is (4 * model[key] < free)
            model[key] += 4 * model[key] < free
        elif model[key]:
            places.give_back(key)
            model[key] -= 1
        assert sum(model.values()) <= most
        assert {name: places.held(name) for name in "abc"} == model


class Model:
    """What a queue does, naively: a key's next place is for the one who has waited longest for it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: list[str] = []
        self.waiting: list[PlaceWaiter[str]] = []
        self.granted: list[PlaceWaiter[str]] = []
        # Keys in the order in which their lines began.
        self.lines: list[str] = []

    def may_have(self, key: str) -> bool:
        return 4 * self.held.count(key) < self.most - len(self.held)

    def line_up(self, waiter: PlaceWaiter[str]) -> None:
        self.waiting.append(waiter)
        self.end_lines(*self.lines, waiter.key)

    def leave(self, waiter: PlaceWaiter[str]) -> None:
        self.waiting.remove(waiter)
        self.end_lines(*self.lines)

    def give_back(self, key: str) -> None:
        self.held.remove(key)
        for line in self.lines:
            for waiter in [each for each in self.waiting if each.key == line]:
                if self.may_have(line):
                    self.held.append(line)
                    self.granted.append(waiter)
                    self.waiting.remove(waiter)
        self.end_lines(*self.lines)

    def end_lines(self, *lines: str) -> None:
        self.lines = [line for line in dict.fromkeys(lines) if any(each.key == line for each in self.waiting)]


def make(places: PlaceQueue[str], model: Model, asked: tuple[str, str, int], wake: Callable[[], object]) -> None:
    """Make a move, if it's possible, in both."""
    move, key, number = asked
    match move:
        case "take" if places.take(key):
            assert model.may_have(key)
            assert key not in model.lines
            model.held.append(key)
        case "take":
            assert not model.may_have(key)
            model.line_up(places.line_up(key, wake))
        case "leave" if model.waiting:
            waiter = model.waiting[number % len(model.waiting)]
            model.leave(waiter)
            places.leave(waiter)
        case "leave too late" if model.granted:
            waiter = model.granted.pop(number % len(model.granted))
            model.give_back(waiter.key)
            places.leave(waiter)
        case "give back" if model.held.count(key) > sum(each.key == key for each in model.granted):
            model.give_back(key)
            places.give_back(key)


def check_queue(queue: type[PlaceQueue[str]], moves: list[tuple[str, str, int]], most: int) -> None:
    """Make these moves beside the model."""
    places, model = queue(most), Model(most)
    woken: list[bool] = []
    for move in moves:
        before = len(model.granted) - (move[0] == "leave too late" and bool(model.granted))
        make(places, model, move, lambda: woken.append(True))
        assert len(woken) == len(model.granted) - before
        woken.clear()
        assert all(each.granted for each in model.granted)
        assert not any(each.granted for each in model.waiting)
        assert {name: places.held(name) for name in "abc"} == {name: model.held.count(name) for name in "abc"}


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "leave", "leave too late", "give back"]),
        st.sampled_from("abc"),
        st.integers(0, 5),
    ),
    min_size=20,
    max_size=60,
)


@given(MOVES, st.integers(1, 8))
def test_places_are_given_to_those_who_wait_in_order(moves, most: int) -> None:
    check_queue(PlaceQueue, moves, most)


class ForgetsToGrant(PlaceQueue[str]):
    """Gives back without waking anybody."""

    def give_back(self, key: str) -> None:
        waiting, self._waiting = self._waiting, {}
        super().give_back(key)
        self._waiting = waiting


class LosesGrantedPlaces(PlaceQueue[str]):
    """Keeps the place of one who leaves after it was granted."""

    def leave(self, waiter: PlaceWaiter[str]) -> None:
        if not waiter.granted:
            super().leave(waiter)


class LastComesFirst(PlaceQueue[str]):
    """Wakes the one who came last."""

    def line_up(self, key: str, wake: Callable[[], object]) -> PlaceWaiter[str]:
        waiter = super().line_up(key, wake)
        self._waiting[key].rotate(1)
        return waiter


@pytest.mark.planted
@pytest.mark.parametrize("broken", [ForgetsToGrant, LosesGrantedPlaces, LastComesFirst])
def test_a_broken_queue_is_caught(broken: type[PlaceQueue[str]]) -> None:
    @given(MOVES, st.integers(1, 8))
    @settings(max_examples=2_000, phases=[Phase.generate], derandomize=True, database=None, report_multiple_bugs=False)
    def check(moves, most: int) -> None:
        check_queue(broken, moves, most)

    with pytest.raises(AssertionError):
        check()
