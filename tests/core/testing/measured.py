"""Examples of a strategy, nearly always the same ones: what a test counts them by."""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import TypeVar

from hypothesis import Phase, given, seed, settings, strategies as st

T = TypeVar("T")
# Hypothesis varies what it drew before, the more the longer it searches: several short searches draw more evenly.
_AT_ONCE = 30


def examples_of(strategy: st.SearchStrategy[T], count: int = 300) -> list[T]:
    drawn: list[T] = []

    @settings(max_examples=_AT_ONCE, database=None, phases=[Phase.generate])
    @given(strategy)
    def collect(example: T) -> None:
        drawn.append(example)

    for number in range(count // _AT_ONCE):
        seed(number)(collect)()
    return drawn


def assert_even(drawn: Iterable[str], rules: Collection[str]) -> None:
    """Nearly every rule is drawn, and none by itself makes up a third. Which ones are rare differs between runs."""
    counted = Counter(drawn)
    assert counted.keys() <= {*rules}
    assert len(counted) >= 0.85 * len(rules), {*rules} - counted.keys()
    assert max(counted.values()) <= counted.total() / 3, counted
