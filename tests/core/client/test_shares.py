"""Shares of places: there is a place for the next key, however many the others take."""

import pytest
from hypothesis import given, strategies as st

from asap_core.client.shares import PlaceShares


def filled(shares: PlaceShares[str], key: str) -> int:
    while shares.take(key):
        pass
    return shares.held(key)


def test_each_key_gets_a_fifth_of_the_free_places() -> None:
    shares: PlaceShares[str] = PlaceShares(500)
    assert [filled(shares, key) for key in "abcd"] == [100, 80, 64, 52]


def test_after_twenty_greedy_keys_there_are_places_for_more() -> None:
    shares: PlaceShares[str] = PlaceShares(500)
    held = [filled(shares, str(number)) for number in range(20)]
    assert min(held) >= 1
    assert sum(held) <= 496
    assert shares.keys == 20


def test_the_last_places_are_for_keys_that_have_none() -> None:
    shares: PlaceShares[str] = PlaceShares(5)
    assert filled(shares, "a") == 1
    assert [shares.take(key) for key in "abcde"] == [False, True, True, True, True]
    assert not shares.take("f")


def test_a_place_given_back_can_be_taken_by_another_key() -> None:
    shares: PlaceShares[str] = PlaceShares(10)
    assert (filled(shares, "a"), filled(shares, "b")) == (2, 2)
    assert not shares.take("b")
    shares.give_back("a")
    assert not shares.take("b")
    shares.give_back("a")
    for key in ("b", "b"):
        shares.give_back(key)
    assert (shares.keys, shares.held("a"), filled(shares, "c")) == (0, 0, 2)


def test_a_place_that_was_not_taken_cannot_be_given_back() -> None:
    with pytest.raises(KeyError):
        PlaceShares[str](4).give_back("a")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())), st.integers(1, 12))
def test_the_key_with_the_fewest_places_is_never_refused_while_another_is_not(moves, places: int) -> None:
    shares: PlaceShares[str] = PlaceShares(places)
    model = dict.fromkeys("abc", 0)
    for key, takes in moves:
        if takes:
            free = places - sum(model.values())
            assert shares.take(key) is (4 * model[key] < free)
            model[key] += 4 * model[key] < free
        elif model[key]:
            shares.give_back(key)
            model[key] -= 1
        assert sum(model.values()) <= places
        assert {name: shares.held(name) for name in "abc"} == model
