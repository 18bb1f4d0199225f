"""Lru against a naive model: a list of pairs, the least recently used first."""

from typing import Any

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from asap_core.lru import Lru

KEYS = st.integers(0, 5)


class LruLaws(RuleBasedStateMachine):
    """Every method, and after each the whole content in order."""

    kind: type[Lru[int, int]] = Lru

    @initialize(most=st.integers(0, 4))
    def start(self, most: int) -> None:
        self.most = most
        self.lru = self.kind(most)
        self.model: list[tuple[int, int]] = []

    def taken(self, key: int) -> tuple[int, int] | None:
        pair = next((pair for pair in self.model if pair[0] == key), None)
        if pair is not None:
            self.model.remove(pair)
        return pair

    @rule(key=KEYS, value=st.integers(0, 3))
    def put(self, key: int, value: int) -> None:
        self.taken(key)
        self.model.append((key, value))
        evicted = self.model.pop(0) if len(self.model) > self.most else None
        assert self.lru.put(key, value) == evicted

    @rule(key=KEYS)
    def touch(self, key: int) -> None:
        pair = self.taken(key)
        if pair is None:
            with pytest.raises(KeyError):
                self.lru.touch(key)
        else:
            self.model.append(pair)
            self.lru.touch(key)

    @rule(key=KEYS)
    def peek(self, key: int) -> None:
        assert self.lru.peek(key) == dict(self.model).get(key)

    @rule(key=KEYS)
    def pop(self, key: int) -> None:
        pair = self.taken(key)
        assert self.lru.pop(key) == (None if pair is None else pair[1])

    @rule()
    def clear(self) -> None:
        self.model.clear()
        self.lru.clear()

    @invariant()
    def same_entries_in_the_same_order(self) -> None:
        if hasattr(self, "lru"):
            assert list(self.lru.items()) == self.model
            assert list(self.lru) == [key for key, _ in self.model]
            assert len(self.lru) == len(self.model) <= self.most
            assert all((key in self.lru) is (key in dict(self.model)) for key in range(6))


LAWS = settings(max_examples=100, deadline=None)
TestLruLaws = LruLaws.TestCase
TestLruLaws.settings = LAWS


class OneTooMany(Lru[int, int]):
    def __init__(self, most: int) -> None:
        super().__init__(most + 1)


class PutIsNoUse(Lru[int, int]):
    def put(self, key: int, value: int) -> Any:
        self._entries[key] = value
        return self._entries.popitem(last=False) if len(self._entries) > self._most else None


class EvictsTheNewest(Lru[int, int]):
    def put(self, key: int, value: int) -> Any:
        self._entries[key] = value
        self._entries.move_to_end(key)
        return self._entries.popitem() if len(self._entries) > self._most else None


class EvictsSilently(Lru[int, int]):
    def put(self, key: int, value: int) -> None:
        super().put(key, value)


class PeekIsUse(Lru[int, int]):
    def peek(self, key: int) -> int | None:
        if key in self:
            self.touch(key)
        return super().peek(key)


class TouchIsNoUse(Lru[int, int]):
    def touch(self, key: int) -> None:
        self._entries[key]


class PopKeeps(Lru[int, int]):
    def pop(self, key: int) -> int | None:
        return self.peek(key)


@pytest.mark.planted
@pytest.mark.long
@pytest.mark.parametrize(
    "mutant", [OneTooMany, PutIsNoUse, EvictsTheNewest, EvictsSilently, PeekIsUse, TouchIsNoUse, PopKeeps]
)
def test_a_broken_lru_is_caught(mutant: type[Lru[int, int]]) -> None:
    hunt = settings(LAWS, max_examples=1000, phases=[Phase.generate], derandomize=True, database=None)
    machine = type("Machine", (LruLaws,), {"kind": mutant})
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(machine, settings=hunt)
